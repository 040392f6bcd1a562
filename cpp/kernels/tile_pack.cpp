#include "kernels/tile_pack.h"

#include <algorithm>
#include <cstring>

#include "kernels/bf16_unpack.h"
#include "kernels/transpose.h"

#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

namespace ggtune::kernels::detail {

namespace {

// 32 values, or fewer and zeros.
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

}  // namespace

void pack_rows(const float * x, int64_t x_row_stride, int64_t n_rows, int64_t depth, float scale, Bf16 * panel) {
    for (int64_t k = 0; k < depth; k += kTileDepth, panel += kTileValues) {
        for (int64_t i = 0; i < n_rows; ++i) {
            round_scaled(x + i * x_row_stride + k, depth - k, scale, panel + i * kTileDepth);
        }
        std::memset(panel + n_rows * kTileDepth, 0,
                    static_cast<size_t>((kTileRows - n_rows) * kTileDepth) * sizeof(Bf16));
    }
}

void pack_columns(const float * x, int64_t x_row_stride, int64_t n_rows, int64_t depth, float scale, Bf16 * panel) {
    // pairs are moved as one float
    alignas(64) float rows[kTileRows][kTilePairs] = {};
    static_assert(sizeof rows == kTileValues * sizeof(Bf16));
    for (int64_t k = 0; k < depth; k += kTileDepth, panel += kTileValues) {
        for (int64_t i = 0; i < n_rows; ++i) {
            round_scaled(x + i * x_row_stride + k, depth - k, scale, reinterpret_cast<Bf16 *>(rows[i]));
        }
        transpose_copy(rows[0], kTilePairs, kTileRows, kTilePairs, reinterpret_cast<float *>(panel), kTileRows);
    }
}

void interleave(const Bf16 * even, const Bf16 * odd, Bf16 * first, Bf16 * second) {
#if defined(__AVX512BW__)
    const __m512i low_half = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38,
                                              6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high_half = _mm512_add_epi16(low_half, _mm512_set1_epi16(16));
    const __m512i low = _mm512_loadu_si512(even);
    const __m512i high = _mm512_loadu_si512(odd);
    _mm512_storeu_si512(first, _mm512_permutex2var_epi16(low, low_half, high));
    _mm512_storeu_si512(second, _mm512_permutex2var_epi16(low, high_half, high));
#else
    for (int64_t i = 0; i < kTileRows; ++i) {
        first[2 * i] = even[i];
        first[2 * i + 1] = odd[i];
        second[2 * i] = even[i + kTileRows];
        second[2 * i + 1] = odd[i + kTileRows];
    }
#endif
}

void store_transposed(const float * src, int64_t n_rows, int64_t n_cols, float * dst, int64_t dst_stride,
                      bool accumulate) {
    constexpr int64_t kSide = kMostPanels * kTileRows;
    if (!accumulate) {
        transpose_copy(src, kSide, n_rows, n_cols, dst, dst_stride);
        return;
    }
    float columns[kSide * kSide];
    transpose_copy(src, kSide, n_rows, n_cols, columns, kSide);
    for (int64_t j = 0; j < n_cols; ++j) {
        for (int64_t i = 0; i < n_rows; ++i) {
            dst[j * dst_stride + i] += columns[j * kSide + i];
        }
    }
}

}  // namespace ggtune::kernels::detail
