#include "kernels/cache_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/aligned_buffer.h"
#include "kernels/attention_tile.h"
#include "kernels/half.h"

namespace ggtune::kernels {
namespace {

using namespace detail;
using simd::Vec;

constexpr int64_t kTokensTogether = 16;  // that a unit takes, all heads of theirs that share one of keys
constexpr int64_t kCellTile = 64;
constexpr int kRowsTogether = 3;      // rows (token, head) whose sums stay in registers
constexpr int kVectorsTogether = 4;   // with so many cells' products, or vectors of values
constexpr uint16_t kUnseen = 0xfc00;  // -infinity
static_assert(kCellTile % kWidth == 0 && kWidth % kVectorsTogether == 0);

// Some cells, and what is added to their logits (to the base 2) for each token of the unit.
struct CellTile {
    int64_t n;  // a multiple of kWidth, with the last cell several times, which nobody sees again
    int32_t cells[kCellTile];
    float bias[kTokensTogether][kCellTile];
    int32_t begin[kTokensTogether], end[kTokensTogether];  // of those that a token sees
};

// What is known of a row's softmax so far, logits to the base 2.
struct Row {
    const float * query;
    float * sums;  // weighted, of values: in the result's place
    int64_t token;
    float maximum = -INFINITY;
    float total = 0.0f;  // of 2^(logit - maximum)
};

struct Scratch {
    AlignedBuffer<int32_t> cells;
    AlignedBuffer<Row> rows;
};

bool any_seen(const uint16_t * mask) {
    typedef uint16_t Halves __attribute__((vector_size(32)));
    Halves values;
    std::memcpy(&values, mask, sizeof values);
    const Halves differences = values ^ kUnseen;
    uint64_t words[4];
    std::memcpy(words, &differences, sizeof words);
    return (words[0] | words[1] | words[2] | words[3]) != 0;
}

// Numbers of the cells that at least one of the tokens sees.
int64_t list_seen(const uint16_t * mask, int64_t token_stride, int64_t n_tokens, int64_t n_cells, int32_t * cells) {
    constexpr int64_t kTogether = 16;
    int64_t n = 0;
    const auto add = [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) {
            cells[n] = static_cast<int32_t>(j);
            bool seen = false;
            for (int64_t t = 0; t < n_tokens; ++t) {
                seen = seen || mask[t * token_stride + j] != kUnseen;
            }
            n += seen;
        }
    };
    int64_t j = 0;
    for (; j + kTogether <= n_cells; j += kTogether) {
        bool any = false;
        for (int64_t t = 0; t < n_tokens && !any; ++t) {
            any = any_seen(mask + t * token_stride + j);
        }
        if (any) {
            add(j, j + kTogether);
        }
    }
    add(j, n_cells);
    return n;
}

void fill_tile(const uint16_t * mask, int64_t token_stride, int64_t n_tokens, const int32_t * cells, int64_t n,
               CellTile & tile) {
    tile.n = round_up(n, kWidth);
    std::copy(cells, cells + n, tile.cells);
    std::fill(tile.cells + n, tile.cells + tile.n, cells[n - 1]);
    for (int64_t t = 0; t < n_tokens; ++t) {
        uint16_t values[kCellTile];
        tile.begin[t] = static_cast<int32_t>(tile.n);
        tile.end[t] = 0;
        for (int64_t j = 0; j < n; ++j) {
            values[j] = mask[t * token_stride + cells[j]];
            if (values[j] != kUnseen) {
                tile.begin[t] = std::min(tile.begin[t], static_cast<int32_t>(j));
                tile.end[t] = static_cast<int32_t>(j) + 1;
            }
        }
        std::fill(values + n, values + tile.n, kUnseen);
        for (int64_t j = 0; j < tile.n; j += kWidth) {
            simd::store(tile.bias[t] + j, static_cast<float>(1.0 / kLn2) * load_halves(values + j));
        }
    }
}

// The memory is larger than the caches, and its rows lie apart: all of a tile's are asked for at once.
void prefetch_rows(const uint16_t * rows, int64_t stride, int64_t dim, const int32_t * cells, int64_t n) {
    constexpr int64_t kLine = 32;
    for (int64_t j = 0; j < n; ++j) {
        for (int64_t i = 0; i < dim; i += kLine) {
            __builtin_prefetch(rows + cells[j] * stride + i, 0, 3);
        }
    }
}

// scores = q . k of the cells [begin, end).
template <int rows>
void multiply_keys(const Row * const * row, const uint16_t * keys, int64_t stride, int64_t dim, const int32_t * cells,
                   int64_t begin, int64_t end, float (*scores)[kCellTile]) {
    for (int64_t j = begin; j < end; j += kVectorsTogether) {
        const uint16_t * key[kVectorsTogether];
        for (int c = 0; c < kVectorsTogether; ++c) {
            key[c] = keys + cells[j + c] * stride;
        }
        Vec sums[rows][kVectorsTogether] = {};
        for (int64_t i = 0; i < dim; i += kWidth) {
            Vec query[rows];
            for (int r = 0; r < rows; ++r) {
                query[r] = simd::load(row[r]->query + i);
            }
            for (int c = 0; c < kVectorsTogether; ++c) {
                const Vec part = load_halves(key[c] + i);
                for (int r = 0; r < rows; ++r) {
                    sums[r][c] += query[r] * part;
                }
            }
        }
        for (int r = 0; r < rows; ++r) {
            simd::horizontal_sums(sums[r], scores[r] + j);
        }
    }
}

// sums = shrink * sums + weights . values for `vectors` vectors of a row.
template <int rows, int vectors>
void add_values_at(Row * const * row, const uint16_t * values, int64_t stride, int64_t at, const int32_t * cells,
                   int64_t begin, int64_t end, const float (*weights)[kCellTile], const float * shrink) {
    Vec sums[rows][vectors];
    for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < vectors; ++v) {
            sums[r][v] = shrink[r] * simd::load(row[r]->sums + at + v * kWidth);
        }
    }
    for (int64_t j = begin; j < end; ++j) {
        const uint16_t * value = values + cells[j] * stride + at;
        Vec weight[rows];
        for (int r = 0; r < rows; ++r) {
            weight[r] = simd::splat(weights[r][j]);
        }
        for (int v = 0; v < vectors; ++v) {
            const Vec part = load_halves(value + v * kWidth);
            for (int r = 0; r < rows; ++r) {
                sums[r][v] += weight[r] * part;
            }
        }
    }
    for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < vectors; ++v) {
            simd::store(row[r]->sums + at + v * kWidth, sums[r][v]);
        }
    }
}

