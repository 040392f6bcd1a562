// Rows of floats and of weights as the panels of tile.h. Private to cpp/kernels.
#pragma once

#include <ggml.h>

#include <cstdint>

#include "kernels/tile.h"

namespace ggtune::kernels::detail {

// n values stored at src, as dequantize_row() gives them, rounded to bf16: each 32 at `to` and `stride` values further. What is
// missing to a multiple of 32 is zeros.
void unpack_bf16(ggml_type type, const void * src, int64_t n, Bf16 * to, int64_t stride);

// One panel of A: n_rows <= 16 rows of X [n_rows, depth].
void pack_rows(const float * x, int64_t x_row_stride, int64_t n_rows, int64_t depth, Bf16 * panel);

// One panel of B: its columns are n_rows <= 16 rows of X [n_rows, depth].
void pack_columns(const float * x, int64_t x_row_stride, int64_t n_rows, int64_t depth, Bf16 * panel);

// Two panels of B from two rows of 32 columns: values `depth` and depth + 1 of the sum, depth even.
void interleave(const Bf16 * even, const Bf16 * odd, int64_t depth, Bf16 * panel, int64_t panel_stride);

// dst [n_cols, n_rows] = src [n_rows, n_cols] of 32 x 32 floats, added where `accumulate`.
void store_transposed(const float * src, int64_t n_rows, int64_t n_cols, float * dst, int64_t dst_stride,
                      bool accumulate);

}  // namespace ggtune::kernels::detail
