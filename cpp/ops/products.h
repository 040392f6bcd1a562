// Gradients of products, for the rules of all nodes that multiply matrices.
#pragma once

#include "ops/ops.h"

namespace ggtune {

// Adds dx, a term of the gradient of x, which make(accumulator) makes: in place where the gradient so far allows it.
template <class Make>
void add_in_place(const BackwardStep & s, ggml_tensor * x, Make make) {
    ggml_tensor * own = s.gradients.own_gradient(x);
    ggml_tensor * dx = make(own);
    if (own != nullptr) {
        s.gradients.set_own_gradient(x, dx);
    } else {
        s.gradients.add_own(x, dx);
    }
}

// Of y = w x, w = y->src[0], x = y->src[1].
void product_rule(const BackwardStep & s);

// dx and dw of a product of w and x that was multiplied by `scale`
void add_product_gradients(const BackwardStep & s, ggml_tensor * w, ggml_tensor * x, float scale);

}  // namespace ggtune
