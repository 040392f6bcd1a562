#include <algorithm>
#include <cmath>

#include "kernels/attention.h"
#include "kernels/attention_tile.h"

namespace ggtune::kernels {
namespace {

using namespace detail;

struct Scratch {
    AlignedFloats key_panels, value_panels, keys, dk, dv, queries, d_out, weights, d_weights;
};

// The tiles of one thread.
class TileWorker {
  public:
    TileWorker(const BackwardArguments & args, Scratch & scratch)
        : args_(args),
          shape_(args.shape),
          dim_(args.shape.head_dim),
          dim_v_(args.shape.head_dim_v),
          padded_dim_(round_up(dim_, kWidth)),
          padded_dim_v_(round_up(dim_v_, kWidth)),
          group_(args.shape.n_heads / args.shape.n_heads_kv),
          key_panels_(scratch.key_panels.reserve(kKeyTile * dim_)),
          value_panels_(scratch.value_panels.reserve(kKeyTile * dim_v_)),
          keys_(scratch.keys.reserve(kKeyTile * padded_dim_)),
          dk_(scratch.dk.reserve(kKeyTile * padded_dim_)),
          dv_(scratch.dv.reserve(kKeyTile * padded_dim_v_)),
          queries_(scratch.queries.reserve(kQueryTile * padded_dim_)),
          d_out_(scratch.d_out.reserve(kQueryTile * padded_dim_v_)),
          weights_(scratch.weights.reserve(kQueryTile * kScoreStride)),
          d_weights_(scratch.d_weights.reserve(kQueryTile * kScoreStride)) {}

    void run(const BackwardWork & work) {
        const Range run = work.run;
        const int64_t first_head = work.head_kv * group_;
        switch (work.output) {
            case Output::all:
                for (int64_t h = first_head; h < first_head + group_; ++h) {
                    clear_dq(h, run);
                }
                for (int64_t begin = run.begin; begin < run.end; begin += kKeyTile) {
                    key_tile(work.head_kv, run, begin, true);
                }
                break;
            case Output::keys:
                key_tile(work.head_kv, run, work.tokens.begin, false);
                break;
            case Output::queries:
                query_tile(work.head, run, work.tokens.begin);
                break;
        }
    }

  private:
    // dk and dv of one tile of keys, and what it adds to dq.
    void key_tile(int64_t head_kv, Range run, int64_t begin, bool with_dq) {
        const Range keys = {begin, std::min(begin + kKeyTile, run.end)};
        load_keys(head_kv, keys);
        std::fill(dk_, dk_ + keys.size() * padded_dim_, 0.0f);
        std::fill(dv_, dv_ + keys.size() * padded_dim_v_, 0.0f);
        for (int64_t first = run.begin; first < run.end; first += kQueryTile) {
            const Range queries = {first, std::min(first + kQueryTile, run.end)};
            if (!mask_.build(shape_, queries, keys)) {
                continue;
            }
            for (int64_t h = head_kv * group_; h < (head_kv + 1) * group_; ++h) {
                load_queries(h, queries);
                find_weights(h, queries);
                multiply_queries(mask_, weights_, d_out_, dim_v_, 1.0f, dv_);
                multiply_queries(mask_, d_weights_, queries_, dim_, logit_factor(), dk_);
                if (with_dq) {
                    add_dq(h, queries);
                }
            }
        }
        write_rows(dk_, padded_dim_, dim_, args_.dk, head_kv, keys);
        write_rows(dv_, padded_dim_v_, dim_v_, args_.dv, head_kv, keys);
    }

    void query_tile(int64_t head, Range run, int64_t begin) {
        const Range queries = {begin, std::min(begin + kQueryTile, run.end)};
        clear_dq(head, queries);
        load_queries(head, queries);
        for (int64_t first = run.begin; first < run.end; first += kKeyTile) {
            const Range keys = {first, std::min(first + kKeyTile, run.end)};
            if (mask_.build(shape_, queries, keys)) {
                load_keys(head / group_, keys);
                find_weights(head, queries);
                add_dq(head, queries);
            }
        }
    }

    void load_keys(int64_t head_kv, Range keys) {
        const float * k = args_.k.data + keys.begin * args_.k.token_stride + head_kv * args_.k.head_stride;
        const float * v = args_.v.data + keys.begin * args_.v.token_stride + head_kv * args_.v.head_stride;
        copy_rows(k, args_.k.token_stride, keys.size(), dim_, keys_, padded_dim_);
        pack_transposed(keys_, padded_dim_, keys.size(), dim_, key_panels_);
        pack_transposed(v, args_.v.token_stride, keys.size(), dim_v_, value_panels_);
    }

    void load_queries(int64_t head, Range queries) {
        const int64_t t = queries.begin;
        copy_rows(args_.q.data + t * args_.q.token_stride + head * args_.q.head_stride, args_.q.token_stride,
                  queries.size(), dim_, queries_, padded_dim_);
        copy_rows(args_.d_out.data + t * args_.d_out.token_stride + head * args_.d_out.head_stride,
                  args_.d_out.token_stride, queries.size(), dim_v_, d_out_, padded_dim_v_);
        const float * out = args_.out.data + t * args_.out.token_stride + head * args_.out.head_stride;
        for (int64_t i = 0; i < queries.size(); ++i) {
            const float * d_row = d_out_ + i * padded_dim_v_;
            const float * row = out + i * args_.out.token_stride;
            prefetch_next_head(row, dim_v_);
            simd::Vec sum = {};
            int64_t j = 0;
            for (; j + kWidth <= dim_v_; j += kWidth) {
                sum += simd::load(row + j) * simd::load(d_row + j);
            }
            if (j < dim_v_) {
                sum += simd::load_partial(row + j, dim_v_ - j) * simd::load(d_row + j);
            }
            mean_d_weight_[i] = lane_sum(sum);
        }
    }