template <int rows>
void add_values(Row * const * row, const uint16_t * values, int64_t stride, int64_t dim, const int32_t * cells,
                int64_t begin, int64_t end, const float (*weights)[kCellTile], const float * shrink) {
    int64_t at = 0;
    for (; at + kVectorsTogether * kWidth <= dim; at += kVectorsTogether * kWidth) {
        add_values_at<rows, kVectorsTogether>(row, values, stride, at, cells, begin, end, weights, shrink);
    }
    for (; at < dim; at += kWidth) {
        add_values_at<rows, 1>(row, values, stride, at, cells, begin, end, weights, shrink);
    }
}

struct Attention {
    const CacheAttentionShape & shape;
    const ConstHeads & q;
    int64_t q_sequence_stride;
    const HalfCells & k;
    const HalfCells & v;
    float * out;
    // to the base 2; before and after the soft cap, where there is one
    const float cap_factor = shape.softcap == 0.0f ? 0.0f : shape.scale / shape.softcap;
    const float score_factor =
        static_cast<float>(static_cast<double>(shape.softcap == 0.0f ? shape.scale : shape.softcap) / kLn2);

    int64_t n_parts() const { return (shape.n_tokens + kTokensTogether - 1) / kTokensTogether; }

    void unit(int64_t index) const {
        static thread_local Scratch scratch;
        const int64_t group = shape.n_heads / shape.n_heads_kv;
        const int64_t head_kv = index / n_parts() % shape.n_heads_kv;
        const int64_t sequence = index / n_parts() / shape.n_heads_kv;
        const int64_t first = index % n_parts() * kTokensTogether;
        const int64_t n_tokens = std::min(kTokensTogether, shape.n_tokens - first);
        Row * rows = scratch.rows.reserve(kTokensTogether * group);
        for (int64_t t = 0; t < n_tokens; ++t) {
            for (int64_t h = 0; h < group; ++h) {
                const int64_t head = head_kv * group + h;
                const float * query =
                    q.data + sequence * q_sequence_stride + (first + t) * q.token_stride + head * q.head_stride;
                float * sums =
                    out + ((sequence * shape.n_tokens + first + t) * shape.n_heads + head) * shape.head_dim_v;
                std::fill(sums, sums + shape.head_dim_v, 0.0f);
                rows[t * group + h] = {query, sums, t};
            }
        }
        const int64_t n_rows = n_tokens * group;
        const uint16_t * mask = shape.mask + sequence * shape.mask_sequence_stride + first * shape.mask_token_stride;
        int32_t * cells = scratch.cells.reserve(shape.n_cells + 1);
        const int64_t n_cells = list_seen(mask, shape.mask_token_stride, n_tokens, shape.n_cells, cells);
        const uint16_t * keys = k.data + sequence * k.sequence_stride + head_kv * k.head_stride;
        const uint16_t * values = v.data + sequence * v.sequence_stride + head_kv * v.head_stride;
        CellTile tile;
        for (int64_t at = 0; at < n_cells; at += kCellTile) {
            const int64_t n = std::min(kCellTile, n_cells - at);
            prefetch_rows(keys, k.cell_stride, shape.head_dim, cells + at, n);
            prefetch_rows(values, v.cell_stride, shape.head_dim_v, cells + at, n);
            fill_tile(mask, shape.mask_token_stride, n_tokens, cells + at, n, tile);
            int64_t r = 0;
            for (; r + kRowsTogether <= n_rows; r += kRowsTogether) {
                add_tile<kRowsTogether>(tile, keys, values, rows + r);
            }
            if (n_rows - r == 2) {
                add_tile<2>(tile, keys, values, rows + r);
            } else if (n_rows - r == 1) {
                add_tile<1>(tile, keys, values, rows + r);
            }
        }
        for (int64_t r = 0; r < n_rows; ++r) {
            finish(rows[r], head_kv * group + r % group);
        }
    }

