#include <algorithm>
#include <cmath>

#include "kernels/attention.h"
#include "kernels/attention_bf16.h"
#include "kernels/transpose.h"

namespace ggtune::kernels {
namespace {

using namespace detail;

// Queries of a head that are taken together, in blocks: the depth of the products that give dk and dv.
constexpr int64_t kQueryBlocks = 2;
constexpr int64_t kQueries = kQueryBlocks * kBlock;
// Keys that are taken together: what a chunk holds packed and sums up stays in the L2 cache.
constexpr int64_t kChunkBlocks = 16;
constexpr int64_t kChunk = kChunkBlocks * kBlock;
// Parts of a piece of work that is divided. Large: each packs what it needs for itself.
constexpr BackwardParts kParts = {4 * kQueries, 4 * kBlock};

struct Scratch {
    AlignedBf16 key_columns, key_pairs, value_columns;
    AlignedBf16 query_rows, query_columns, d_out_rows, d_out_columns;
    AlignedBf16 weights, d_weights, d_weight_rows;
    AlignedFloats dk, dv, rows;
};

// to += or = factor * from
void write_row(const float * from, float factor, int64_t n, bool accumulate, float * to) {
    if (accumulate) {
        for (int64_t i = 0; i < n; ++i) {
            to[i] += factor * from[i];
        }
    } else {
        for (int64_t i = 0; i < n; ++i) {
            to[i] = factor * from[i];
        }
    }
}

float dot(const float * a, const float * b, int64_t n) {
    simd::Vec sum = {};
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) {
        sum += simd::load(a + i) * simd::load(b + i);
    }
    if (i < n) {
        sum += simd::load_partial(a + i, n - i) * simd::load_partial(b + i, n - i);
    }
    return lane_sum(sum);
}

class BlockWorker {
  public:
    BlockWorker(const BackwardArguments & args, Scratch & scratch)
        : args_(args),
          shape_(args.shape),
          session_(tile_unit()),
          dim_(args.shape.head_dim),
          dim_v_(args.shape.head_dim_v),
          padded_dim_(padded_to_block(dim_)),
          padded_dim_v_(padded_to_block(dim_v_)),
          group_(args.shape.n_heads / args.shape.n_heads_kv),
          key_columns_(scratch.key_columns.reserve(kChunk * padded_dim_)),
          key_pairs_(scratch.key_pairs.reserve(kChunk * padded_dim_)),
          value_columns_(scratch.value_columns.reserve(kChunk * padded_dim_v_)),
          query_rows_(scratch.query_rows.reserve(kQueries * padded_dim_)),
          query_columns_(scratch.query_columns.reserve(kQueries * padded_dim_)),
          d_out_rows_(scratch.d_out_rows.reserve(kQueries * padded_dim_v_)),
          d_out_columns_(scratch.d_out_columns.reserve(kQueries * padded_dim_v_)),
          weights_(scratch.weights.reserve(kQueries * kChunk)),
          d_weights_(scratch.d_weights.reserve(kQueries * kChunk)),
          d_weight_rows_(scratch.d_weight_rows.reserve(kQueries * kChunk)),
          dk_(scratch.dk.reserve(kChunk * padded_dim_)),
          dv_(scratch.dv.reserve(kChunk * padded_dim_v_)),
          rows_(scratch.rows.reserve(kBlock * std::max(padded_dim_, padded_dim_v_))) {}

    void run(const BackwardWork & work) {
        const Range group = {work.head_kv * group_, (work.head_kv + 1) * group_};
        switch (work.output) {
            case Output::all:
                pass(work.run, work.head_kv, group, work.run, work.run, true, true);
                break;
            case Output::keys:
                pass(work.run, work.head_kv, group, work.tokens, work.run, true, false);
                break;
            case Output::queries:
                pass(work.run, work.head_kv, {work.head, work.head + 1}, work.run, work.tokens, false, true);
                break;
        }
    }

