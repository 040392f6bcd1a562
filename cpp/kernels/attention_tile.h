// What the forward and the backward of attention share: tiles of queries by keys, their masks and products. Private to
// cpp/kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/aligned_buffer.h"
#include "kernels/attention.h"
#include "kernels/attention_work.h"
#include "kernels/blocked_product.h"
#include "kernels/microkernel.h"
#include "kernels/partition.h"
#include "kernels/simd.h"
#include "kernels/transpose.h"
#include "kernels/vector_math.h"

namespace ggtune::kernels::detail {

// Rows of a register block, whatever its width.
inline constexpr int64_t kBlockRows = max_block_rows(simd::kPanelVectors);
inline constexpr int64_t kQueryTile = kShortRun;
inline constexpr int64_t kKeyTile = 192;
// Row stride of a tile of scores. Not a power of two: its columns are read, too.
inline constexpr int64_t kScoreStride = kKeyTile + 16;
inline constexpr int64_t kQueryBlocks = kQueryTile / kBlockRows;
inline constexpr int64_t kKeyBlocks = (kKeyTile + kBlockRows - 1) / kBlockRows;
static_assert(kQueryTile % kBlockRows == 0 && kKeyTile % kPanelCols == 0);

inline constexpr double kLn2 = 0.69314718055994530942;

// Which keys of a tile its queries see, by row and by register block; all relative to the tile.
struct TileMask {
    int64_t n_queries;
    int64_t n_keys;
    bool full;  // every query sees every key
    int32_t begin[kQueryTile], end[kQueryTile];
    int32_t block_begin[kQueryBlocks], block_end[kQueryBlocks];      // keys that a block of queries sees
    int32_t key_block_begin[kKeyBlocks], key_block_end[kKeyBlocks];  // queries that see a block of keys

    // False where no query sees a key.
    bool build(const AttentionShape & shape, Range queries, Range keys);

    // Columns of a row that hold scores: the block's keys, widened to whole vectors.
    int64_t first_column(int64_t row) const { return block_begin[row / kBlockRows] / kWidth * kWidth; }
    int64_t end_column(int64_t row) const { return round_up(block_end[row / kBlockRows], kWidth); }
};

// Heads lie side by side in a token's row and the rows far apart: the hardware does not see what comes next.
inline void prefetch_next_head(const float * row, int64_t dim) {
    constexpr int64_t kLine = 16;
    for (int64_t i = dim; i < 2 * dim; i += kLine) {
        __builtin_prefetch(row + i, 0, 2);
    }
}

// n rows of dim floats to rows of `padded_dim` (zeros after dim).
void copy_rows(const float * source, int64_t stride, int64_t n, int64_t dim, float * rows, int64_t padded_dim);

// n rows of dim floats, transposed, to panels of kPanelCols rows: element (row, i) of a panel at i * kPanelCols + row.
// Takes round_up(n, kPanelCols) * dim floats, zeros up to a multiple of kWidth rows.
void pack_transposed(const float * source, int64_t stride, int64_t n, int64_t dim, float * panels);

// scores = alpha * queries * keys^T where the mask is open; queries [n_queries][padded_dim], keys as pack_transposed().
void score_product(const TileMask & mask, const float * queries, const float * key_panels, int64_t dim, float alpha,
                   float * scores);

// result [n_queries] += alpha * weights * rows, rows [n_keys][padded_dim]; weights are scores.
void multiply_keys(const TileMask & mask, const float * weights, const float * rows, int64_t dim, float alpha,
                   float * result, int64_t result_stride);

// result [n_keys][padded_dim] += alpha * weights^T * rows, rows [n_queries][padded_dim]. Weights are read where a block
// of keys is seen by some query of the tile.
void multiply_queries(const TileMask & mask, const float * weights, const float * rows, int64_t dim, float alpha,
                      float * result);

// Logits are held to the base 2 in the tiles: this is what the product q . k is multiplied by.
inline float product_factor(const AttentionShape & shape) {
    return static_cast<float>(shape.softcap == 0.0f ? static_cast<double>(shape.pre_scale) * shape.post_scale / kLn2
                                                    : static_cast<double>(shape.pre_scale));
}

// Soft cap and post_scale / ln 2 on the scores, where there is a soft cap; then -infinity beyond the mask.
void cap_and_mask(const AttentionShape & shape, const TileMask & mask, float * scores);

// 2^x for x <= 127, 0 below -125, relative error 1e-7; NaN stays NaN. Polynomial: minimax fit to [-0.5, 0.5].
inline simd::Vec exp2(simd::Vec x) {
    using simd::Vec;
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    constexpr float kRound = 12582912.0f;
    static constexpr float kExp2[] = {1.000000001f,    0.6931472057f,   0.2402264689f,   0.05550328777f,
                                      0.009618488957f, 0.001339993122f, 0.0001534581196f};
    const Vec shifted = x + kRound;
    const Vec mantissa = simd::polynomial(kExp2, x - (shifted - kRound));
    return simd::select(x < simd::splat(-125.0f), simd::splat(0.0f), simd::times_exp2(mantissa, shifted));
}

// Sum of the lanes, pairwise.
inline float lane_sum(simd::Vec v) {
    Vec4 parts[kWidth / 4];
    std::memcpy(parts, &v, sizeof v);
    for (int64_t n = kWidth / 8; n > 0; n /= 2) {
        for (int64_t i = 0; i < n; ++i) {
            parts[i] += parts[i + n];
        }
    }
    return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

// A sink comes last in a row's softmax, as one more logit, which may be the largest: what is summed up so far shrinks
// to the returned share. maximum: of the logits, to the base 2; total: of 2^(logit - maximum).
inline float add_sink(float sink_logit, float & maximum, float & total) {
    const auto sink = static_cast<float>(sink_logit / kLn2);
    const float largest = std::max(maximum, sink);
    const float shrink = std::exp2(maximum - largest);
    total = shrink * total + std::exp2(sink - largest);
    maximum = largest;
    return shrink;
}

// The end of a row's softmax: what its weighted sums are to be multiplied by, and its log-sum-exp.
struct RowEnd {
    float factor;
    float lse;
};

// maximum, total: as of add_sink().
inline RowEnd end_row(const AttentionShape & shape, int64_t head, float maximum, float total) {
    const float shrink = shape.sinks != nullptr ? add_sink(shape.sinks[head], maximum, total) : 1.0f;
    return {shrink / total, static_cast<float>(static_cast<double>(maximum) * kLn2 + std::log(total))};
}

}  // namespace ggtune::kernels::detail
