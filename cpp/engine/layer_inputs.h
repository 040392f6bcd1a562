// What the linears of a model are multiplied with while it reads a text.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "files/layer_input.h"

namespace ggtune {

// A text such as those that the model is to read, at most a few thousand tokens. Rows of one sequence are contiguous
// and in order, positions from 0.
struct TextSample {
    std::vector<int32_t> tokens;
    std::vector<int32_t> sequences;
};

// Loads the model, runs it with the adapters (LoRA files with their scales) over the sample in one micro-batch, and
// hands on what its linears read.
VisitLayerInputs inputs_of_sample(const std::string & model_path,
                                  const std::vector<std::pair<std::string, float>> & adapters,
                                  const TextSample & sample, int threads);

}  // namespace ggtune
