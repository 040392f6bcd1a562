// Micro-batches for layers that go through all sequences side by side, one token of each at a time (recurrent ones).
#pragma once

#include <cstdint>
#include <vector>

#include "engine/training_graph.h"

namespace ggtune {

// A micro-batch that owns its rows.
struct BatchRows {
    std::vector<int32_t> tokens, positions, sequences, targets;
    std::vector<float> weights;

    void add(int32_t token, int32_t position, int32_t sequence, int32_t target, float weight) {
        tokens.push_back(token);
        positions.push_back(position);
        sequences.push_back(sequence);
        targets.push_back(target);
        weights.push_back(weight);
    }
    int64_t n_tokens() const { return static_cast<int64_t>(tokens.size()); }
    MicroBatch view() const {
        return {n_tokens(), tokens.data(), positions.data(), sequences.data(), targets.data(), weights.data()};
    }
};

// A made-up micro-batch of a given shape, to build graphs from. equal_lengths: with as many rows more as all sequences
// need to be of one length.
BatchRows batch_of_shape(int64_t n_tokens, int64_t n_targets, int64_t n_sequences, bool equal_lengths);

BatchRows copy_of(const MicroBatch & from);

// Sequences of a micro-batch, filled up behind their ends to one length; what follows them has no weight, and nothing
// of what was there sees it.
struct EqualLengths {
    BatchRows rows;
    std::vector<int64_t> origin;  // of each row: its place in the micro-batch, or -1
};

// Shares out sequences of so many rows: the places in `n_rows` of those that go into one graph, the longest first. No
// graph of several has more than `most_rows` rows, those that are filled in counted, and none more sequences than that.
std::vector<std::vector<size_t>> graphs_of_equal_lengths(const std::vector<int64_t> & n_rows, int64_t most_rows,
                                                         size_t most_sequences);

// Shares out the sequences so that few rows are filled in and few graphs are needed; sequences without a weight are
// left out. No part has more rows than the micro-batch, or more than so many sequences.
std::vector<EqualLengths> split_to_equal_lengths(const MicroBatch & batch, size_t most_sequences);

}  // namespace ggtune