  private:
    // A block of queries against a chunk of keys.
    struct QueryBlock {
        Range queries;
        Range blocks;  // of the chunk, that it sees something of
        bool adds;     // to what an earlier chunk gave for dq
    };

    void pass(Range run, int64_t head_kv, Range heads, Range keys, Range queries, bool with_dkv, bool with_dq) {
        if (with_dq && !args_.accumulate) {
            clear_blind(heads, queries);
        }
        for (int64_t begin = keys.begin; begin < keys.end; begin += kChunk) {
            const Range chunk = {begin, std::min(begin + kChunk, keys.end)};
            load_keys(head_kv, chunk, visible_blocks(queries, chunk));
            if (with_dkv) {
                const int64_t n = block_count(chunk.size()) * kBlock;
                std::fill(dk_, dk_ + n * padded_dim_, 0.0f);
                std::fill(dv_, dv_ + n * padded_dim_v_, 0.0f);
            }
            for (int64_t first = queries.begin; first < queries.end; first += kQueries) {
                if (!choose_queries({first, std::min(first + kQueries, queries.end)}, chunk, run)) {
                    continue;
                }
                for (int64_t h = heads.begin; h < heads.end; ++h) {
                    load_queries(h);
                    find_weights();
                    if (with_dkv) {
                        add_dkv();
                    }
                    if (with_dq) {
                        write_dq(h);
                    }
                }
            }
            if (with_dkv) {
                write_rows(dk_, padded_dim_, dim_, query_factor(), args_.dk, head_kv, chunk);
                write_rows(dv_, padded_dim_v_, dim_v_, 1.0f, args_.dv, head_kv, chunk);
            }
        }
    }

    // Tokens without keys have no chunk that writes their dq.
    void clear_blind(Range heads, Range queries) const {
        for (int64_t first = queries.begin; first < queries.end; first += kBlock) {
            const Range block = {first, std::min(first + kBlock, queries.end)};
            if (visible_keys(shape_, block).size() > 0) {
                continue;
            }
            for (int64_t h = heads.begin; h < heads.end; ++h) {
                for (int64_t t = block.begin; t < block.end; ++t) {
                    float * row = head_rows(args_.dq, t, h);
                    std::fill(row, row + dim_, 0.0f);
                }
            }
        }
    }

    // Blocks of the chunk of which some of the queries see something, from the first to the last.
    Range visible_blocks(Range queries, Range chunk) const {
        const Range visible = visible_keys(shape_, queries);
        const Range keys = {std::max(visible.begin, chunk.begin), std::min(visible.end, chunk.end)};
        if (keys.begin >= keys.end) {
            return {0, 0};
        }
        return {(keys.begin - chunk.begin) / kBlock, block_count(keys.end - chunk.begin)};
    }

    void load_keys(int64_t head_kv, Range chunk, Range blocks) {
        for (int64_t b = blocks.begin; b < blocks.end; ++b) {
            const int64_t t = chunk.begin + b * kBlock;
            const int64_t n = std::min(kBlock, chunk.end - t);
            const float * keys = head_rows(args_.k, t, head_kv);
            pack_block_columns(keys, args_.k.token_stride, n, dim_, key_columns_ + b * kBlock * padded_dim_);
            pack_block_pairs(keys, args_.k.token_stride, n, dim_, key_pairs_ + b * kTileValues,
                             kChunkBlocks * kTileValues);
            pack_block_columns(head_rows(args_.v, t, head_kv), args_.v.token_stride, n, dim_v_,
                               value_columns_ + b * kBlock * padded_dim_v_);
        }
    }

