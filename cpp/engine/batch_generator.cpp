#include "engine/batch_generator.h"

#include <algorithm>

#include "base/error.h"
#include "engine/inference.h"

namespace ggtune {

namespace {

constexpr int64_t kMicroBatchTokens = 512;

// Copies of a sequence need a memory whose cells are whole for each token, and none that was dropped.
bool can_share(const Model & model) {
    const llama_model & llama = model.llama();
    return !llama_model_is_recurrent(&llama) && !llama_model_is_hybrid(&llama) && llama_model_n_swa(&llama) == 0;
}

}  // namespace

BatchGenerator::BatchGenerator(Model & model, const std::vector<std::pair<std::string, float>> & adapters,
                               Adapter * live, const std::vector<int32_t> & prefix, const Options & options)
    : model_(model),
      options_(options),
      shares_prefix_(!prefix.empty() && can_share(model)),
      batch_(options.n_slots * options.context) {
    const auto most_sequences = static_cast<int64_t>(llama_max_parallel_sequences());
    if (options.context < 2 || options.n_slots < 1 || options.n_slots >= most_sequences) {
        throw Error("answers need a context of at least two tokens and 1 to " + std::to_string(most_sequences - 1) +
                    " slots");
    }
    prefix_ = prefix;
    model_.check_tokens(prefix_);
    model_.check_positions(options.context);
    ScaledLoras loras;
    for (const auto & [path, scale] : adapters) {
        loras_.push_back(load_lora(model, path));
        loras.emplace_back(loras_.back().get(), scale);
    }
    if (live != nullptr) {
        loras.emplace_back(live->lora(), 1.0f);
    }
    // Each sequence has a memory of its own: in a common one, every token would be held against all the others'.
    const int64_t n_sequences = options.n_slots + (shares_prefix_ ? 1 : 0);
    llama_context_params params = inference_params(n_sequences * options.context, options.threads);
    params.n_ubatch = static_cast<uint32_t>(std::min<int64_t>(params.n_ctx, kMicroBatchTokens));
    params.n_seq_max = static_cast<uint32_t>(n_sequences);
    params.kv_unified = false;
    ctx_ = make_context(model_, params, loras);
    slots_.resize(static_cast<size_t>(options.n_slots));
}

void BatchGenerator::add(const std::vector<int32_t> & prompt, int64_t max_tokens, const Sampling & sampling) {
    const auto n = static_cast<int64_t>(prompt.size());
    const std::string which = "prompt " + std::to_string(n_added_ + 1);
    if (prompt.empty()) {
        throw Error(which + " is empty");
    }
    if (max_tokens < 1 || n >= options_.context) {
        throw Error(which + ", of " + std::to_string(n) + " tokens, and an answer don't fit the context of " +
                    std::to_string(options_.context));
    }
    if (prompt.size() <= prefix_.size() || !std::equal(prefix_.begin(), prefix_.end(), prompt.begin())) {
        throw Error(which + " does not start with what all prompts are said to start with, or has nothing more");
    }
    model_.check_tokens(prompt);
    waiting_.push_back({n_added_++, prompt, std::min(max_tokens, options_.context - n), sampling});
}

std::vector<BatchGenerator::Step> BatchGenerator::step() {
    if (shares_prefix_ && !prefix_decoded_ && !waiting_.empty()) {
        decode_prefix();
    }
    batch_.clear();
    const auto n_slots = static_cast<int32_t>(slots_.size());
    for (int32_t i = 0; i < n_slots; ++i) {
        if (!slots_[static_cast<size_t>(i)].busy && !waiting_.empty()) {
            take_next(i);
        }
        if (slots_[static_cast<size_t>(i)].busy) {
            add_rows(i);
        }
    }
    std::vector<Step> steps;
    if (batch_.size() == 0) {
        return steps;
    }
    decode(model_, *ctx_, batch_.get());
    for (int32_t i = 0; i < n_slots; ++i) {
        Slot & slot = slots_[static_cast<size_t>(i)];
        if (!slot.busy) {
            continue;
        }
        slot.token = choose(slot);
        const bool at_end = llama_vocab_is_eog(&model_.vocab(), slot.token);
        slot.n_answered += at_end ? 0 : 1;
        steps.push_back({slot.request.number, slot.token, at_end});
        if (at_end || slot.n_answered == slot.request.max_tokens) {
            leave(i);
        }
    }
    return steps;
}

void BatchGenerator::end(int64_t prompt) {
    for (size_t i = 0; i < slots_.size(); ++i) {
        if (slots_[i].busy && slots_[i].request.number == prompt) {
            leave(static_cast<int32_t>(i));
        }
    }
    waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(),
                                  [&](const Request & request) { return request.number == prompt; }),
                   waiting_.end());
}

void BatchGenerator::decode_prefix() {
    batch_.clear();
    for (size_t at = 0; at < prefix_.size(); ++at) {
        batch_.add(prefix_[at], static_cast<int64_t>(at), prefix_sequence(), false);
    }
    decode(model_, *ctx_, batch_.get());
    prefix_decoded_ = true;
}

void BatchGenerator::take_next(int32_t i) {
    Slot & slot = slots_[static_cast<size_t>(i)];
    slot.request = std::move(waiting_.front());
    waiting_.pop_front();
    slot.busy = true;
    slot.n_decoded = slot.n_answered = 0;
    slot.sampler = slot.request.sampling.temperature > 0 ? make_sampler(slot.request.sampling) : nullptr;
    if (shares_prefix_) {
        llama_memory_seq_cp(memory(), prefix_sequence(), i, -1, -1);
        slot.n_decoded = static_cast<int64_t>(prefix_.size());
    }
}

// What of a prompt and its answer is not in the memory yet.
void BatchGenerator::add_rows(int32_t i) {
    Slot & slot = slots_[static_cast<size_t>(i)];
    const std::vector<int32_t> & prompt = slot.request.prompt;
    const auto n_prompt = static_cast<int64_t>(prompt.size());
    if (slot.n_answered > 0) {
        batch_.add(slot.token, slot.n_decoded++, i, true);
    }
    while (slot.n_decoded < n_prompt) {
        const int64_t at = slot.n_decoded++;
        batch_.add(prompt[static_cast<size_t>(at)], at, i, at + 1 == n_prompt);
    }
    slot.row = batch_.size() - 1;
}

int32_t BatchGenerator::choose(Slot & slot) {
    const float * logits = llama_get_logits_ith(ctx_.get(), slot.row);
    check_logits(model_, logits);
    if (slot.sampler != nullptr) {
        return llama_sampler_sample(slot.sampler.get(), ctx_.get(), slot.row);
    }
    return static_cast<int32_t>(std::max_element(logits, logits + model_.n_vocab()) - logits);
}

void BatchGenerator::leave(int32_t i) {
    slots_[static_cast<size_t>(i)].busy = false;
    llama_memory_seq_rm(memory(), i, -1, -1);
}

}  // namespace ggtune
