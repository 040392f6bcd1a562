// How attention is divided among threads: by the masks and sizes alone, so that every sum is taken in the same order
// whatever their number. Private to cpp/kernels.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attention.h"
#include "kernels/partition.h"

namespace ggtune::kernels::detail {

// Samples up to this many tokens are taken together, in tokens.
inline constexpr int64_t kShortRun = 96;

// A run of tokens that sees no other key and whose keys no other token sees: a sample, or short ones together.
std::vector<Range> independent_runs(const AttentionShape & shape);

// Number of (token, key) pairs of these tokens that see each other.
int64_t count_pairs(const AttentionShape & shape, Range tokens);

// From the first to the last key that one of these tokens sees; empty if there is none.
Range visible_keys(const AttentionShape & shape, Range tokens);

// A tile of queries and heads that share one head of keys and values.
struct ForwardWork {
    Range run;
    Range heads;
    Range queries;
};

// What thread ith of nth does, in tiles of `query_tile` tokens counted from the begin of a run: in this order, so that
// heads and then tiles that need the same keys follow each other.
std::vector<ForwardWork> forward_work(const AttentionShape & shape, int64_t query_tile, int ith, int nth);

// A run of tokens and one head of keys and values make a piece of work of its own, and one pass over its tiles gives
// dq, dk and dv. Where there are too few such pieces for the threads, the last ones are divided further: dk and dv by
// keys, dq by head and queries, at the price of finding the scores twice.
enum class Output { all, keys, queries };

struct BackwardWork {
    Output output;
    int64_t head_kv;
    int64_t head;  // for Output::queries
    Range run;
    Range tokens;  // of the run: keys for Output::keys, queries for Output::queries
    double cost;
};

// Tokens in a part of a divided piece, counted from the begin of its run.
struct BackwardParts {
    int64_t queries, keys;
};

// What attention_backward() is given.
struct BackwardArguments {
    const AttentionShape & shape;
    const ConstHeads & q;
    const ConstHeads & k;
    const ConstHeads & v;
    const ConstHeads & out;
    const float * lse;
    const ConstHeads & d_out;
    const Heads & dq;
    const Heads & dk;
    const Heads & dv;
    bool accumulate;
};

// What thread ith of nth does.
std::vector<BackwardWork> backward_work(const AttentionShape & shape, const BackwardParts & parts, int ith, int nth);

}  // namespace ggtune::kernels::detail
