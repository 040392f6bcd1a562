#include <algorithm>
#include <cmath>

#include "kernels/attention.h"
#include "kernels/attention_bf16.h"

namespace ggtune::kernels {
namespace {

using namespace detail;

// Keys whose scores with a block of queries are found at a time, in blocks. What is done once per row costs more than
// scores that leave the L1 cache.
constexpr int64_t kChunkBlocks = 16;
// Row stride of the scores. Not a power of two: a row of tiles is written at a time.
constexpr int64_t kScoreStride = kChunkBlocks * kBlock + 16;
// Values of a panel of weights.
constexpr int64_t kWeightPanel = kChunkBlocks * kTileValues;

struct Scratch {
    AlignedBf16 keys, values, queries, weights;
    AlignedFloats scores, sums;
};

float lane_maximum(simd::Vec v) {
    Vec4 parts[kWidth / 4];
    std::memcpy(parts, &v, sizeof v);
    Vec4 best = parts[0];
    for (int64_t i = 1; i < kWidth / 4; ++i) {
        best = parts[i] > best ? parts[i] : best;
    }
    return std::max(std::max(best[0], best[1]), std::max(best[2], best[3]));
}

class Forward {
  public:
    Forward(const AttentionShape & shape, const ConstHeads & q, const ConstHeads & k, const ConstHeads & v,
            const Heads & out, float * lse, Scratch & scratch)
        : shape_(shape),
          q_(q),
          k_(k),
          v_(v),
          out_(out),
          lse_(lse),
          session_(tile_unit()),
          padded_dim_(padded_to_block(shape.head_dim)),
          padded_dim_v_(padded_to_block(shape.head_dim_v)),
          scratch_(scratch),
          queries_(scratch.queries.reserve(kBlock * padded_dim_)),
          weights_(scratch.weights.reserve(kMostPanels * kWeightPanel)),
          scores_(scratch.scores.reserve(kBlock * kScoreStride)),
          sums_(scratch.sums.reserve(kBlock * padded_dim_v_)) {}

    // `next` is what comes then, or nullptr.
    void run(const ForwardWork & work, const ForwardWork * next) {
        const int64_t head_kv = work.heads.begin / (shape_.n_heads / shape_.n_heads_kv);
        if (work.run.begin != run_.begin || head_kv != head_kv_) {
            run_ = work.run;
            head_kv_ = head_kv;
            packed_ = {0, 0};
            n_blocks_ = block_count(run_.size());
            keys_ = scratch_.keys.reserve(n_blocks_ * kBlock * padded_dim_);
            values_ = scratch_.values.reserve(n_blocks_ * kBlock * padded_dim_v_);
        }
        const Range visible = visible_keys(shape_, work.queries);
        Range blocks = {0, 0};
        if (visible.size() > 0) {
            blocks = {(visible.begin - run_.begin) / kBlock, block_count(visible.end - run_.begin)};
            need_keys(blocks);
        }
        for (int64_t h = work.heads.begin; h < work.heads.end; ++h) {
            if (h + 1 < work.heads.end) {
                announce(h + 1, work.queries);
            } else if (next != nullptr) {
                announce(next->heads.begin, next->queries);
            }
            query_block(h, work.queries, blocks);
        }
    }

  private:
    // Packs what is not packed yet of these blocks of keys and values.
    void need_keys(Range blocks) {
        if (packed_.size() == 0) {
            packed_ = {blocks.begin, blocks.begin};
        }
        while (packed_.begin > blocks.begin) {
            pack_keys(--packed_.begin);
        }
        while (packed_.end < blocks.end) {
            pack_keys(packed_.end++);
        }
    }

    void pack_keys(int64_t block) {
        const int64_t begin = run_.begin + block * kBlock;
        const int64_t n = std::min(kBlock, run_.end - begin);
        pack_block_columns(head_rows(k_, begin, head_kv_), k_.token_stride, n, shape_.head_dim,
                           keys_ + block * kBlock * padded_dim_);
        pack_block_pairs(head_rows(v_, begin, head_kv_), v_.token_stride, n, shape_.head_dim_v,
                         values_ + block * kTileValues, n_blocks_ * kTileValues);
    }

