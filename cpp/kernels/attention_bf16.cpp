#include "kernels/attention_bf16.h"

#include <algorithm>

#include "kernels/tile_pack.h"
#include "kernels/transpose.h"

namespace ggtune::kernels::detail {
namespace {

// The first n < kBlock values, then zeros.
BlockRow load_partial_row(const float * from, int64_t n) {
    float values[kBlock] = {};
    std::memcpy(values, from, static_cast<size_t>(n) * sizeof(float));
    return load_row(values);
}

BlockRow load_columns(const float * row, int64_t column, int64_t dim) {
    return column + kBlock <= dim ? load_row(row + column) : load_partial_row(row + column, dim - column);
}

}  // namespace

void pack_block_rows(const float * x, int64_t stride, int64_t n, int64_t dim, float scale, Bf16 * panels) {
    for (int64_t i = 0; i < kBlock; i += kTileRows) {
        pack_rows(x + i * stride, stride, std::clamp<int64_t>(n - i, 0, kTileRows), dim, scale,
                  panels + i / kTileRows * tile_count(dim) * kTileValues);
    }
}

void pack_block_columns(const float * x, int64_t stride, int64_t n, int64_t dim, Bf16 * panels) {
    for (int64_t i = 0; i < kBlock; i += kTileRows) {
        pack_columns(x + i * stride, stride, std::clamp<int64_t>(n - i, 0, kTileRows), dim, 1.0f,
                     panels + i / kTileRows * tile_count(dim) * kTileValues);
    }
}

void pack_block_pairs(const float * x, int64_t stride, int64_t n, int64_t dim, Bf16 * panels, int64_t panel_stride) {
    for (int64_t column = 0; column < dim; column += kBlock) {
        for (int64_t i = 0; i < kBlock; i += 2) {
            const float * row = x + i * stride;
            const BlockRow even = i < n ? load_columns(row, column, dim) : BlockRow{};
            const BlockRow odd = i + 1 < n ? load_columns(row + stride, column, dim) : BlockRow{};
            round_pairs(even, odd, panels + i / 2 * kTileDepth, panels + panel_stride + i / 2 * kTileDepth);
        }
        panels += 2 * panel_stride;
    }
}

void transpose_block(const Bf16 * rows, int64_t dim, Bf16 * panels, int64_t panel_stride) {
    const int64_t depth = tile_count(dim);
    alignas(64) Bf16 pairs[2][kTileValues];
    for (int64_t k = 0; k < depth; ++k) {
        for (int64_t i = 0; i < kBlock; i += 2) {
            const Bf16 * even = rows + (i / kTileRows * depth + k) * kTileValues + i % kTileRows * kTileDepth;
            interleave(even, even + kTileDepth, pairs[0] + i / 2 * kTileDepth, pairs[1] + i / 2 * kTileDepth);
        }
        // a pair moves as one float
        for (const auto & tile : pairs) {
            transpose_copy(reinterpret_cast<const float *>(tile), kTilePairs, kTilePairs, kTilePairs,
                           reinterpret_cast<float *>(panels), kTilePairs);
            panels += panel_stride;
        }
    }
}

void BlockMask::build(const AttentionShape & shape, Range queries, int64_t first_key) {
    full = queries.size() == kBlock;
    for (int64_t i = 0; i < kBlock; ++i) {
        const int64_t t = queries.begin + i;
        begin[i] = end[i] = 0;
        if (t < queries.end) {
            begin[i] = static_cast<int32_t>(std::clamp<int64_t>(shape.first_key[t] - first_key, 0, kBlock));
            end[i] = static_cast<int32_t>(std::clamp<int64_t>(shape.end_key[t] - first_key, 0, kBlock));
        }
        full = full && begin[i] == 0 && end[i] == kBlock;
    }
}

}  // namespace ggtune::kernels::detail