    // False where none of them sees a key of the chunk.
    bool choose_queries(Range queries, Range chunk, Range run) {
        bool any = false;
        for (int64_t i = 0; i < kQueryBlocks; ++i) {
            QueryBlock & block = blocks_[i];
            block = {{std::min(queries.begin + i * kBlock, queries.end),
                      std::min(queries.begin + (i + 1) * kBlock, queries.end)},
                     {0, 0},
                     args_.accumulate};
            block.blocks = visible_blocks(block.queries, chunk);
            if (block.blocks.size() == 0) {
                continue;
            }
            any = true;
            const int64_t first_key = visible_keys(shape_, block.queries).begin;
            block.adds = block.adds || (first_key - run.begin) / kChunk < (chunk.begin - run.begin) / kChunk;
            for (int64_t b = block.blocks.begin; b < block.blocks.end; ++b) {
                masks_[i][b].build(shape_, block.queries, chunk.begin + b * kBlock);
            }
        }
        return any;
    }

    void load_queries(int64_t head) {
        const float * lse = args_.lse + head * shape_.n_tokens;
        for (int64_t i = 0; i < kQueryBlocks; ++i) {
            const Range queries = blocks_[i].queries;
            if (blocks_[i].blocks.size() == 0) {
                continue;
            }
            Bf16 * rows = query_rows_ + i * kBlock * padded_dim_;
            pack_block_rows(head_rows(args_.q, queries.begin, head), args_.q.token_stride, queries.size(), dim_,
                            product_factor(shape_), rows);
            transpose_block(rows, dim_, query_columns_ + i * kTileValues, kQueryBlocks * kTileValues);
            const float * d_out = head_rows(args_.d_out, queries.begin, head);
            rows = d_out_rows_ + i * kBlock * padded_dim_v_;
            pack_block_rows(d_out, args_.d_out.token_stride, queries.size(), dim_v_, 1.0f, rows);
            transpose_block(rows, dim_v_, d_out_columns_ + i * kTileValues, kQueryBlocks * kTileValues);
            const float * out = head_rows(args_.out, queries.begin, head);
            for (int64_t j = 0; j < queries.size(); ++j) {
                mean_d_weight_[i * kBlock + j] =
                    dot(out + j * args_.out.token_stride, d_out + j * args_.d_out.token_stride, dim_v_);
                log_sum_[i * kBlock + j] = static_cast<float>(lse[queries.begin + j] / kLn2);
            }
        }
    }

    // weights = softmax(logits) from the saved log-sum-exp, d_weights = gradient of the logits before post_scale * cap.
    void find_weights() {
        alignas(64) float scores[kBlock * kBlock];
        alignas(64) float d_scores[kBlock * kBlock];
        const int64_t depth = tile_count(dim_);
        const int64_t depth_v = tile_count(dim_v_);
        for (int64_t i = 0; i < kQueryBlocks; ++i) {
            for (int64_t b = blocks_[i].blocks.begin; b < blocks_[i].blocks.end; ++b) {
                session_.multiply({depth, query_rows_ + i * kBlock * padded_dim_, depth * kTileValues,
                                   key_columns_ + b * kBlock * padded_dim_, depth * kTileValues, scores, kBlock,
                                   kMostPanels, kMostPanels, false});
                session_.multiply({depth_v, d_out_rows_ + i * kBlock * padded_dim_v_, depth_v * kTileValues,
                                   value_columns_ + b * kBlock * padded_dim_v_, depth_v * kTileValues, d_scores, kBlock,
                                   kMostPanels, kMostPanels, false});
                const bool masked = !masks_[i][b].full;
                if (shape_.softcap != 0.0f) {
                    masked ? weigh<true, true>(i, b, scores, d_scores) : weigh<false, true>(i, b, scores, d_scores);
                } else {
                    masked ? weigh<true, false>(i, b, scores, d_scores) : weigh<false, false>(i, b, scores, d_scores);
                }
            }
        }
    }

