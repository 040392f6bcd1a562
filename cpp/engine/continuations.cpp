#include "engine/continuations.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/softmax.h"

namespace ggtune {

namespace {

constexpr int64_t kMicroBatchTokens = 512;
constexpr int64_t kLogitBytes = 128 << 20;  // held at once; llama.cpp keeps those of a whole batch

int64_t rows_at_once(const Model & model) {
    return std::clamp<int64_t>(kLogitBytes / (4 * static_cast<int64_t>(model.n_vocab())), 32, kMicroBatchTokens);
}

Decoder::Options exact_options(int64_t n_tokens, int64_t n_sequences, int threads) {
    Decoder::Options options{n_tokens, kMicroBatchTokens, n_sequences, threads};
    options.exact = true;
    return options;
}

}  // namespace

ContinuationScorer::ContinuationScorer(Model & model, const std::vector<std::pair<std::string, float>> & adapters,
                                       int64_t n_tokens, int64_t n_sequences, int threads)
    : decoder_(model, adapters, exact_options(n_tokens, n_sequences, threads)),
      n_tokens_max_(n_tokens),
      n_sequences_max_(n_sequences) {}

void ContinuationScorer::check(const std::vector<Continuations> & texts) const {
    size_t n_tokens = 0;
    size_t n_ends = 0;
    for (const Continuations & text : texts) {
        if (text.prefix.empty() || text.ends.empty()) {
            throw Error("a text to continue needs at least one token and one continuation");
        }
        n_tokens += text.prefix.size();
        n_ends += text.ends.size();
        for (const std::vector<int32_t> & end : text.ends) {
            if (end.empty()) {
                throw Error("a continuation is empty");
            }
            n_tokens += end.size() - 1;  // nothing is asked behind its last token
        }
        decoder_.model.check_tokens(text.prefix);
        for (const std::vector<int32_t> & end : text.ends) {
            decoder_.model.check_tokens(end);
        }
    }
    if (static_cast<int64_t>(n_tokens) > n_tokens_max_ || static_cast<int64_t>(n_ends) > n_sequences_max_) {
        throw Error(std::to_string(n_ends) + " continuations, " + std::to_string(n_tokens) +
                    " tokens with what is before them, don't fit the context of " + std::to_string(n_sequences_max_) +
                    " and " + std::to_string(n_tokens_max_));
    }
}

void ContinuationScorer::decode(TokenBatch & batch, std::vector<Target> & targets) {
    if (batch.size() > 0) {
        decoder_.decode(batch);
    }
    for (const Target & target : targets) {
        *target.log_prob = static_cast<float>(
            kernels::log_probability(decoder_.logits(target.row), decoder_.model.n_vocab(), target.token));
    }
    batch.clear();
    targets.clear();
}

std::vector<std::vector<std::vector<float>>> ContinuationScorer::log_probs(const std::vector<Continuations> & texts) {
    check(texts);
    std::vector<std::vector<std::vector<float>>> result;
    for (const Continuations & text : texts) {
        result.emplace_back();
        for (const std::vector<int32_t> & end : text.ends) {
            result.back().emplace_back(end.size());
        }
    }
    decoder_.clear();
    TokenBatch batch(n_tokens_max_);
    std::vector<Target> targets;
    const int64_t most_rows = rows_at_once(decoder_.model);
    int32_t sequence = 0;
    std::vector<int32_t> first;  // sequence of each text's first end
    for (size_t k = 0; k < texts.size(); ++k) {
        if (static_cast<int64_t>(targets.size()) + static_cast<int64_t>(texts[k].ends.size()) > most_rows) {
            decode(batch, targets);
        }
        const std::vector<int32_t> & prefix = texts[k].prefix;
        for (size_t at = 0; at < prefix.size(); ++at) {
            batch.add(prefix[at], static_cast<int64_t>(at), sequence, at + 1 == prefix.size());
        }
        for (size_t i = 0; i < texts[k].ends.size(); ++i) {
            targets.push_back({batch.size() - 1, texts[k].ends[i][0], &result[k][i][0]});
        }
        first.push_back(sequence);
        sequence += static_cast<int32_t>(texts[k].ends.size());
    }
    decode(batch, targets);
    for (size_t k = 0; k < texts.size(); ++k) {
        for (size_t i = 1; i < texts[k].ends.size(); ++i) {
            decoder_.copy(first[k], first[k] + static_cast<int32_t>(i));
        }
    }
    for (size_t k = 0; k < texts.size(); ++k) {
        for (size_t i = 0; i < texts[k].ends.size(); ++i) {
            const std::vector<int32_t> & end = texts[k].ends[i];
            for (size_t at = 0; at + 1 < end.size(); ++at) {
                if (batch.size() >= most_rows) {
                    decode(batch, targets);
                }
                targets.push_back({batch.size(), end[at + 1], &result[k][i][at + 1]});
                batch.add(end[at], static_cast<int64_t>(texts[k].prefix.size() + at),
                          first[k] + static_cast<int32_t>(i), true);
            }
        }
    }
    decode(batch, targets);
    return result;
}

}  // namespace ggtune
