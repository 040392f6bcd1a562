// Rows of floats and of weights as the panels of tile.h. Private to cpp/kernels.
#pragma once

#include <ggml.h>

#include <cstdint>

#include "kernels/bf16.h"
#include "kernels/tile.h"

namespace ggtune::kernels::detail {

// scale times 32 values, or times n < 32 of them and zeros after.
inline void round_scaled(const float * x, int64_t n, float scale, Bf16 * to) {
    float values[kTileDepth] = {};
    if (n >= kTileDepth) {
        for (int64_t i = 0; i < kTileDepth; ++i) {
            values[i] = scale * x[i];
        }
    } else {
        for (int64_t i = 0; i < n; ++i) {
            values[i] = scale * x[i];
        }
    }
    round_to_bf16(values, to);
}

// One panel of A: scale times n_rows <= 16 rows of X [n_rows, depth].
void pack_rows(const float * x, int64_t x_row_stride, int64_t n_rows, int64_t depth, float scale, Bf16 * panel);

// One panel of B: its columns are scale times n_rows <= 16 rows of X [n_rows, depth].
void pack_columns(const float * x, int64_t x_row_stride, int64_t n_rows, int64_t depth, float scale, Bf16 * panel);

// One row of pairs of each of two panels of B, from two rows of 32 columns.
void interleave(const Bf16 * even, const Bf16 * odd, Bf16 * first, Bf16 * second);

// dst [n_cols, n_rows] = src [n_rows, n_cols] of 32 x 32 floats, added where `accumulate`.
void store_transposed(const float * src, int64_t n_rows, int64_t n_cols, float * dst, int64_t dst_stride,
                      bool accumulate);

}  // namespace ggtune::kernels::detail
