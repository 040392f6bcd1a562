// Text generation and scoring through llama.cpp's public API.
#pragma once

#include <llama-cpp.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/adapter.h"
#include "engine/model.h"

namespace ggtune {

struct Sampling {
    float temperature = 0.0f;  // 0: the most probable token
    int top_k = 40;
    float top_p = 0.95f;
    uint32_t seed = 0;
};

llama_sampler_ptr make_sampler(const Sampling & sampling);

// Logits [n_vocab] of one row. Raises ModelFileError for values that are not numbers.
void check_logits(const Model & model, const float * logits);

class Generator {
  public:
    // context 0: the model's own, at most 4096. The adapter may be null; it and the model must outlive the generator.
    // Raises Error for an empty prompt or one that does not fit.
    Generator(Model & model, const std::vector<int32_t> & prompt, Adapter * adapter, int context, int threads,
              const Sampling & sampling);

    // The next token; empty at an end-of-generation token or at the full context.
    std::optional<int32_t> next();

    // Goes on with another prompt. What it starts with and is in the memory already stays there, where the memory's
    // kind allows to drop the rest alone; returns the number of those tokens. Raises as the constructor.
    int64_t restart(const std::vector<int32_t> & prompt);

  private:
    void check_prompt(const std::vector<int32_t> & prompt) const;

    Model & model_;
    llama_context_ptr ctx_;
    llama_sampler_ptr sampler_;
    std::vector<int32_t> pending_;  // tokens to be decoded before the next one can be sampled
    std::vector<int32_t> decoded_;  // tokens in the memory
    int64_t n_context_ = 0;
};

// log p(tokens[i + 1] | tokens[..i]), n - 1 values. adapter_path: a LoRA file, loaded by llama.cpp; may be empty.
std::vector<float> decode_log_probs(Model & model, const std::vector<int32_t> & tokens,
                                    const std::string & adapter_path, int threads);

}  // namespace ggtune
