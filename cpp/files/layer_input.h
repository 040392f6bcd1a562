// What the linears of a model are multiplied with, as whoever runs the model hands it on.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace ggtune {

// One input, shared by all linears that read it one after another.
struct LayerInput {
    const float * x;  // [n_tokens, n_in]
    int64_t n_tokens;
    int64_t n_in;
};

// Calls visit(weight's name, input) for each product with a weight that wanted() names, in the order of the graph.
// Raises what visit raises; returns why the model could not be run, "" where it could.
using VisitLayerInputs =
    std::function<std::string(const std::function<bool(const char *)> & wanted,
                              const std::function<void(const char *, const LayerInput &)> & visit)>;

}  // namespace ggtune