    // weights = softmax(logits) from the saved log-sum-exp, d_weights = gradient of the logits before post_scale * cap.
    void find_weights(int64_t head, Range queries) {
        score_product(mask_, queries_, key_panels_, dim_, product_factor(shape_), weights_);
        score_product(mask_, d_out_, value_panels_, dim_v_, 1.0f, d_weights_);
        cap_and_mask(shape_, mask_, weights_);
        const float * row_lse = lse_row(head) + queries.begin;
        const int64_t width = round_up(mask_.n_keys, kWidth);
        for (int64_t i = 0; i < mask_.n_queries; ++i) {
            float * weights = weights_ + i * kScoreStride;
            float * d_weights = d_weights_ + i * kScoreStride;
            const int64_t begin = mask_.first_column(i);
            const int64_t end = mask_.end_column(i);
            const auto offset = static_cast<float>(row_lse[i] / kLn2);
            if (mask_.begin[i] == mask_.end[i]) {
                std::fill(weights, weights + width, 0.0f);
                std::fill(d_weights, d_weights + width, 0.0f);
                continue;
            }
            if (!mask_.full) {
                // multiply_queries() reads a column for all queries from the first to the last that sees it
                std::fill(weights, weights + begin, 0.0f);
                std::fill(d_weights, d_weights + begin, 0.0f);
                std::fill(weights + end, weights + width, 0.0f);
                std::fill(d_weights + end, d_weights + width, 0.0f);
            }
            if (shape_.softcap != 0.0f) {
                multiply_cap_gradient(weights, d_weights, mean_d_weight_[i], offset, begin, end);
                continue;
            }
            for (int64_t j = begin; j < end; j += kWidth) {
                const simd::Vec weight = exp2(simd::load(weights + j) - offset);
                simd::store(weights + j, weight);
                simd::store(d_weights + j, weight * (simd::load(d_weights + j) - mean_d_weight_[i]));
            }
        }
    }

    void multiply_cap_gradient(float * weights, float * d_weights, float mean, float offset, int64_t begin,
                               int64_t end) const {
        // logit = post_scale / ln 2 * softcap * tanh(x / softcap)
        const auto to_tanh = static_cast<float>(kLn2 / (static_cast<double>(shape_.softcap) * shape_.post_scale));
        for (int64_t j = begin; j < end; j += kWidth) {
            const simd::Vec logit = simd::load(weights + j);
            const simd::Vec weight = exp2(logit - offset);
            const simd::Vec tanh = logit * to_tanh;
            const simd::Vec gradient = weight * (simd::load(d_weights + j) - mean) * (1.0f - tanh * tanh);
            simd::store(weights + j, weight);
            // a masked logit is -infinity
            simd::store(d_weights + j, simd::select(weight == simd::splat(0.0f), simd::splat(0.0f), gradient));
        }
    }

    float logit_factor() const { return shape_.pre_scale * shape_.post_scale; }

    const float * lse_row(int64_t head) const { return args_.lse + head * shape_.n_tokens; }

    void clear_dq(int64_t head, Range queries) const {
        for (int64_t t = queries.begin; t < queries.end && !args_.accumulate; ++t) {
            float * row = args_.dq.data + t * args_.dq.token_stride + head * args_.dq.head_stride;
            std::fill(row, row + dim_, 0.0f);
        }
    }

    void add_dq(int64_t head, Range queries) const {
        multiply_keys(mask_, d_weights_, keys_, dim_, logit_factor(),
                      args_.dq.data + queries.begin * args_.dq.token_stride + head * args_.dq.head_stride,
                      args_.dq.token_stride);
    }

    void write_rows(const float * rows, int64_t padded_dim, int64_t dim, const Heads & result, int64_t head,
                    Range tokens) const {
        for (int64_t t = tokens.begin; t < tokens.end; ++t) {
            float * row = result.data + t * result.token_stride + head * result.head_stride;
            for (int64_t i = 0; i < dim; ++i) {
                row[i] = args_.accumulate ? row[i] + rows[i] : rows[i];
            }
            rows += padded_dim;
        }
    }

    const BackwardArguments & args_;
    const AttentionShape & shape_;
    const int64_t dim_, dim_v_, padded_dim_, padded_dim_v_, group_;
    float *key_panels_, *value_panels_, *keys_, *dk_, *dv_;  // of the key tile
    float *queries_, *d_out_;                                // of the query tile
    float *weights_, *d_weights_;                            // [kQueryTile][kScoreStride]
    float mean_d_weight_[kQueryTile];                        // sum over keys of weight * d_weight = out . d_out
    TileMask mask_;
};

}  // namespace

void attention_backward(const AttentionShape & shape, const ConstHeads & q, const ConstHeads & k, const ConstHeads & v,
                        const ConstHeads & out, const float * lse, const ConstHeads & d_out, const Heads & dq,
                        const Heads & dk, const Heads & dv, bool accumulate, int ith, int nth) {
    static thread_local Scratch scratch;
    const BackwardArguments args = {shape, q, k, v, out, lse, d_out, dq, dk, dv, accumulate};
    TileWorker worker(args, scratch);
    for (const BackwardWork & work : backward_work(shape, {kQueryTile, kKeyTile}, ith, nth)) {
        worker.run(work);
    }
}

}  // namespace ggtune::kernels