    template <bool masked, bool capped>
    void weigh(int64_t query_block, int64_t block, const float * scores, const float * d_scores) {
        Bf16 * pairs = weights_ + pairs_offset(query_block, block);
        Bf16 * d_pairs = d_weights_ + pairs_offset(query_block, block);
        Bf16 * d_rows = d_weight_rows_ + rows_offset(query_block) + block * kTileValues;
        constexpr int64_t kPairsPanel = kQueryBlocks * kTileValues;
        for (int64_t i = 0; i < kBlock; i += 2) {
            BlockRow weights[2], d_weights[2];
            for (int64_t j = 0; j < 2; ++j) {
                weigh_row<masked, capped>(query_block, block, i + j, scores, d_scores, weights[j], d_weights[j]);
            }
            round_pairs(weights[0], weights[1], pairs + i / 2 * kTileDepth, pairs + kPairsPanel + i / 2 * kTileDepth);
            round_pairs(d_weights[0], d_weights[1], d_pairs + i / 2 * kTileDepth,
                        d_pairs + kPairsPanel + i / 2 * kTileDepth);
            Bf16 * row = d_rows + i / kTileRows * kChunkBlocks * kTileValues + i % kTileRows * kTileDepth;
            round_row(d_weights[0], row);
            round_row(d_weights[1], row + kTileDepth);
        }
    }

    template <bool masked, bool capped>
    __attribute__((always_inline)) void weigh_row(int64_t query_block, int64_t block, int64_t i, const float * scores,
                                                  const float * d_scores, BlockRow & weights,
                                                  BlockRow & d_weights) const {
        weights = load_row(scores + i * kBlock);
        d_weights = load_row(d_scores + i * kBlock);
        const float log_sum = log_sum_[query_block * kBlock + i];
        const float mean = mean_d_weight_[query_block * kBlock + i];
        for (int v = 0; v < BlockRow::kVectors; ++v) {
            simd::Vec slope = {};
            if constexpr (capped) {
                const simd::Vec tanh = simd::tanh(weights.v[v] / shape_.softcap);
                slope = 1.0f - tanh * tanh;
                weights.v[v] = cap_factor() * tanh;
            }
            weights.v[v] = short_exp2(weights.v[v] - log_sum);
            d_weights.v[v] = weights.v[v] * (d_weights.v[v] - mean);
            if constexpr (capped) {
                d_weights.v[v] *= slope;
            }
            if constexpr (masked) {
                const BlockMask & mask = masks_[query_block][block];
                const simd::IntVec visible = lanes_within(v * simd::kWidth, mask.begin[i], mask.end[i]);
                weights.v[v] = simd::select(visible, weights.v[v], simd::Vec{});
                d_weights.v[v] = simd::select(visible, d_weights.v[v], simd::Vec{});
            }
        }
    }

    // Weights of a block of keys as two panels of B, queries down.
    static int64_t pairs_offset(int64_t query_block, int64_t block) {
        return block * kBlock * kQueries + query_block * kTileValues;
    }

    // Those of a block of queries as two panels of A, keys across.
    static int64_t rows_offset(int64_t query_block) { return query_block * kBlock * kChunk; }

    // dk and dv are summed up transposed, block by block of keys: [padded dim][kBlock].
    void add_dkv() {
        for (int64_t b = 0; b < kChunkBlocks; ++b) {
            const Range seen = {sees(0, b) ? 0 : 1, sees(1, b) ? 2 : 1};
            if (seen.size() == 0) {
                continue;
            }
            const int64_t offset = pairs_offset(seen.begin, b);
            add_transposed(seen, d_out_columns_, padded_dim_v_, weights_ + offset, dv_ + b * kBlock * padded_dim_v_);
            add_transposed(seen, query_columns_, padded_dim_, d_weights_ + offset, dk_ + b * kBlock * padded_dim_);
        }
    }

    bool sees(int64_t query_block, int64_t block) const {
        return blocks_[query_block].blocks.begin <= block && block < blocks_[query_block].blocks.end;
    }

