// What llama.cpp asserts of a model or an adapter, checked beforehand on the header alone.
//
// Only what would abort the process (or read out of bounds) is checked here; where llama.cpp itself throws, as it does
// for tensors of a wrong shape, its exception serves.
#pragma once

#include <string>
#include <vector>

#include "files/gguf_file.h"

namespace ggtune {

// One adapted tensor of the base: A and B of the adapter file, as indices into its tensors.
// ne: A = [n_in, rank(, n_expert)], B = [rank, n_out(, n_expert)]. Of an embedding A = [rank, n_vocab] and
// B = [rank, n_embd] ("flipped": llama.cpp looks rows of A up by token).
struct LoraPair {
    size_t base;
    size_t a;
    size_t b;
    int64_t rank;
    bool flipped;
};

// The file holds one whole text model (with `vocab_only`: at least its tokenizer) that llama.cpp can load.
// Raises ModelFileError.
void check_model(const GgufFile & file, bool vocab_only = false);

// The file is not one part of a split model. Raises ModelFileError that names the tool which joins the parts.
void check_not_split(const GgufFile & file);

// The parts of a head that a multi-dimensional RoPE rotates are there and fit the head; for the models that have such a
// RoPE, which only llama.cpp knows. Raises ModelFileError.
void check_rope_sections(const GgufFile & file);

// The file is a LoRA adapter for `base`: type, architecture, every tensor one of a complete pair whose shapes fit a
// matrix of the base. Returns the pairs in the base's tensor order. Raises ModelFileError.
std::vector<LoraPair> check_adapter(const GgufFile & adapter, const GgufFile & base);

// adapter.lora.alpha / rank as llama.cpp scales: an alpha of 0 (or none) stands for no scaling.
float lora_scale(const GgufFile & adapter, int64_t rank);

}  // namespace ggtune
