// Merging LoRA adapters into a GGUF file, one tensor after another.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/quantize.h"

namespace ggtune {

struct MergeOptions {
    // (path, user's scale) of each adapter; their products are added up.
    std::vector<std::pair<std::string, float>> adapters;
    // Type of the adapted tensors in the output, by ggml's name; none: each keeps its own.
    std::optional<std::string> outtype;
    // Keys to set in the output, as strings. They win over the names that merge() sets by itself.
    std::map<std::string, std::string> metadata;
    int threads = 1;
};

struct MergeResult {
    int64_t n_tensors = 0;         // tensors in the file
    int64_t n_merged_tensors = 0;  // of them adapted
    int64_t n_changed_rows = 0;    // rows written anew; the others are copied as they are
    int64_t n_bytes = 0;           // size of the output
};

// Writes `base` with W + scale * alpha / rank * B A (Hu et al. 2021, arXiv:2106.09685) in place of each adapted W to
// `output`: computed in f32 from the dequantized rows, quantized by ggml. Every other byte of tensors and keys is the
// base's, but for general.name, general.finetune, general.base_model.*, general.dataset.count where the metadata names
// datasets, and general.file_type where the outtype changes what most weights are.
// Memory: a chunk of rows per thread, and A and B of one tensor. Written beside `output` and renamed.
// Raises ModelFileError for files that don't fit each other, Error otherwise; nothing is left behind then.
MergeResult merge(const std::string & base, const std::string & output, const MergeOptions & options,
                  const CheckInterrupt & check_interrupt);

}  // namespace ggtune