    void add_transposed(Range seen, const Bf16 * columns, int64_t padded_dim, const Bf16 * pairs, float * sums) const {
        constexpr int64_t kPanel = kQueryBlocks * kTileValues;
        for (int64_t i = 0; i < padded_dim; i += kBlock) {
            session_.multiply({seen.size(), columns + i / kTileRows * kPanel + seen.begin * kTileValues, kPanel, pairs,
                               kPanel, sums + i * kBlock, kBlock, kMostPanels, kMostPanels, true});
        }
    }

    void write_dq(int64_t head) const {
        for (int64_t i = 0; i < kQueryBlocks; ++i) {
            const QueryBlock & block = blocks_[i];
            if (block.blocks.size() == 0) {
                continue;
            }
            for (int64_t column = 0; column < padded_dim_; column += kBlock) {
                session_.multiply(
                    {block.blocks.size(), d_weight_rows_ + rows_offset(i) + block.blocks.begin * kTileValues,
                     kChunkBlocks * kTileValues,
                     key_pairs_ + (column / kTileRows * kChunkBlocks + block.blocks.begin) * kTileValues,
                     kChunkBlocks * kTileValues, rows_ + column, padded_dim_, kMostPanels, kMostPanels, false});
            }
            for (int64_t j = 0; j < block.queries.size(); ++j) {
                write_row(rows_ + j * padded_dim_, shape_.pre_scale * shape_.post_scale, dim_, block.adds,
                          head_rows(args_.dq, block.queries.begin + j, head));
            }
        }
    }

    void write_rows(const float * sums, int64_t padded_dim, int64_t dim, float factor, const Heads & result,
                    int64_t head, Range chunk) {
        for (int64_t t = chunk.begin; t < chunk.end; t += kBlock) {
            transpose_copy(sums, kBlock, dim, kBlock, rows_, padded_dim);
            for (int64_t i = 0; i < std::min(kBlock, chunk.end - t); ++i) {
                write_row(rows_ + i * padded_dim, factor, dim, args_.accumulate, head_rows(result, t + i, head));
            }
            sums += kBlock * padded_dim;
        }
    }

    float cap_factor() const {
        return static_cast<float>(static_cast<double>(shape_.softcap) * shape_.post_scale / kLn2);
    }

    // The packed queries have a part of the logits' scale in them: what dk needs beside it.
    float query_factor() const { return shape_.softcap == 0.0f ? static_cast<float>(kLn2) : shape_.post_scale; }

    const BackwardArguments & args_;
    const AttentionShape & shape_;
    const TileSession session_;
    const int64_t dim_, dim_v_, padded_dim_, padded_dim_v_, group_;
    Bf16 *key_columns_, *key_pairs_, *value_columns_;                   // of the chunk of keys
    Bf16 *query_rows_, *query_columns_, *d_out_rows_, *d_out_columns_;  // of a head's queries
    Bf16 *weights_, *d_weights_, *d_weight_rows_;                       // of these queries and keys
    float *dk_, *dv_;                                                   // of the chunk of keys
    float * rows_;                                                      // [kBlock][a padded dim]
    QueryBlock blocks_[kQueryBlocks];
    BlockMask masks_[kQueryBlocks][kChunkBlocks];
    float log_sum_[kQueries];        // to the base 2
    float mean_d_weight_[kQueries];  // sum over keys of weight * d_weight = out . d_out
};

}  // namespace

void attention_backward_bf16(const AttentionShape & shape, const ConstHeads & q, const ConstHeads & k,
                             const ConstHeads & v, const ConstHeads & out, const float * lse, const ConstHeads & d_out,
                             const Heads & dq, const Heads & dk, const Heads & dv, bool accumulate, int ith, int nth) {
    static thread_local Scratch scratch;
    const BackwardArguments args = {shape, q, k, v, out, lse, d_out, dq, dk, dv, accumulate};
    BlockWorker worker(args, scratch);
    for (const BackwardWork & work : backward_work(shape, kParts, ith, nth)) {
        worker.run(work);
    }
}

}  // namespace ggtune::kernels
