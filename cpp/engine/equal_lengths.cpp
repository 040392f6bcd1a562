#include "engine/equal_lengths.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

namespace ggtune {

namespace {

// A graph of its own costs as much time as so many rows more in another one: its products have fewer rows for each
// weight that is unpacked.
constexpr int64_t kRowsPerGraph = 64;

struct Sequence {
    int64_t begin;
    int64_t length;
};

std::vector<Sequence> sequences_with_weights(const MicroBatch & batch) {
    std::vector<Sequence> found;
    for (int64_t begin = 0; begin < batch.n_tokens;) {
        int64_t end = begin;
        bool counts = false;
        while (end < batch.n_tokens && batch.sequences[end] == batch.sequences[begin]) {
            counts = counts || batch.weights[end] != 0.0f;
            end++;
        }
        if (counts) {
            found.push_back({begin, end - begin});
        }
        begin = end;
    }
    return found;
}

// Ends of the parts of sequences whose lengths fall, by dynamic programming over where the last part begins.
std::vector<size_t> ends_of_parts(const std::vector<int64_t> & falling, int64_t most_rows, size_t most_sequences) {
    const size_t n = falling.size();
    std::vector<int64_t> cost(n + 1, std::numeric_limits<int64_t>::max());
    std::vector<size_t> begin_of(n + 1, 0);
    cost[0] = 0;
    for (size_t end = 1; end <= n; end++) {
        for (size_t begin = end - std::min(end, most_sequences); begin < end; begin++) {
            const int64_t rows = static_cast<int64_t>(end - begin) * falling[begin];
            if ((rows <= most_rows || end - begin == 1) && cost[begin] + rows + kRowsPerGraph < cost[end]) {
                cost[end] = cost[begin] + rows + kRowsPerGraph;
                begin_of[end] = begin;
            }
        }
    }
    std::vector<size_t> ends;
    for (size_t end = n; end > 0; end = begin_of[end]) {
        ends.insert(ends.begin(), end);
    }
    return ends;
}

}  // namespace

BatchRows batch_of_shape(int64_t n_tokens, int64_t n_targets, int64_t n_sequences, bool equal_lengths) {
    BatchRows batch;
    const int64_t per_sequence = (n_tokens + n_sequences - 1) / n_sequences;
    n_tokens = equal_lengths ? per_sequence * n_sequences : n_tokens;
    for (int64_t i = 0; i < n_tokens; i++) {
        batch.add(0, i % per_sequence, i / per_sequence, 0, i >= n_tokens - n_targets ? 1.0f : 0.0f);
    }
    return batch;
}

BatchRows copy_of(const MicroBatch & from) {
    BatchRows batch;
    for (int64_t i = 0; i < from.n_tokens; i++) {
        batch.add(from.tokens[i], from.positions[i], from.sequences[i], from.targets[i], from.weights[i]);
    }
    return batch;
}

std::vector<std::vector<size_t>> graphs_of_equal_lengths(const std::vector<int64_t> & n_rows, int64_t most_rows,
                                                         size_t most_sequences) {
    std::vector<size_t> order(n_rows.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return n_rows[a] > n_rows[b]; });
    std::vector<int64_t> falling;
    for (const size_t i : order) {
        falling.push_back(n_rows[i]);
    }
    std::vector<std::vector<size_t>> graphs;
    size_t begin = 0;
    for (const size_t end : ends_of_parts(falling, most_rows, most_sequences)) {
        graphs.emplace_back(order.begin() + begin, order.begin() + end);
        begin = end;
    }
    return graphs;
}

std::vector<EqualLengths> split_to_equal_lengths(const MicroBatch & batch, size_t most_sequences) {
    const std::vector<Sequence> sequences = sequences_with_weights(batch);
    std::vector<int64_t> n_rows;
    for (const Sequence & sequence : sequences) {
        n_rows.push_back(sequence.length);
    }
    std::vector<EqualLengths> parts;
    for (const std::vector<size_t> & graph : graphs_of_equal_lengths(n_rows, batch.n_tokens, most_sequences)) {
        EqualLengths part;
        const int64_t length = n_rows[graph.front()];
        for (size_t s = 0; s < graph.size(); s++) {
            const Sequence & sequence = sequences[graph[s]];
            for (int64_t i = 0; i < length; i++) {
                const int64_t row = sequence.begin + i;
                const bool real = i < sequence.length;
                part.rows.add(batch.tokens[real ? row : sequence.begin], static_cast<int32_t>(i),
                              static_cast<int32_t>(s), real ? batch.targets[row] : 0, real ? batch.weights[row] : 0.0f);
                part.origin.push_back(real ? row : -1);
            }
        }
        parts.push_back(std::move(part));
    }
    return parts;
}

}  // namespace ggtune
