// Products with frozen weights of any ggml type, for many tokens at a time, in bf16 with sums in float32 on the CPU's
// matrix unit (tile.h): a block of weights is dequantized to bf16 once and serves all tokens.
//
// Row strides are in floats, rows are contiguous. A result is computed a range of its columns at a time, which threads
// may take in any order: it has the same bits for every division.
// The error of a product is that of rounding both operands to 8 significant bits: 2.4e-3 in norm, without bias.
#pragma once

#include <ggml.h>

#include <cstddef>
#include <cstdint>

#include "kernels/partition.h"

namespace ggtune::kernels {

// True where this CPU has a matrix unit. Elsewhere the functions are right but slow.
bool bf16_product_fast();

// Tokens are packed by 16: X [n_tokens, n] takes bf16_panel_count(n_tokens) panels of bf16_panel_bytes(n) bytes, and 64
// bytes more where it does not begin on a cache line.
int64_t bf16_panel_count(int64_t n_tokens);
size_t bf16_panel_bytes(int64_t n);

// scale * X as bf16_forward() and as bf16_input_gradient() take it; panels [first, end).
void bf16_pack_inputs(const float * x, int64_t x_row_stride, int64_t n, int64_t n_tokens, float scale, void * packed,
                      int64_t first, int64_t end);
void bf16_pack_gradients(const float * dy, int64_t dy_row_stride, int64_t n, int64_t n_tokens, float scale,
                         void * packed, int64_t first, int64_t end);

// One product of a sum of products.
// W  ne = [n_in, n_out]: row o holds the n_in weights of output o in row_bytes bytes; n_in is a multiple of
// ggml_blck_size(type), and can_dequantize(type).
struct Bf16Term {
    ggml_type type;
    const void * w;
    size_t row_bytes;
    int64_t depth;        // over which is summed: n_in in bf16_forward(), n_out in bf16_input_gradient()
    const void * packed;  // X or dY
};
inline constexpr int kMostBf16Terms = 2;

// How the result [n_tokens, n_columns] is best divided: into blocks of so many tokens and columns, multiples of 32.
struct Bf16Blocks {
    int64_t tokens, columns;
};
Bf16Blocks bf16_blocks(int64_t n_tokens, int64_t n_columns, int nth);

// Y[t, o] = sum over terms of sum_i X[t, i] * W[o, i], added to Y where `accumulate`, for some tokens and outputs; the
// ranges begin at multiples of 32.
void bf16_forward(const Bf16Term * terms, int n_terms, int64_t n_tokens, float * y, int64_t y_row_stride,
                  bool accumulate, const Range & tokens, const Range & columns);

// dX[t, i] = sum over terms of sum_o dY[t, o] * W[o, i], likewise for some tokens and inputs.
void bf16_input_gradient(const Bf16Term * terms, int n_terms, int64_t n_tokens, float * dx, int64_t dx_row_stride,
                         bool accumulate, const Range & tokens, const Range & columns);

// The same for rows of larger matrices, which are gathered and scattered: token t is row rows[t] of X, dY, Y or dX.
void bf16_pack_input_rows(const float * x, int64_t x_row_stride, const int32_t * rows, int64_t n, int64_t n_tokens,
                          float scale, void * packed, int64_t first, int64_t end);
void bf16_pack_gradient_rows(const float * dy, int64_t dy_row_stride, const int32_t * rows, int64_t n, int64_t n_tokens,
                             float scale, void * packed, int64_t first, int64_t end);
void bf16_forward_rows(const Bf16Term * terms, int n_terms, int64_t n_tokens, float * y, int64_t y_row_stride,
                       const int32_t * rows, bool accumulate, const Range & tokens, const Range & columns);
void bf16_input_gradient_rows(const Bf16Term * terms, int n_terms, int64_t n_tokens, float * dx, int64_t dx_row_stride,
                              const int32_t * rows, bool accumulate, const Range & tokens, const Range & columns);

// G[r, i] += scale * sum_t S[t, r] * L[t, i], the gradient of a low-rank matrix, for columns [first, end) of L; `first`
// is a multiple of bf16_outer_block().
//   s  [n_tokens, rank]    l  [n_tokens, n]    g  [rank, n], element (r, i) at g[r * g_row_stride + i * g_col_stride]
int64_t bf16_outer_block();
void bf16_outer_product(const float * s, int64_t s_row_stride, int64_t rank, const float * l, int64_t l_row_stride,
                        int64_t n_tokens, float scale, bool accumulate, float * g, int64_t g_row_stride,
                        int64_t g_col_stride, int64_t first, int64_t end);

}  // namespace ggtune::kernels
