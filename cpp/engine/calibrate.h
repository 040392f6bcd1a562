// How long the products with one weight matrix take on this machine, to predict the time of a step before it is run.
#pragma once

#include <ggml.h>

namespace ggtune {

struct ProductTimes {
    double forward_s;
    double input_gradient_s;
};

// Best of three, with a matrix of zeros of the given type, ne = [n_in, n_out], and n_tokens rows. Raises Error for
// sizes that the type can't have.
ProductTimes measure_products(ggml_type type, int64_t n_in, int64_t n_out, int64_t n_tokens, int threads);

}  // namespace ggtune
