// How probable a model finds given continuations of a text; what several have in front of them is computed once.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/decoder.h"
#include "engine/model.h"

namespace ggtune {

// Texts that begin alike, as tokens.
struct Continuations {
    std::vector<int32_t> prefix;
    std::vector<std::vector<int32_t>> ends;
};

class ContinuationScorer {
  public:
    // adapters: LoRA files with their scales; may be empty. n_tokens: the most that one call has, each prefix counted
    // once; n_sequences: the most continuations in one call. Raises as Decoder.
    ContinuationScorer(Model & model, const std::vector<std::pair<std::string, float>> & adapters, int64_t n_tokens,
                       int64_t n_sequences, int threads);

    // log p(end[i] | prefix, end[:i]) for each end of each text, in their order. Raises Error for a prefix or an end
    // without a token and for more than there is room for.
    std::vector<std::vector<std::vector<float>>> log_probs(const std::vector<Continuations> & texts);

  private:
    // A row of the batch to come whose logits say how probable a token is.
    struct Target {
        int32_t row;
        int32_t token;
        float * log_prob;
    };
    void decode(TokenBatch & batch, std::vector<Target> & targets);
    void check(const std::vector<Continuations> & texts) const;

    Decoder decoder_;
    int64_t n_tokens_max_;
    int64_t n_sequences_max_;
};

}  // namespace ggtune
