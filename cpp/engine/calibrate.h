// How long a graph will take on this machine, without the memory and the weights that it needs.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "engine/executor.h"

namespace ggtune {

// What certain I32 inputs hold, where the time of a node depends on it; other integers and weights are zeros.
using InputValues = std::unordered_map<const ggml_tensor *, const std::vector<int32_t> *>;

// Sum of the seconds of all nodes. Each kind of node (operation, shapes, types) is run alone, a short one a few times,
// and the best counts for all of its kind: of equal layers one is computed. Raises Error where there is no memory for
// a node, Interrupted.
double measure_seconds(Executor & executor, ggml_cgraph * graph, const InputValues & inputs);

}  // namespace ggtune