    template <int n>
    void add_tile(const CellTile & tile, const uint16_t * keys, const uint16_t * values, Row * rows) const {
        int64_t begin = tile.n;
        int64_t end = 0;
        Row * row[n];
        for (int r = 0; r < n; ++r) {
            row[r] = rows + r;
            begin = std::min<int64_t>(begin, tile.begin[rows[r].token]);
            end = std::max<int64_t>(end, tile.end[rows[r].token]);
        }
        if (begin >= end) {
            return;
        }
        begin = begin / kWidth * kWidth;
        end = round_up(end, kWidth);
        float scores[n][kCellTile];
        float shrink[n];
        multiply_keys<n>(row, keys, k.cell_stride, shape.head_dim, tile.cells, begin, end, scores);
        for (int r = 0; r < n; ++r) {
            shrink[r] = softmax_step(tile, begin, end, *row[r], scores[r]);
        }
        add_values<n>(row, values, v.cell_stride, shape.head_dim_v, tile.cells, begin, end, scores, shrink);
    }

    // Scores become weights relative to the row's new maximum; what earlier sums are to be multiplied by.
    float softmax_step(const CellTile & tile, int64_t begin, int64_t end, Row & row, float * scores) const {
        if (tile.begin[row.token] >= tile.end[row.token]) {  // beside one that sees some of them
            std::fill(scores + begin, scores + end, 0.0f);
            return 1.0f;
        }
        const float * bias = tile.bias[row.token];
        Vec best = simd::splat(-INFINITY);
        for (int64_t j = begin; j < end; j += kWidth) {
            Vec score = simd::load(scores + j);
            if (shape.softcap != 0.0f) {
                score = simd::tanh(cap_factor * score);
            }
            score = score_factor * score + simd::load(bias + j);
            simd::store(scores + j, score);
            best = simd::max(score, best);
        }
        const float maximum = std::max(row.maximum, simd::horizontal_max(best));
        Vec sum = {};
        for (int64_t j = begin; j < end; j += kWidth) {
            const Vec weight = detail::exp2(simd::load(scores + j) - maximum);
            sum += weight;
            simd::store(scores + j, weight);
        }
        const float shrink = std::exp2(row.maximum - maximum);
        row.total = shrink * row.total + lane_sum(sum);
        row.maximum = maximum;
        return shrink;
    }

    void finish(const Row & row, int64_t head) const {
        float maximum = row.maximum;
        float total = row.total;
        const float shrink = shape.sinks != nullptr ? add_sink(shape.sinks[head], maximum, total) : 1.0f;
        const float factor = total == 0.0f ? 0.0f : shrink / total;
        for (int64_t i = 0; i < shape.head_dim_v; i += kWidth) {
            simd::store(row.sums + i, factor * simd::load(row.sums + i));
        }
    }
};

}  // namespace

int64_t cache_attention_units(const CacheAttentionShape & shape) {
    return shape.n_sequences * shape.n_heads_kv * ((shape.n_tokens + kTokensTogether - 1) / kTokensTogether);
}

void cache_attention(const CacheAttentionShape & shape, const ConstHeads & q, int64_t q_sequence_stride,
                     const HalfCells & k, const HalfCells & v, float * out, Range units) {
    const Attention attention = {shape, q, q_sequence_stride, k, v, out};
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
        attention.unit(unit);
    }
}

}  // namespace ggtune::kernels
