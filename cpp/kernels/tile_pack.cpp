#include "kernels/tile_pack.h"

#include <algorithm>
#include <cstring>

#include "kernels/bf16_unpack.h"
#include "kernels/transpose.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace ggtune::kernels::detail {

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

namespace {

#if defined(__AVX512F__)
// 16 x 16 floats in registers: pairs of rows, then of pairs, within their quarters, then the quarters.
inline void transpose_16x16(__m512 (&row)[16]) {
    __m512 t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_ps(row[2 * i], row[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(row[2 * i], row[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const __m512 *low = t + 4 * i, *high = low + 2;
        row[4 * i] = _mm512_shuffle_ps(low[0], high[0], 0x44);
        row[4 * i + 1] = _mm512_shuffle_ps(low[0], high[0], 0xee);
        row[4 * i + 2] = _mm512_shuffle_ps(low[1], high[1], 0x44);
        row[4 * i + 3] = _mm512_shuffle_ps(low[1], high[1], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const __m512 low01 = _mm512_shuffle_f32x4(row[i], row[4 + i], 0x88);
        const __m512 high01 = _mm512_shuffle_f32x4(row[i], row[4 + i], 0xdd);
        const __m512 low23 = _mm512_shuffle_f32x4(row[8 + i], row[12 + i], 0x88);
        const __m512 high23 = _mm512_shuffle_f32x4(row[8 + i], row[12 + i], 0xdd);
        t[i] = _mm512_shuffle_f32x4(low01, low23, 0x88);
        t[4 + i] = _mm512_shuffle_f32x4(high01, high23, 0x88);
        t[8 + i] = _mm512_shuffle_f32x4(low01, low23, 0xdd);
        t[12 + i] = _mm512_shuffle_f32x4(high01, high23, 0xdd);
    }
    std::memcpy(row, t, sizeof t);
}

// A whole block, a cache line at a time; past the caches where lines are aligned, since it is not read again soon and
// need not be fetched to be overwritten.
template <bool accumulate, bool past_caches>
void store_transposed_block(const float * src, float * dst, int64_t dst_stride) {
    constexpr int64_t kSide = kMostRows;
    for (int64_t j = 0; j < kSide; j += kTileRows) {
        for (int64_t i = 0; i < kSide; i += kTileRows) {
            __m512 rows[16];
#pragma GCC unroll 16
            for (int r = 0; r < 16; ++r) {
                rows[r] = _mm512_loadu_ps(src + (i + r) * kSide + j);
            }
            transpose_16x16(rows);
#pragma GCC unroll 16
            for (int r = 0; r < 16; ++r) {
                float * to = dst + (j + r) * dst_stride + i;
                if constexpr (past_caches) {
                    _mm512_stream_ps(to, rows[r]);
                } else {
                    _mm512_storeu_ps(to, accumulate ? _mm512_add_ps(_mm512_loadu_ps(to), rows[r]) : rows[r]);
                }
            }
        }
    }
}
#endif

}  // namespace

void store_transposed(const float * src, int64_t n_rows, int64_t n_cols, float * dst, int64_t dst_stride,
                      bool accumulate) {
    constexpr int64_t kSide = kMostRows;
#if defined(__AVX512F__)
    if (n_rows == kSide && n_cols == kSide) {
        const bool aligned =
            (reinterpret_cast<uintptr_t>(dst) | static_cast<uintptr_t>(dst_stride) * sizeof(float)) % 64 == 0;
        const auto store = accumulate ? store_transposed_block<true, false>
                           : aligned  ? store_transposed_block<false, true>
                                      : store_transposed_block<false, false>;
        store(src, dst, dst_stride);
        return;
    }
#endif
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
