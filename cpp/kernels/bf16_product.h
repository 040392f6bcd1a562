// Products with a frozen weight W of any ggml type, for many tokens at a time, in bf16 with sums in float32 on the CPU's
// matrix unit (tile.h): a block of W is dequantized to bf16 once and serves all tokens.
//
// W  ne = [n_in, n_out]: row o holds the n_in weights of output o in w_row_bytes bytes; n_in is a multiple of
// ggml_blck_size(type), and can_dequantize(type). Row strides are in floats, rows are contiguous.
// Work comes in chunks, which threads may take in any order; the result has the same bits for every division.
// The error of a product is that of rounding both operands to 8 significant bits: 2e-3 in norm.
#pragma once

#include <ggml.h>

#include <cstddef>
#include <cstdint>

namespace ggtune::kernels {

// True where this CPU has a matrix unit. Elsewhere the functions are right but slow.
bool bf16_product_fast();

// Tokens are packed by 16: X [n_tokens, n] takes bf16_panel_count(n_tokens) panels of bf16_panel_bytes(n) bytes.
int64_t bf16_panel_count(int64_t n_tokens);
size_t bf16_panel_bytes(int64_t n);

// X as bf16_forward() takes it, and as bf16_input_gradient() does. Panels [first, end).
void bf16_pack_inputs(const float * x, int64_t x_row_stride, int64_t n, int64_t n_tokens, void * packed, int64_t first,
                      int64_t end);
void bf16_pack_gradients(const float * dy, int64_t dy_row_stride, int64_t n, int64_t n_tokens, void * packed,
                         int64_t first, int64_t end);

// Y[t, o] = sum_i X[t, i] * W[o, i], added to Y where `accumulate`, for outputs [first, end); `first` is a multiple of 32.
//   packed  X from bf16_pack_inputs()    y  [n_tokens, n_out]
void bf16_forward(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, const void * packed,
                  int64_t n_tokens, float * y, int64_t y_row_stride, bool accumulate, int64_t first, int64_t end);

// dX[t, i] = sum_o dY[t, o] * W[o, i], added to dX where `accumulate`, for inputs [first, end); `first` is a multiple of
// 32.
//   packed  dY from bf16_pack_gradients()    dx  [n_tokens, n_in]
void bf16_input_gradient(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_out, const void * packed,
                         int64_t n_tokens, float * dx, int64_t dx_row_stride, bool accumulate, int64_t first,
                         int64_t end);

}  // namespace ggtune::kernels
