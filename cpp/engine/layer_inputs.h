// What the linears of a model are multiplied with while it reads a text.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "engine/model.h"

namespace ggtune {

// Rows of one sequence are contiguous and in order, positions from 0.
struct TextSample {
    std::vector<int32_t> tokens;
    std::vector<int32_t> sequences;
};

// One input, shared by all linears that read it one after another.
struct LayerInput {
    const float * x;  // [n_tokens, n_in]
    int64_t n_tokens;
    int64_t n_in;
    bool is_new;  // not the one of the call before
};

// Runs the model with the adapters (LoRA files with their scales) over the sample in one micro-batch, and calls
// visit(weight's name, input) for each product with a weight that wanted() names, in the order of the graph.
// Raises Error where llama.cpp can't, and what visit raises.
void visit_layer_inputs(Model & model, const std::vector<std::pair<std::string, float>> & adapters,
                        const TextSample & sample, int threads, const std::function<bool(const char *)> & wanted,
                        const std::function<void(const char *, const LayerInput &)> & visit);

}  // namespace ggtune
