#include "engine/scorer.h"

#include <algorithm>

#include "base/error.h"

namespace ggtune {

namespace {

constexpr int64_t kMicroBatchTokens = 512;

int32_t most_probable(const float * logits, int32_t n_vocab) {
    return static_cast<int32_t>(std::max_element(logits, logits + n_vocab) - logits);
}

}  // namespace

Scorer::Scorer(Model & model, const std::vector<std::pair<std::string, float>> & adapters, int64_t n_tokens,
               int64_t n_sequences, int threads)
    : decoder_(model, adapters, {n_tokens, kMicroBatchTokens, n_sequences, threads, nullptr, nullptr}),
      n_tokens_max_(n_tokens),
      n_sequences_max_(n_sequences) {}

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

std::vector<std::vector<int32_t>> Scorer::greedy(const std::vector<std::vector<int32_t>> & prompts,
                                                 int64_t max_tokens) {
    int64_t n_tokens = 0;
    for (const std::vector<int32_t> & prompt : prompts) {
        if (prompt.empty()) {
            throw Error("a prompt is empty");
        }
        n_tokens += static_cast<int64_t>(prompt.size()) + max_tokens;
    }
    if (static_cast<int64_t>(prompts.size()) > n_sequences_max_ || n_tokens > n_tokens_max_) {
        throw Error(std::to_string(prompts.size()) + " prompts and their answers of up to " +
                    std::to_string(max_tokens) + " tokens don't fit the context of " + std::to_string(n_tokens_max_));
    }
    std::vector<std::vector<int32_t>> answers(prompts.size());
    if (prompts.empty() || max_tokens < 1) {
        return answers;
    }
    decoder_.clear();
    TokenBatch batch(n_tokens_max_);
    std::vector<size_t> active;  // prompts whose last row is in the batch, in its order
    std::vector<int32_t> last;   // those rows
    for (size_t i = 0; i < prompts.size(); ++i) {
        for (size_t at = 0; at < prompts[i].size(); ++at) {
            batch.add(prompts[i][at], static_cast<int64_t>(at), static_cast<int32_t>(i), at + 1 == prompts[i].size());
        }
        active.push_back(i);
        last.push_back(batch.size() - 1);
    }
    while (!active.empty()) {
        decoder_.decode(batch);
        std::vector<int32_t> chosen;
        for (const int32_t row : last) {
            chosen.push_back(most_probable(decoder_.logits(row), n_vocab()));
        }
        batch.clear();
        last.clear();
        std::vector<size_t> still;
        for (size_t k = 0; k < active.size(); ++k) {
            std::vector<int32_t> & answer = answers[active[k]];
            answer.push_back(chosen[k]);
            if (llama_vocab_is_eog(&decoder_.model.vocab(), chosen[k]) ||
                static_cast<int64_t>(answer.size()) == max_tokens) {
                continue;
            }
            const size_t position = prompts[active[k]].size() + answer.size() - 1;
            batch.add(chosen[k], static_cast<int64_t>(position), static_cast<int32_t>(active[k]), true);
            last.push_back(batch.size() - 1);
            still.push_back(active[k]);
        }
        active = std::move(still);
    }
    return answers;
}

}  // namespace ggtune