    // What query_block() will read next.
    void announce(int64_t head, Range queries) {
        next_queries_ = {head_rows(q_, queries.begin, head), q_.token_stride, queries.size(), shape_.head_dim};
    }

    void query_block(int64_t head, Range queries, Range blocks) {
        pack_block_rows(head_rows(q_, queries.begin, head), q_.token_stride, queries.size(), shape_.head_dim,
                        product_factor(shape_), queries_);
        std::fill(maximum_, maximum_ + kBlock, -INFINITY);
        std::fill(total_, total_ + kBlock, simd::Vec{});
        const int64_t depth = tile_count(shape_.head_dim);
        const UpcomingRows results = {head_rows(out_, queries.begin, head), out_.token_stride, queries.size(),
                                      shape_.head_dim_v};
        for (int64_t first = blocks.begin; first < blocks.end; first += kChunkBlocks) {
            const Range chunk = {first, std::min(first + kChunkBlocks, blocks.end)};
            for (int64_t b = chunk.begin; b < chunk.end; ++b) {
                session_.multiply({depth, queries_, depth * kTileValues, keys_ + b * kBlock * padded_dim_,
                                   depth * kTileValues, scores_ + (b - first) * kBlock, kScoreStride, kMostPanels,
                                   kMostPanels, false});
            }
            for (int64_t i = 0; i < kBlock; ++i) {
                if (first == blocks.begin) {
                    next_queries_.fetch(i);
                    results.fetch_to_write(i);
                }
                softmax_row(i, queries, chunk, first > blocks.begin);
            }
            for (int64_t column = 0; column < padded_dim_v_; column += kBlock) {
                session_.multiply({chunk.size(), weights_, kWeightPanel,
                                   values_ + (column / kTileRows * n_blocks_ + first) * kTileValues,
                                   n_blocks_ * kTileValues, sums_ + column, padded_dim_v_, kMostPanels, kMostPanels,
                                   first > blocks.begin});
            }
        }
        finish(head, queries);
    }

    // Scores become weights relative to the row's new maximum; what was summed so far is brought down to that.
    void softmax_row(int64_t i, Range queries, Range chunk, bool has_sums) {
        const int64_t first_key = run_.begin + chunk.begin * kBlock;
        const int64_t n_keys = chunk.size() * kBlock;
        const int64_t t = queries.begin + i;
        int64_t begin = 0, end = 0;  // keys that the token sees
        if (t < queries.end) {
            begin = std::clamp<int64_t>(shape_.first_key[t] - first_key, 0, n_keys);
            end = std::clamp<int64_t>(shape_.end_key[t] - first_key, 0, n_keys);
        }
        Bf16 * weights = weights_ + i / kTileRows * kWeightPanel + i % kTileRows * kTileDepth;
        const int64_t first_block = begin < end ? begin / kBlock : chunk.size();
        const int64_t end_block = begin < end ? block_count(end) : chunk.size();
        for (int64_t b = 0; b < first_block; ++b) {
            std::memset(weights + b * kTileValues, 0, kBlock * sizeof(Bf16));
        }
        for (int64_t b = end_block; b < chunk.size(); ++b) {
            std::memset(weights + b * kTileValues, 0, kBlock * sizeof(Bf16));
        }
        if (begin >= end) {
            return;
        }
        float * row = scores_ + i * kScoreStride;
        if (shape_.softcap != 0.0f) {
            cap(row + first_block * kBlock, (end_block - first_block) * kBlock);
        }
        if (begin % kBlock != 0) {
            mask(row, first_block, begin, end);
        }
        if (end % kBlock != 0) {
            mask(row, end_block - 1, begin, end);
        }
        simd::Vec best = simd::load(row + first_block * kBlock);
        for (int64_t j = first_block * kBlock + kWidth; j < end_block * kBlock; j += kWidth) {
            best = larger(best, simd::load(row + j));
        }
        const float maximum = std::max(maximum_[i], lane_maximum(best));
        simd::Vec sum[2] = {};
        for (int64_t b = first_block; b < end_block; ++b) {
            BlockRow block = load_row(row + b * kBlock);
            for (int v = 0; v < BlockRow::kVectors; ++v) {
                block.v[v] = short_exp2(block.v[v] - maximum);
                sum[v % 2] += block.v[v];
            }
            round_row(block, weights + b * kTileValues);
        }
        if (has_sums && maximum != maximum_[i]) {
            const float shrink = std::exp2(maximum_[i] - maximum);
            total_[i] *= shrink;
            float * sums = sums_ + i * padded_dim_v_;
            for (int64_t j = 0; j < padded_dim_v_; j += kWidth) {
                simd::store(sums + j, shrink * simd::load(sums + j));
            }
        }
        maximum_[i] = maximum;
        total_[i] += sum[0] + sum[1];
    }

