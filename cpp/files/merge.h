// Merging LoRA adapters into a GGUF file, one tensor after another.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "files/layer_input.h"
#include "files/quantize.h"
#include "kernels/grid.h"

namespace ggtune {

struct MergeOptions {
    // (path, user's scale) of each adapter; their products are added up.
    std::vector<std::pair<std::string, float>> adapters;
    // Type of the adapted tensors in the output, by ggml's name; none: each keeps its own.
    std::optional<std::string> outtype;
    // Types of single adapted tensors, by name; they win over outtype.
    std::map<std::string, std::string> types;
    // Of tensors whose products are multiplied with factors before an adapter's are added (Linear::scale): the names of
    // those, one factor for each matrix. What is merged is divided by them.
    std::map<std::string, std::string> scales;
    // How a tensor that keeps a quantized type or BF16 is rounded.
    kernels::Rounding rounding = kernels::Rounding::unbiased;
    uint64_t seed = 0;  // of the rounding
    // What the linears of the base with the adapters are multiplied with while it reads a text such as those that the
    // merged model will read (inputs_of_sample() in engine/layer_inputs.h): scales are fitted so that the outputs on it
    // suffer least (kernels/scale_fit.h), but for those of stacks, of whose inputs each matrix reads a few. Empty: no
    // such regard.
    VisitLayerInputs visit_inputs;
    // Keys to set in the output, as strings. They win over the names that merge() sets by itself.
    std::map<std::string, std::string> metadata;
    int threads = 1;
};

// What became of one adapted tensor.
struct MergedTensor {
    std::string name;
    ggml_type from;
    ggml_type to;
    int64_t n_weights;
    int64_t n_moved;      // codes that changed, where it stayed on its grid
    double change;        // sum of the squares of what the adapters add
    double variance;      // sum of the expected squares of the rounding error, where it stayed on its grid
    bool fitted = false;  // its scales, to the inputs
};

struct MergeResult {
    int64_t n_tensors = 0;         // tensors in the file
    int64_t n_merged_tensors = 0;  // of them adapted
    int64_t n_changed_rows = 0;    // rows written anew; the others are copied as they are
    int64_t n_bytes = 0;           // size of the output
    std::vector<MergedTensor> tensors;
    std::string not_fitted;  // why the model could not be run for its layers' inputs, "" where it could
};

// Writes `base` with W + scale * alpha / rank * B A (Hu et al. 2021, arXiv:2106.09685) in place of each adapted W to
// `output`, of a stack (experts) in each of its matrices. Of a tensor that keeps a type with a grid (kernels/grid.h)
// the codes are moved; one that keeps BF16 is rounded without bias likewise; where its type has no grid (IQ1 to IQ3,
// ...) it takes the next one that has. With another type the sum is computed in f32 from the dequantized rows and
// quantized by ggml. With inputs, scales are fitted afterwards. The same seed gives the same bytes with any number of
// threads. Every other byte of tensors and keys is the base's, but for general.name, general.finetune,
// general.base_model.*, general.dataset.count where the metadata names datasets, and general.file_type where the
// outtype changes what most weights are. Memory: a chunk of rows per thread, and A and B of one tensor; with inputs
// also that of the model that reads them. Written beside `output` and renamed. Raises ModelFileError for files that
// don't fit each other, Error otherwise; nothing is left behind then.
MergeResult merge(const std::string & base, const std::string & output, const MergeOptions & options,
                  const CheckInterrupt & check_interrupt);

}  // namespace ggtune
