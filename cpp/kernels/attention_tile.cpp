#include "kernels/attention_tile.h"

#include <cmath>

namespace ggtune::kernels::detail {

bool TileMask::build(const AttentionShape & shape, Range queries, Range keys) {
    n_queries = queries.size();
    n_keys = keys.size();
    full = true;
    bool any = false;
    for (int64_t i = 0; i < n_queries; ++i) {
        const int64_t t = queries.begin + i;
        begin[i] = static_cast<int32_t>(std::clamp<int64_t>(shape.first_key[t] - keys.begin, 0, n_keys));
        end[i] = static_cast<int32_t>(std::clamp<int64_t>(shape.end_key[t] - keys.begin, 0, n_keys));
        if (begin[i] >= end[i]) {
            begin[i] = end[i] = 0;
        }
        any = any || end[i] > 0;
        full = full && end[i] - begin[i] == n_keys;
    }
    if (!any) {
        return false;
    }
    const int64_t n_key_blocks = (n_keys + kBlockRows - 1) / kBlockRows;
    std::fill(key_block_begin, key_block_begin + n_key_blocks, static_cast<int32_t>(full ? 0 : n_queries));
    std::fill(key_block_end, key_block_end + n_key_blocks, static_cast<int32_t>(full ? n_queries : 0));
    for (int64_t first = 0; first < n_queries; first += kBlockRows) {
        int32_t lowest = static_cast<int32_t>(n_keys);
        int32_t highest = 0;
        for (int64_t i = first; i < std::min(first + kBlockRows, n_queries); ++i) {
            if (begin[i] < end[i]) {
                lowest = std::min(lowest, begin[i]);
                highest = std::max(highest, end[i]);
            }
            for (int64_t b = begin[i] / kBlockRows; !full && b * kBlockRows < end[i]; ++b) {
                key_block_begin[b] = std::min(key_block_begin[b], static_cast<int32_t>(i));
                key_block_end[b] = static_cast<int32_t>(i) + 1;
            }
        }
        block_begin[first / kBlockRows] = std::min(lowest, highest);
        block_end[first / kBlockRows] = highest;
    }
    return true;
}

void copy_rows(const float * source, int64_t stride, int64_t n, int64_t dim, float * rows, int64_t padded_dim) {
    for (int64_t i = 0; i < n; ++i) {
        prefetch_next_head(source, dim);
        std::memcpy(rows, source, static_cast<size_t>(dim) * sizeof(float));
        std::fill(rows + dim, rows + padded_dim, 0.0f);
        source += stride;
        rows += padded_dim;
    }
}

void pack_transposed(const float * source, int64_t stride, int64_t n, int64_t dim, float * panels) {
    for (int64_t row = 0; row < n; row += kPanelCols) {
        const int64_t n_rows = std::min(kPanelCols, n - row);
        for (int64_t i = row; i < row + n_rows; ++i) {
            prefetch_next_head(source + i * stride, dim);
        }
        transpose_copy(source + row * stride, stride, n_rows, dim, panels, kPanelCols);
        for (int64_t i = 0; i < dim && n_rows < kPanelCols; ++i) {
            std::fill(panels + i * kPanelCols + n_rows, panels + i * kPanelCols + round_up(n_rows, kWidth), 0.0f);
        }
        panels += kPanelCols * dim;
    }
}

void score_product(const TileMask & mask, const float * queries, const float * key_panels, int64_t dim, float alpha,
                   float * scores) {
    const int64_t padded_dim = round_up(dim, kWidth);
    for (int64_t panel = 0; panel < mask.n_keys; panel += kPanelCols) {
        for (int64_t i = 0; i < mask.n_queries; i += kBlockRows) {
            const int64_t begin = std::max(panel, mask.first_column(i));
            const int64_t end = std::min(panel + kPanelCols, mask.end_column(i));
            if (begin >= end) {
                continue;
            }
            const int64_t n_rows = std::min(kBlockRows, mask.n_queries - i);
            block_kernel(static_cast<int>((end - begin) / kWidth), static_cast<int>(n_rows), false)(
                dim, queries + i * padded_dim, padded_dim, 1, key_panels + panel * dim + (begin - panel), kPanelCols,
                {scores + i * kScoreStride + begin, kScoreStride, 1, end - begin, alpha, 0.0f});
        }
    }
}

void multiply_keys(const TileMask & mask, const float * weights, const float * rows, int64_t dim, float alpha,
                   float * result, int64_t result_stride) {
    const int64_t padded_dim = round_up(dim, kWidth);
    for (int64_t j = 0; j < dim; j += kPanelCols) {
        for (int64_t i = 0; i < mask.n_queries; i += kBlockRows) {
            const int64_t begin = mask.block_begin[i / kBlockRows];
            const int64_t n_keys = mask.block_end[i / kBlockRows] - begin;
            if (n_keys <= 0) {
                continue;
            }
            const int64_t n_rows = std::min(kBlockRows, mask.n_queries - i);
            block_kernel(static_cast<int>(panel_width(dim, j) / kWidth), static_cast<int>(n_rows), false)(
                n_keys, weights + i * kScoreStride + begin, kScoreStride, 1, rows + begin * padded_dim + j, padded_dim,
                {result + i * result_stride + j, result_stride, 1, std::min(kPanelCols, dim - j), alpha, 1.0f});
        }
    }
}

void multiply_queries(const TileMask & mask, const float * weights, const float * rows, int64_t dim, float alpha,
                      float * result) {
    const int64_t padded_dim = round_up(dim, kWidth);
    for (int64_t j = 0; j < dim; j += kPanelCols) {
        const int64_t width = panel_width(dim, j);
        for (int64_t key = 0; key < mask.n_keys; key += kBlockRows) {
            const int64_t begin = mask.key_block_begin[key / kBlockRows];
            const int64_t n_queries = mask.key_block_end[key / kBlockRows] - begin;
            if (n_queries <= 0) {
                continue;
            }
            const int64_t n_rows = std::min(kBlockRows, mask.n_keys - key);
            block_kernel(static_cast<int>(width / kWidth), static_cast<int>(n_rows), false)(
                n_queries, weights + begin * kScoreStride + key, 1, kScoreStride, rows + begin * padded_dim + j,
                padded_dim, {result + key * padded_dim + j, padded_dim, 1, width, alpha, 1.0f});
        }
    }
}

void cap_and_mask(const AttentionShape & shape, const TileMask & mask, float * scores) {
    const float cap = shape.softcap;
    const auto factor = static_cast<float>(static_cast<double>(cap) * shape.post_scale / kLn2);
    if (cap == 0.0f && mask.full && mask.n_keys % kWidth == 0) {
        return;
    }
    for (int64_t i = 0; i < mask.n_queries; ++i) {
        float * row = scores + i * kScoreStride;
        const int64_t first = mask.first_column(i);
        const int64_t end = mask.end_column(i);
        for (int64_t j = first; cap != 0.0f && j < end; j += kWidth) {
            simd::store(row + j, factor * simd::tanh(simd::load(row + j) / cap));
        }
        std::fill(row + first, row + std::max<int64_t>(first, mask.begin[i]), -INFINITY);
        std::fill(row + std::max<int64_t>(first, mask.end[i]), row + end, -INFINITY);
    }
}

}  // namespace ggtune::kernels::detail