    void cap(float * scores, int64_t n) const {
        const float softcap = shape_.softcap;
        const auto factor = static_cast<float>(static_cast<double>(softcap) * shape_.post_scale / kLn2);
        for (int64_t j = 0; j < n; j += kWidth) {
            simd::store(scores + j, factor * simd::tanh(simd::load(scores + j) / softcap));
        }
    }

    static void mask(float * row, int64_t block, int64_t begin, int64_t end) {
        for (int64_t j = block * kBlock; j < (block + 1) * kBlock; j += kWidth) {
            const simd::IntVec visible =
                lanes_within(static_cast<int32_t>(j), static_cast<int32_t>(begin), static_cast<int32_t>(end));
            simd::store(row + j, simd::select(visible, simd::load(row + j), simd::splat(-INFINITY)));
        }
    }

    void finish(int64_t head, Range queries) const {
        for (int64_t i = 0; i < queries.size(); ++i) {
            const int64_t t = queries.begin + i;
            float * row = head_rows(out_, t, head);
            float & lse = lse_[head * shape_.n_tokens + t];
            if (shape_.first_key[t] >= shape_.end_key[t]) {
                std::fill(row, row + shape_.head_dim_v, 0.0f);
                lse = -INFINITY;
                continue;
            }
            const RowEnd end = end_row(shape_, head, maximum_[i], lane_sum(total_[i]));
            const float * sums = sums_ + i * padded_dim_v_;
            int64_t j = 0;
            for (; j + kWidth <= shape_.head_dim_v; j += kWidth) {
                simd::store(row + j, end.factor * simd::load(sums + j));
            }
            for (; j < shape_.head_dim_v; ++j) {
                row[j] = end.factor * sums[j];
            }
            lse = end.lse;
        }
    }

    const AttentionShape & shape_;
    const ConstHeads & q_;
    const ConstHeads & k_;
    const ConstHeads & v_;
    const Heads & out_;
    float * const lse_;
    const TileSession session_;
    const int64_t padded_dim_, padded_dim_v_;
    Scratch & scratch_;
    Bf16 *queries_, *weights_;
    float *scores_, *sums_;  // [kBlock][kScoreStride], [kBlock][padded_dim_v_]
    float maximum_[kBlock];
    UpcomingRows next_queries_ = {};
    simd::Vec total_[kBlock];  // of 2^(logit - maximum), lane by lane

    // The keys and values that are packed: these blocks of a run and a head.
    Range run_ = {-1, -1};
    int64_t head_kv_ = -1;
    Range packed_ = {0, 0};
    int64_t n_blocks_ = 0;  // of the run
    Bf16 * keys_ = nullptr;
    Bf16 * values_ = nullptr;
};

}  // namespace

void attention_forward_bf16(const AttentionShape & shape, const ConstHeads & q, const ConstHeads & k,
                            const ConstHeads & v, const Heads & out, float * lse, int ith, int nth) {
    static thread_local Scratch scratch;
    Forward forward(shape, q, k, v, out, lse, scratch);
    const std::vector<ForwardWork> list = forward_work(shape, kBlock, ith, nth);
    for (size_t i = 0; i < list.size(); ++i) {
        forward.run(list[i], i + 1 < list.size() ? &list[i + 1] : nullptr);
    }
}

}  // namespace ggtune::kernels
