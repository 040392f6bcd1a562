#include "engine/scorer.h"

#include <algorithm>

#include "base/error.h"

namespace ggtune {

namespace {

constexpr int64_t kMicroBatchTokens = 512;

}  // namespace

Scorer::Scorer(Model & model, const std::vector<std::pair<std::string, float>> & adapters, int64_t n_tokens,
               int64_t n_sequences, int threads)
    : decoder_(model, adapters, {n_tokens, kMicroBatchTokens, n_sequences, threads}), n_tokens_max_(n_tokens) {}

void Scorer::logits(const std::vector<int32_t> & tokens, const std::vector<int32_t> & sequences,
                    const std::vector<uint8_t> & outputs, float * logits) {
    TokenBatch batch(n_tokens_max_);
    batch.add(tokens, sequences, outputs);
    decoder_.clear();
    decoder_.decode(batch);
    for (size_t i = 0; i < tokens.size(); ++i) {
        if (outputs[i] != 0) {
            const float * row = decoder_.logits(static_cast<int32_t>(i));
            logits = std::copy(row, row + n_vocab(), logits);
        }
    }
}

}  // namespace ggtune
