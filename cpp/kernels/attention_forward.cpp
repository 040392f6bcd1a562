#include <cmath>

#include "kernels/attention.h"
#include "kernels/attention_tile.h"

namespace ggtune::kernels {
namespace {

using namespace detail;

// Heads that share a packed tile of keys, at most: bounds the scratch.
constexpr int64_t kHeadsTogether = 4;

// A query tile of one head, and what is known of its softmax so far (logits to the base 2).
struct QueryState {
    float * queries;  // [kQueryTile][padded head_dim]
    float * sums;     // [kQueryTile][padded head_dim_v] weighted sums of values
    float maximum[kQueryTile];
    float total[kQueryTile];  // of 2^(logit - maximum)
};

struct Scratch {
    AlignedFloats queries, sums, key_panels, values, scores;
};

float row_maximum(const float * row, int64_t begin, int64_t end) {
    simd::Vec best = simd::load(row + begin);
    for (int64_t j = begin + kWidth; j < end; j += kWidth) {
        best = simd::max(best, simd::load(row + j));
    }
    return simd::horizontal_max(best);
}

// Scores become weights relative to the row's new maximum; what was summed so far is brought down to that.
void softmax_step(const TileMask & mask, float * scores, int64_t padded_dim_v, QueryState & state) {
    for (int64_t i = 0; i < mask.n_queries; ++i) {
        float * row = scores + i * kScoreStride;
        const int64_t begin = mask.first_column(i);
        const int64_t end = mask.end_column(i);
        if (mask.begin[i] == mask.end[i]) {
            std::fill(row + begin, row + end, 0.0f);
            continue;
        }
        const float old_maximum = state.maximum[i];
        const float maximum = std::max(old_maximum, row_maximum(row, begin, end));
        simd::Vec sum = {};
        for (int64_t j = begin; j < end; j += kWidth) {
            const simd::Vec weight = exp2(simd::load(row + j) - maximum);
            sum += weight;
            simd::store(row + j, weight);
        }
        if (maximum != old_maximum && state.total[i] != 0.0f) {
            const float shrink = std::exp2(old_maximum - maximum);
            state.total[i] *= shrink;
            float * sums = state.sums + i * padded_dim_v;
            for (int64_t j = 0; j < padded_dim_v; j += kWidth) {
                simd::store(sums + j, shrink * simd::load(sums + j));
            }
        }
        state.maximum[i] = maximum;
        state.total[i] += lane_sum(sum);
    }
}

struct Forward {
    const AttentionShape & shape;
    const ConstHeads & q;
    const ConstHeads & k;
    const ConstHeads & v;
    const Heads & out;
    float * lse;

    // `heads` share one head of keys and values; at most kHeadsTogether of them.
    void query_tile(Range heads, Range queries) const {
        static thread_local Scratch scratch;
        const int64_t head_kv = heads.begin / (shape.n_heads / shape.n_heads_kv);
        const int64_t padded_dim = round_up(shape.head_dim, kWidth);
        const int64_t padded_dim_v = round_up(shape.head_dim_v, kWidth);
        float * query_rows = scratch.queries.reserve(kHeadsTogether * kQueryTile * padded_dim);
        float * sums = scratch.sums.reserve(kHeadsTogether * kQueryTile * padded_dim_v);
        float * key_panels = scratch.key_panels.reserve(kKeyTile * shape.head_dim);
        float * values = scratch.values.reserve(kKeyTile * padded_dim_v);
        float * scores = scratch.scores.reserve(kQueryTile * kScoreStride);

        QueryState states[kHeadsTogether];
        for (int64_t h = heads.begin; h < heads.end; ++h) {
            QueryState & state = states[h - heads.begin];
            state.queries = query_rows + (h - heads.begin) * kQueryTile * padded_dim;
            state.sums = sums + (h - heads.begin) * kQueryTile * padded_dim_v;
            copy_rows(q.data + queries.begin * q.token_stride + h * q.head_stride, q.token_stride, queries.size(),
                      shape.head_dim, state.queries, padded_dim);
            std::fill(state.sums, state.sums + queries.size() * padded_dim_v, 0.0f);
            std::fill(state.maximum, state.maximum + queries.size(), -INFINITY);
            std::fill(state.total, state.total + queries.size(), 0.0f);
        }
        const Range visible = visible_keys(shape, queries);
        TileMask mask;
        for (int64_t begin = visible.begin; begin < visible.end; begin += kKeyTile) {
            const Range keys = {begin, std::min(begin + kKeyTile, visible.end)};
            if (!mask.build(shape, queries, keys)) {
                continue;
            }
            pack_transposed(k.data + begin * k.token_stride + head_kv * k.head_stride, k.token_stride, keys.size(),
                            shape.head_dim, key_panels);
            copy_rows(v.data + begin * v.token_stride + head_kv * v.head_stride, v.token_stride, keys.size(),
                      shape.head_dim_v, values, padded_dim_v);
            for (int64_t h = 0; h < heads.size(); ++h) {
                score_product(mask, states[h].queries, key_panels, shape.head_dim, product_factor(shape), scores);
                cap_and_mask(shape, mask, scores);
                softmax_step(mask, scores, padded_dim_v, states[h]);
                multiply_keys(mask, scores, values, shape.head_dim_v, 1.0f, states[h].sums, padded_dim_v);
            }
        }
        for (int64_t h = heads.begin; h < heads.end; ++h) {
            finish(states[h - heads.begin], h, queries, padded_dim_v);
        }
    }

    void finish(const QueryState & state, int64_t head, Range queries, int64_t padded_dim_v) const {
        for (int64_t i = 0; i < queries.size(); ++i) {
            const int64_t t = queries.begin + i;
            const bool sees = shape.first_key[t] < shape.end_key[t];
            const RowEnd end = end_row(shape, head, state.maximum[i], state.total[i]);
            const float factor = sees ? end.factor : 0.0f;
            const float * sums = state.sums + i * padded_dim_v;
            float * row = out.data + t * out.token_stride + head * out.head_stride;
            for (int64_t j = 0; j < shape.head_dim_v; ++j) {
                row[j] = factor * sums[j];
            }
            lse[head * shape.n_tokens + t] = sees ? end.lse : -INFINITY;
        }
    }
};

}  // namespace

void attention_forward(const AttentionShape & shape, const ConstHeads & q, const ConstHeads & k, const ConstHeads & v,
                       const Heads & out, float * lse, int ith, int nth) {
    const Forward forward = {shape, q, k, v, out, lse};
    for (const ForwardWork & work : forward_work(shape, kQueryTile, ith, nth)) {
        for (int64_t h = work.heads.begin; h < work.heads.end; h += kHeadsTogether) {
            forward.query_tile({h, std::min(h + kHeadsTogether, work.heads.end)}, work.queries);
        }
    }
}

}  // namespace ggtune::kernels
