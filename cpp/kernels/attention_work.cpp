#include "kernels/attention_work.h"

#include <algorithm>
#include <limits>

namespace ggtune::kernels::detail {
namespace {

// Products per pair: scores and d_weights, then one each for dq, dk, dv.
constexpr double kProductsAll = 5.0;
constexpr double kProductsKeys = 4.0;
constexpr double kProductsQueries = 3.0;

size_t least_loaded(const std::vector<double> & loads) {
    return static_cast<size_t>(std::min_element(loads.begin(), loads.end()) - loads.begin());
}

// How many of the pieces (most expensive first) stay whole so that the slowest of nth threads is fastest.
size_t count_whole(const std::vector<BackwardWork> & pieces, double total, size_t nth) {
    std::vector<double> loads(nth);
    constexpr double kSplitCost = (kProductsKeys + kProductsQueries) / kProductsAll;
    double slowest = 0.0;
    double whole = 0.0;
    double best = kSplitCost * total / static_cast<double>(nth);
    size_t best_count = 0;
    for (size_t i = 0; i < pieces.size(); ++i) {
        double & load = loads[least_loaded(loads)];
        load += pieces[i].cost;
        slowest = std::max(slowest, load);
        whole += pieces[i].cost;
        const double estimate = std::max(slowest, (whole + kSplitCost * (total - whole)) / static_cast<double>(nth));
        if (estimate <= best) {
            best = estimate;
            best_count = i + 1;
        }
    }
    return best_count;
}

void split_piece(const AttentionShape & shape, const BackwardParts & parts, const BackwardWork & piece,
                 std::vector<BackwardWork> & list) {
    const int64_t group = shape.n_heads / shape.n_heads_kv;
    const Range run = piece.run;
    for (int64_t begin = run.begin; begin < run.end; begin += parts.keys) {
        const Range keys = {begin, std::min(begin + parts.keys, run.end)};
        int64_t pairs = 0;
        for (int64_t t = run.begin; t < run.end; ++t) {
            pairs += std::max<int64_t>(
                0, std::min<int64_t>(shape.end_key[t], keys.end) - std::max<int64_t>(shape.first_key[t], keys.begin));
        }
        list.push_back({Output::keys, piece.head_kv, 0, run, keys, kProductsKeys * static_cast<double>(pairs * group)});
    }
    for (int64_t h = piece.head_kv * group; h < (piece.head_kv + 1) * group; ++h) {
        for (int64_t begin = run.begin; begin < run.end; begin += parts.queries) {
            const Range queries = {begin, std::min(begin + parts.queries, run.end)};
            list.push_back({Output::queries, piece.head_kv, h, run, queries,
                            kProductsQueries * static_cast<double>(count_pairs(shape, queries))});
        }
    }
}

bool more_expensive(const BackwardWork & a, const BackwardWork & b) {
    return a.cost > b.cost;
}

// The work of all threads in the order in which it is dealt out.
std::vector<BackwardWork> list_work(const AttentionShape & shape, const BackwardParts & parts, int nth) {
    std::vector<BackwardWork> pieces;
    double total = 0.0;
    const int64_t group = shape.n_heads / shape.n_heads_kv;
    for (const Range run : independent_runs(shape)) {
        const double cost = kProductsAll * static_cast<double>(group * count_pairs(shape, run));
        for (int64_t head_kv = 0; head_kv < shape.n_heads_kv; ++head_kv) {
            pieces.push_back({Output::all, head_kv, 0, run, run, cost});
            total += cost;
        }
    }
    std::stable_sort(pieces.begin(), pieces.end(), more_expensive);
    const size_t n_whole = count_whole(pieces, total, static_cast<size_t>(nth));
    std::vector<BackwardWork> divided;
    for (size_t i = n_whole; i < pieces.size(); ++i) {
        split_piece(shape, parts, pieces[i], divided);
    }
    std::stable_sort(divided.begin(), divided.end(), more_expensive);
    pieces.resize(n_whole);
    pieces.insert(pieces.end(), divided.begin(), divided.end());
    return pieces;
}

}  // namespace

std::vector<Range> independent_runs(const AttentionShape & shape) {
    const int64_t n = shape.n_tokens;
    // first_needed[t]: the first key that a token from t on sees
    std::vector<int32_t> first_needed(static_cast<size_t>(n) + 1, std::numeric_limits<int32_t>::max());
    for (int64_t t = n - 1; t >= 0; --t) {
        const bool sees = shape.first_key[t] < shape.end_key[t];
        first_needed[t] = std::min(first_needed[t + 1], sees ? shape.first_key[t] : first_needed[t + 1]);
    }
    std::vector<Range> runs;
    int64_t begin = 0;
    int64_t end_needed = 0;
    for (int64_t t = 0; t < n; ++t) {
        if (shape.first_key[t] < shape.end_key[t]) {
            end_needed = std::max<int64_t>(end_needed, shape.end_key[t]);
        }
        if (end_needed <= t + 1 && first_needed[t + 1] > t) {
            if (!runs.empty() && t + 1 - runs.back().begin <= kShortRun) {
                runs.back().end = t + 1;
            } else {
                runs.push_back({begin, t + 1});
            }
            begin = t + 1;
        }
    }
    return runs;
}

int64_t count_pairs(const AttentionShape & shape, Range tokens) {
    int64_t pairs = 0;
    for (int64_t t = tokens.begin; t < tokens.end; ++t) {
        pairs += std::max(0, shape.end_key[t] - shape.first_key[t]);
    }
    return pairs;
}

Range visible_keys(const AttentionShape & shape, Range tokens) {
    Range keys = {shape.n_tokens, 0};
    for (int64_t t = tokens.begin; t < tokens.end; ++t) {
        if (shape.first_key[t] < shape.end_key[t]) {
            keys.begin = std::min<int64_t>(keys.begin, shape.first_key[t]);
            keys.end = std::max<int64_t>(keys.end, shape.end_key[t]);
        }
    }
    return keys.begin < keys.end ? keys : Range{0, 0};
}

std::vector<ForwardWork> forward_work(const AttentionShape & shape, int64_t query_tile, int ith, int nth) {
    // One line of work: runs, in them heads of keys, tiles of queries, heads of queries. Each thread takes a stretch.
    const int64_t group = shape.n_heads / shape.n_heads_kv;
    // The queries themselves cost something, too: copies, and the register blocks on the diagonal.
    const auto cost_of = [&](Range queries) {
        return static_cast<double>(count_pairs(shape, queries) + 16 * queries.size());
    };
    const double total = cost_of({0, shape.n_tokens}) * static_cast<double>(shape.n_heads);
    const auto is_mine = [&](double position) { return static_cast<int>(position * nth / total) == ith; };
    std::vector<ForwardWork> list;
    double position = 0.0;
    for (const Range run : independent_runs(shape)) {
        for (int64_t first_head = 0; first_head < shape.n_heads; first_head += group) {
            for (int64_t begin = run.begin; begin < run.end; begin += query_tile) {
                const Range queries = {begin, std::min(begin + query_tile, run.end)};
                const double cost = cost_of(queries);
                Range mine = {first_head, first_head};
                for (int64_t h = first_head; h < first_head + group; ++h) {
                    if (is_mine(position + 0.5 * cost)) {
                        mine = {mine.size() == 0 ? h : mine.begin, h + 1};
                    }
                    position += cost;
                }
                if (mine.size() > 0) {
                    list.push_back({run, mine, queries});
                }
            }
        }
    }
    return list;
}

std::vector<BackwardWork> backward_work(const AttentionShape & shape, const BackwardParts & parts, int ith, int nth) {
    std::vector<BackwardWork> mine;
    std::vector<double> loads(static_cast<size_t>(nth));
    for (const BackwardWork & work : list_work(shape, parts, nth)) {
        const size_t owner = least_loaded(loads);
        loads[owner] += work.cost;
        if (owner == static_cast<size_t>(ith)) {
            mine.push_back(work);
        }
    }
    return mine;
}

}  // namespace ggtune::kernels::detail
