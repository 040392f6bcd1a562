// Gradient of a product with respect to the scales and mins of a quantized matrix.
#pragma once

#include <ggml.h>

#include <cstdint>

#include "kernels/gemm.h"

namespace ggtune::kernels {

// gradient += d(loss)/d(factor) of y = x w^T, for the factors of all blocks of w (kernels/block_factors.h).
//   w         n_out rows of n_in weights as stored, row_bytes apart; block_factors(type), whole blocks
//   x         [n_tokens, n_in]
//   dy        [n_tokens, n_out], gradient of the loss with respect to y
//   gradient  [n_out, n_kinds, n_in / block], contiguous
// The gradient of the weights, dy^T x, exists for some rows at a time. Thread ith of nth takes its own rows; the result
// has the same bits for every nth.
void scale_gradient(ggml_type type, const uint8_t * w, int64_t row_bytes, int64_t n_in, int64_t n_out, int64_t n_tokens,
                    Operand x, Operand dy, float * gradient, int ith, int nth);

}  // namespace ggtune::kernels
