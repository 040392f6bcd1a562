// Logits of chosen positions of several sequences at once.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/decoder.h"
#include "engine/model.h"

namespace ggtune {

class Scorer {
  public:
    // adapters: LoRA files with their scales; may be empty. n_tokens: the most that the sequences of one call have
    // together; n_sequences: the most of them. Raises as Decoder.
    Scorer(Model & model, const std::vector<std::pair<std::string, float>> & adapters, int64_t n_tokens,
           int64_t n_sequences, int threads);

    // Rows of one sequence are contiguous and in order, positions from 0. outputs: [n_tokens], which rows to return.
    // logits: [number of outputs, n_vocab], written in the order of the rows.
    void logits(const std::vector<int32_t> & tokens, const std::vector<int32_t> & sequences,
                const std::vector<uint8_t> & outputs, float * logits);

    int32_t n_vocab() const { return decoder_.model.n_vocab(); }

  private:
    Decoder decoder_;
    int64_t n_tokens_max_;
};

}  // namespace ggtune
