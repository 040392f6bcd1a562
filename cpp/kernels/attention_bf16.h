// What the forward and the backward of attention on bf16 tiles (tile.h) share: blocks of 32 queries by 32 keys, packed
// operands and the functions that go over the scores. Private to cpp/kernels.
//
// A block's 32 queries or keys are two panels of tile.h. A run of tokens is cut into blocks from its begin.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "kernels/attention.h"
#include "kernels/attention_tile.h"
#include "kernels/bf16.h"
#include "kernels/partition.h"
#include "kernels/simd.h"
#include "kernels/tile.h"

namespace ggtune::kernels::detail {

// Queries or keys of a block.
inline constexpr int64_t kBlock = kMostPanels * kTileRows;
static_assert(kBlock == kTileDepth);

using AlignedBf16 = AlignedBuffer<Bf16>;

inline int64_t block_count(int64_t n) {
    return (n + kBlock - 1) / kBlock;
}

// Panels of 16 values, rounded up to whole blocks.
inline int64_t padded_to_block(int64_t n) {
    return block_count(n) * kBlock;
}

// Row begin of tokens of a head.
inline const float * head_rows(const ConstHeads & heads, int64_t token, int64_t head) {
    return heads.data + token * heads.token_stride + head * heads.head_stride;
}

inline float * head_rows(const Heads & heads, int64_t token, int64_t head) {
    return heads.data + token * heads.token_stride + head * heads.head_stride;
}

// Rows of a head that are needed soon. They lie far apart: the hardware does not see what comes next.
struct UpcomingRows {
    const float * data;
    int64_t stride, n, dim;

    void fetch(int64_t i) const {
        constexpr int64_t kLine = 16;
        for (int64_t j = 0; j < dim && i < n; j += kLine) {
            __builtin_prefetch(data + i * stride + j, 0, 2);
        }
    }
    void fetch_to_write(int64_t i) const {
        constexpr int64_t kLine = 16;
        for (int64_t j = 0; j < dim && i < n; j += kLine) {
            __builtin_prefetch(data + i * stride + j, 1, 3);
        }
    }
};

// Two panels of A: scale * the n <= 32 rows of X [n, dim], then rows of zeros. Takes kBlock * padded_to_block(dim).
void pack_block_rows(const float * x, int64_t stride, int64_t n, int64_t dim, float scale, Bf16 * panels);

// Two panels of B: their columns are the n <= 32 rows of X.
void pack_block_columns(const float * x, int64_t stride, int64_t n, int64_t dim, Bf16 * panels);

// One tile of every panel of B that has the n <= 32 rows of X for rows: 16 columns of X a panel, padded_to_block(dim) /
// 16 panels.
void pack_block_pairs(const float * x, int64_t stride, int64_t n, int64_t dim, Bf16 * panels, int64_t panel_stride);

// One tile of every panel of A that has the columns of X for rows, X as two panels of A from pack_block_rows():
// padded_to_block(dim) / 16 panels.
void transpose_block(const Bf16 * rows, int64_t dim, Bf16 * panels, int64_t panel_stride);

// Which keys of a block its queries see, relative to the block.
struct BlockMask {
    bool full;  // every query sees every key
    int32_t begin[kBlock], end[kBlock];

    // `queries` at most kBlock of them; the block of keys begins at `first_key`.
    void build(const AttentionShape & shape, Range queries, int64_t first_key);
};

// A row of a block in registers.
struct BlockRow {
    static constexpr int kVectors = kBlock / simd::kWidth;
    simd::Vec v[kVectors];
};

inline BlockRow load_row(const float * from) {
    BlockRow row;
    for (int i = 0; i < BlockRow::kVectors; ++i) {
        row.v[i] = simd::load(from + i * simd::kWidth);
    }
    return row;
}

inline void store_row(float * to, const BlockRow & row) {
    for (int i = 0; i < BlockRow::kVectors; ++i) {
        simd::store(to + i * simd::kWidth, row.v[i]);
    }
}

inline void round_row(const BlockRow & row, Bf16 * to) {
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
    const __m512bh rounded = _mm512_cvtne2ps_pbh((__m512)row.v[1], (__m512)row.v[0]);
    std::memcpy(to, &rounded, sizeof rounded);
#else
    float values[kBlock];
    store_row(values, row);
    round_to_bf16(values, to);
#endif
}

// Two consecutive rows as a row of pairs of two panels of B.
inline void round_pairs(const BlockRow & even, const BlockRow & odd, Bf16 * first, Bf16 * second) {
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
    alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i order = _mm512_load_si512(kOrder);
    const __m512i low = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd.v[0], (__m512)even.v[0]);
    const __m512i high = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd.v[1], (__m512)even.v[1]);
    _mm512_storeu_si512(first, _mm512_permutexvar_epi16(order, low));
    _mm512_storeu_si512(second, _mm512_permutexvar_epi16(order, high));
#else
    Bf16 rounded[2][kBlock];
    round_row(even, rounded[0]);
    round_row(odd, rounded[1]);
    for (int64_t i = 0; i < kTileRows; ++i) {
        first[2 * i] = rounded[0][i];
        first[2 * i + 1] = rounded[1][i];
        second[2 * i] = rounded[0][kTileRows + i];
        second[2 * i + 1] = rounded[1][kTileRows + i];
    }
#endif
}

// One instruction where simd::max() takes two; the second one where one is NaN.
inline simd::Vec larger(simd::Vec a, simd::Vec b) {
#if defined(__AVX512F__)
    return (simd::Vec)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);  // unmasked, GCC 12 warns of its own header
#else
    return simd::max(a, b);
#endif
}

// All ones in the lanes `first` to first + kWidth - 1 that lie in [begin, end).
inline simd::IntVec lanes_within(int32_t first, int32_t begin, int32_t end) {
    static constexpr int32_t kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    simd::IntVec lane;
    std::memcpy(&lane, kLanes, sizeof lane);
    return (lane >= begin - first) & (lane < end - first);
}

// 2^x for x <= 127, relative error 3e-6, which disappears in the rounding to bf16; exactly 0 for -127 and less, NaN
// stays NaN. Polynomial: minimax fit to [-0.5, 0.5] with 1 for x = 0.
inline simd::Vec short_exp2(simd::Vec x) {
    using simd::Vec;
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    constexpr float kRound = 12582912.0f;
    static constexpr float kExp2[] = {1.0f, 0.6931241933f, 0.2402409861f, 0.05590642541f, 0.009582853245f};
    x = larger(simd::splat(-127.0f), x);
    const Vec shifted = x + kRound;
    const Vec mantissa = simd::polynomial(kExp2, x - (shifted - kRound));
    return simd::times_exp2(mantissa, shifted);
}

}  // namespace ggtune::kernels::detail
