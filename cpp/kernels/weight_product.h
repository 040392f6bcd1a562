// Products with a frozen weight W of any ggml type, for many tokens at a time: a tile of W is dequantized once,
// straight into the packed panels of the matrix product, and serves all tokens.
//
// W  ne = [n_in, n_out]: row o holds the n_in weights of output o in w_row_bytes bytes; n_in is a multiple of
// ggml_blck_size(type), and can_dequantize(type). Row strides of activations are in floats, rows are contiguous.
// Thread ith of nth writes its own part of the result, which has the same bits for every nth.
#pragma once

#include <ggml.h>

#include <cstddef>
#include <cstdint>

namespace ggtune::kernels {

// dX[t, i] = sum_o dY[t, o] * W[o, i], added to dX where `accumulate`.
//   dy  [n_tokens, n_out]    dx  [n_tokens, n_in]
void weight_input_gradient(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, int64_t n_out,
                           const float * dy, int64_t dy_row_stride, int64_t n_tokens, float * dx, int64_t dx_row_stride,
                           bool accumulate, int ith, int nth);

// The loop that defines weight_input_gradient(): dequantize a row of W, add its multiples to the rows of dX.
void weight_input_gradient_reference(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, int64_t n_out,
                                     const float * dy, int64_t dy_row_stride, int64_t n_tokens, float * dx,
                                     int64_t dx_row_stride, bool accumulate);

// Y[t, o] = sum_i X[t, i] * W[o, i], added to Y where `accumulate`.
//   x  [n_tokens, n_in]    y  [n_tokens, n_out]
void weight_forward(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, int64_t n_out, const float * x,
                    int64_t x_row_stride, int64_t n_tokens, float * y, int64_t y_row_stride, bool accumulate, int ith,
                    int nth);

// The loop that defines weight_forward(): dequantize a row of W, take its dot product with each row of X.
void weight_forward_reference(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, int64_t n_out,
                              const float * x, int64_t x_row_stride, int64_t n_tokens, float * y, int64_t y_row_stride,
                              bool accumulate);

}  // namespace ggtune::kernels
