// Which weights of a model can carry a LoRA adapter: those of its blocks that llama.cpp applies one to.
#pragma once

#include <string>
#include <vector>

#include "engine/model.h"

namespace ggtune {

// Asks the model's own graph: it is built once with a pair for every matrix and stack of matrices of the blocks, and
// the linears are those whose pair is in it. Names alone would not do: an architecture may multiply without
// build_lora_mm, look a matrix's rows up, or leave layers out (those that draft for the next token). Where llama.cpp
// can't build a graph for generation (no decoder, a key that is missing) the linears are the matrices of the names that
// all architectures have in common. The model's header is enough; of a vocabulary alone there are none. In model order.
std::vector<Linear> find_linears(Model & model);

}  // namespace ggtune
