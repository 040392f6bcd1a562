#include "kernels/tile_pack.h"

#include <algorithm>
#include <cstring>

#include "kernels/bf16.h"
#include "kernels/dequantize.h"
#include "kernels/int8_unpack.h"
#include "kernels/transpose.h"

#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

namespace ggtune::kernels::detail {
namespace {

// Values that are unpacked at a time: a multiple of every type's block.
constexpr int64_t kPiece = 256;
constexpr int64_t kSmallestSubBlock = 16;

// 32 values of one or two sub-blocks.
template <int64_t sub_block>
inline void scale_bytes(const uint8_t * values, const float * scales, const float * mins, int32_t offset, Bf16 * to) {
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
    const auto scaled = [&](int64_t i) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(values + i));
        const __m512 integers = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
        const float scale = scales[i / sub_block];
        const float start = scale * static_cast<float>(offset) + mins[i / sub_block];
        return _mm512_fmsub_ps(_mm512_set1_ps(scale), integers, _mm512_set1_ps(start));
    };
    const __m512bh rounded = _mm512_cvtne2ps_pbh(scaled(16), scaled(0));
    std::memcpy(to, &rounded, sizeof rounded);
#else
    float scaled[kTileDepth];
    for (int64_t i = 0; i < kTileDepth; i += sub_block) {
        const float scale = scales[i / sub_block];
        const float min = mins[i / sub_block];
#pragma GCC unroll 1  // unrolled early, 16 values are no longer seen as a loop to vectorize
        for (int64_t j = i; j < i + sub_block; ++j) {
            scaled[j] = scale * static_cast<float>(values[j] - offset) - min;
        }
    }
    round_to_bf16(scaled, to);
#endif
}

void unpack_bytes(const Int8Format & format, ggml_type type, const uint8_t * src, int64_t n, Bf16 * to,
                  int64_t stride) {
    uint8_t values[kPiece];
    float scales[kPiece / kSmallestSubBlock];
    float mins[kPiece / kSmallestSubBlock] = {};
    const auto scale = format.sub_block == 16 ? scale_bytes<16> : scale_bytes<32>;
    for (int64_t i = 0; i < n; i += kPiece) {
        const int64_t piece = std::min(kPiece, n - i);
        format.unpack(src, piece, values, scales, mins);
        for (int64_t j = 0; j < piece; j += kTileDepth, to += stride) {
            scale(values + j, scales + j / format.sub_block, mins + j / format.sub_block, format.offset, to);
        }
        src += ggml_row_size(type, piece);
    }
}

void round_row(const float * x, int64_t n, Bf16 * to, int64_t stride) {
    int64_t i = 0;
    for (; i + kTileDepth <= n; i += kTileDepth, to += stride) {
        round_to_bf16(x + i, to);
    }
    if (i < n) {
        float rest[kTileDepth] = {};
        std::memcpy(rest, x + i, static_cast<size_t>(n - i) * sizeof(float));
        round_to_bf16(rest, to);
    }
}

}  // namespace

void unpack_bf16(ggml_type type, const void * src, int64_t n, Bf16 * to, int64_t stride) {
    if (const Int8Format * format = int8_format(type)) {
        unpack_bytes(*format, type, static_cast<const uint8_t *>(src), n, to, stride);
        return;
    }
    if (type == GGML_TYPE_F32) {
        round_row(static_cast<const float *>(src), n, to, stride);
        return;
    }
    float values[kPiece];
    const auto * bytes = static_cast<const char *>(src);
    for (int64_t i = 0; i < n; i += kPiece) {
        const int64_t piece = std::min(kPiece, n - i);
        dequantize_row(type, bytes, values, piece);
        round_row(values, piece, to, stride);
        bytes += ggml_row_size(type, piece);
        to += kPiece / kTileDepth * stride;
    }
}

void pack_rows(const float * x, int64_t x_row_stride, int64_t n_rows, int64_t depth, Bf16 * panel) {
    for (int64_t i = 0; i < n_rows; ++i) {
        round_row(x + i * x_row_stride, depth, panel + i * kTileDepth, kTileValues);
    }
    for (int64_t k = 0; k < tile_count(depth) && n_rows < kTileRows; ++k) {
        std::memset(panel + k * kTileValues + n_rows * kTileDepth, 0,
                    static_cast<size_t>((kTileRows - n_rows) * kTileDepth) * sizeof(Bf16));
    }
}

void pack_columns(const float * x, int64_t x_row_stride, int64_t n_rows, int64_t depth, Bf16 * panel) {
    // pairs are moved as one float
    float rows[kTileRows][kTilePairs];
    static_assert(sizeof rows == kTileValues * sizeof(Bf16));
    for (int64_t k = 0; k < depth; k += kTileDepth, panel += kTileValues) {
        for (int64_t i = 0; i < n_rows; ++i) {
            round_row(x + i * x_row_stride + k, std::min(kTileDepth, depth - k), reinterpret_cast<Bf16 *>(rows[i]), 0);
        }
        if (n_rows < kTileRows) {
            std::memset(rows[n_rows], 0, static_cast<size_t>(kTileRows - n_rows) * sizeof rows[0]);
        }
        transpose_copy(rows[0], kTilePairs, kTileRows, kTilePairs, reinterpret_cast<float *>(panel), kTileRows);
    }
}

void interleave(const Bf16 * even, const Bf16 * odd, int64_t depth, Bf16 * panel, int64_t panel_stride) {
    Bf16 * first = panel + depth / kTileDepth * kTileValues + depth % kTileDepth / 2 * kTileDepth;
    Bf16 * second = first + panel_stride;
#if defined(__AVX512BW__)
    const __m512i low = _mm512_loadu_si512(even);
    const __m512i high = _mm512_loadu_si512(odd);
    const auto order = [](int start) {
        alignas(64) uint16_t indices[32];
        for (int i = 0; i < 16; ++i) {
            indices[2 * i] = static_cast<uint16_t>(start + i);
            indices[2 * i + 1] = static_cast<uint16_t>(32 + start + i);
        }
        return _mm512_load_si512(indices);
    };
    static const __m512i low_half = order(0), high_half = order(16);
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
