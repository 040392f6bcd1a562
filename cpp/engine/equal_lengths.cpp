#include "engine/equal_lengths.h"

#include <algorithm>
#include <limits>

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

// Ends of the parts of sequences that fall in length, by dynamic programming over where the last part begins.
std::vector<size_t> ends_of_parts(const std::vector<Sequence> & falling, int64_t most_rows, size_t most_sequences) {
    const size_t n = falling.size();
    std::vector<int64_t> cost(n + 1, std::numeric_limits<int64_t>::max());
    std::vector<size_t> begin_of(n + 1, 0);
    cost[0] = 0;
    for (size_t end = 1; end <= n; end++) {
        for (size_t begin = end - std::min(end, most_sequences); begin < end; begin++) {
            const int64_t rows = static_cast<int64_t>(end - begin) * falling[begin].length;
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

std::vector<EqualLengths> split_to_equal_lengths(const MicroBatch & batch, size_t most_sequences) {
    std::vector<Sequence> sequences = sequences_with_weights(batch);
    std::stable_sort(sequences.begin(), sequences.end(),
                     [](const Sequence & a, const Sequence & b) { return a.length > b.length; });
    std::vector<EqualLengths> parts;
    size_t begin = 0;
    for (const size_t end : ends_of_parts(sequences, batch.n_tokens, most_sequences)) {
        EqualLengths part;
        const int64_t length = sequences[begin].length;
        for (size_t s = begin; s < end; s++) {
            for (int64_t i = 0; i < length; i++) {
                const int64_t row = sequences[s].begin + i;
                const bool real = i < sequences[s].length;
                part.rows.add(batch.tokens[real ? row : sequences[s].begin], static_cast<int32_t>(i),
                              static_cast<int32_t>(s - begin), real ? batch.targets[row] : 0,
                              real ? batch.weights[row] : 0.0f);
                part.origin.push_back(real ? row : -1);
            }
        }
        parts.push_back(std::move(part));
        begin = end;
    }
    return parts;
}

}  // namespace ggtune
