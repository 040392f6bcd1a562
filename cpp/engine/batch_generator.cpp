#include "engine/batch_generator.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "base/error.h"
#include "engine/inference.h"
#include "engine/llama_access.h"
#include "engine/own_products.h"
#include "files/llama_log.h"

namespace ggtune {

namespace {

constexpr int64_t kMicroBatchTokens = 512;

// A share of the slots: so many prompts are read together, for which slots that are free earlier wait.
constexpr size_t kSlotsPerGroup = 8;
// Prompts that are read together are of like lengths, where among the next ones there are such.
constexpr size_t kGroupsToChooseFrom = 32;
// Tokens that the longer ones of them may have left, which are read one by one beside the answers: llama.cpp computes
// the sequences of a micro-batch side by side, so that what is left would be a small one of its own.
constexpr int64_t kMostLeft = 8;

}  // namespace

BatchGenerator::BatchGenerator(Model & model, const std::vector<std::pair<std::string, float>> & adapters,
                               Adapter * live, const std::vector<int32_t> & prefix, const Options & options)
    : model_(model), options_(options), batch_(options.n_slots * options.context) {
    const auto most_sequences = static_cast<int64_t>(llama_max_parallel_sequences());
    if (options.context < 2 || options.n_slots < 1 || options.n_slots > most_sequences) {
        throw Error("answers need a context of at least two tokens and 1 to " + std::to_string(most_sequences) +
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
    const int64_t n_slots = keeps_sequences_apart(model) ? options.n_slots : 1;
    llama_context_params params = inference_params(n_slots * options.context, options.threads);
    params.n_ubatch = static_cast<uint32_t>(std::min<int64_t>(params.n_ctx, kMicroBatchTokens));
    params.n_seq_max = static_cast<uint32_t>(n_slots);
    params.kv_unified = false;
    ctx_ = make_context(model_, params, loras);
    use_own_products(cpu_backend(*ctx_));
    slots_.resize(static_cast<size_t>(n_slots));
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
    if (!prefix_.empty() && prefix_memory_.empty() && !waiting_.empty()) {
        decode_prefix();
    }
    std::vector<Step> steps;
    const auto n_slots = static_cast<int32_t>(slots_.size());
    while (steps.empty()) {
        fill_slots();
        close_gaps();  // those that nothing waits for
        batch_.clear();
        for (int32_t i = 0; i < n_slots; ++i) {
            if (slots_[static_cast<size_t>(i)].busy) {
                add_token(i);
            }
        }
        if (batch_.size() == 0) {
            return steps;
        }
        decode(model_, *ctx_, batch_.get());
        for (int32_t i = 0; i < n_slots; ++i) {
            Slot & slot = slots_[static_cast<size_t>(i)];
            if (!slot.busy || slot.n_decoded < slot.n_prompt()) {
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
    }
    return steps;
}

void BatchGenerator::end(int64_t prompt) {
    for (size_t i = 0; i < slots_.size(); ++i) {
        if (slots_[i].busy && slots_[i].request.number == prompt) {
            leave(static_cast<int32_t>(i));
            break;
        }
    }
    waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(),
                                  [&](const Request & request) { return request.number == prompt; }),
                   waiting_.end());
}

void BatchGenerator::decode_prefix() {
    constexpr int32_t kSequence = 0;  // all are free
    batch_.clear();
    for (size_t at = 0; at < prefix_.size(); ++at) {
        batch_.add(prefix_[at], static_cast<int64_t>(at), kSequence, false);
    }
    decode(model_, *ctx_, batch_.get());
    prefix_memory_ = save(kSequence);
    llama_memory_seq_rm(memory(), kSequence, -1, -1);
}

std::vector<uint8_t> BatchGenerator::save(int32_t sequence) {
    std::vector<uint8_t> saved(llama_state_seq_get_size(ctx_.get(), sequence));
    if (saved.empty() || llama_state_seq_get_data(ctx_.get(), saved.data(), saved.size(), sequence) != saved.size()) {
        throw Error("llama.cpp did not give the memory of a sequence: " + take_llama_log());
    }
    return saved;
}

void BatchGenerator::restore(int32_t sequence, const std::vector<uint8_t> & saved) {
    if (llama_state_seq_set_data(ctx_.get(), saved.data(), saved.size(), sequence) != saved.size()) {
        throw Error("llama.cpp did not take back the memory of a sequence: " + take_llama_log());
    }
}

std::vector<int32_t> BatchGenerator::free_slots() const {
    std::vector<int32_t> free;
    for (size_t i = 0; i < slots_.size(); ++i) {
        if (!slots_[i].busy) {
            free.push_back(static_cast<int32_t>(i));
        }
    }
    return free;
}

void BatchGenerator::fill_slots() {
    std::vector<int32_t> free = free_slots();
    const size_t group = std::max<size_t>(1, slots_.size() / kSlotsPerGroup);
    const size_t n = std::min(free.size(), waiting_.size());
    if (n == 0 || n < std::min(group, waiting_.size())) {
        return;
    }
    if (group > 1) {  // prompts that are read together need neighbours; few slots are large ones to move
        close_gaps();
        free = free_slots();
    }
    free.resize(n);
    std::vector<Request> requests = take_alike(n);
    for (size_t i = 0; i < n; ++i) {
        begin(free[i], std::move(requests[i]));
    }
    read_prompts(free);
}

// The first of those that wait, and n - 1 whose lengths are near its own.
std::vector<BatchGenerator::Request> BatchGenerator::take_alike(size_t n) {
    const auto length = [this](size_t i) { return static_cast<int64_t>(waiting_[i].prompt.size()); };
    std::vector<size_t> nearest(std::min(waiting_.size(), n * kGroupsToChooseFrom));
    std::iota(nearest.begin(), nearest.end(), size_t{0});
    std::stable_sort(nearest.begin(), nearest.end(), [&](size_t i, size_t j) {
        return std::abs(length(i) - length(0)) < std::abs(length(j) - length(0));
    });
    nearest.resize(n);
    std::sort(nearest.begin(), nearest.end());
    std::vector<Request> taken;
    for (const size_t i : nearest) {
        taken.push_back(std::move(waiting_[i]));
    }
    for (auto i = nearest.rbegin(); i != nearest.rend(); ++i) {
        waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(*i));
    }
    return taken;
}

void BatchGenerator::begin(int32_t i, Request request) {
    Slot & slot = slots_[static_cast<size_t>(i)];
    slot.request = std::move(request);
    slot.busy = true;
    slot.n_decoded = slot.n_answered = 0;
    slot.sampler = slot.request.sampling.temperature > 0 ? make_sampler(slot.request.sampling) : nullptr;
    if (!prefix_.empty()) {
        restore(i, prefix_memory_);
        slot.n_decoded = static_cast<int64_t>(prefix_.size());
    }
}

// All but the last token of each, and a few more.
void BatchGenerator::read_prompts(const std::vector<int32_t> & slots) {
    const auto n_unread = [this](int32_t i) {
        const Slot & slot = slots_[static_cast<size_t>(i)];
        return slot.n_prompt() - slot.n_decoded - 1;
    };
    int64_t shortest = n_unread(slots.front());
    for (const int32_t i : slots) {
        shortest = std::min(shortest, n_unread(i));
    }
    batch_.clear();
    for (const int32_t i : slots) {
        Slot & slot = slots_[static_cast<size_t>(i)];
        const int64_t n = n_unread(i) - shortest > kMostLeft ? n_unread(i) : shortest;
        for (const int64_t end = slot.n_decoded + n; slot.n_decoded < end; ++slot.n_decoded) {
            batch_.add(slot.request.prompt[static_cast<size_t>(slot.n_decoded)], slot.n_decoded, i, false);
        }
    }
    if (batch_.size() > 0) {
        decode(model_, *ctx_, batch_.get());
    }
}

// The next token of the prompt, or the answer's last one.
void BatchGenerator::add_token(int32_t i) {
    Slot & slot = slots_[static_cast<size_t>(i)];
    const int64_t at = slot.n_decoded++;
    const int32_t token = at < slot.n_prompt() ? slot.request.prompt[static_cast<size_t>(at)] : slot.token;
    slot.row = batch_.size();
    batch_.add(token, at, i, slot.n_decoded >= slot.n_prompt());
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
    llama_memory_seq_rm(memory(), i, -1, -1);
    slots_[static_cast<size_t>(i)].busy = false;
}

// Slots that are free take over what the last ones do: llama.cpp computes sequences in one micro-batch as long as their
// numbers have no gap.
void BatchGenerator::close_gaps() {
    for (size_t i = 0; i < slots_.size(); ++i) {
        const auto last_busy =
            std::find_if(slots_.rbegin(), slots_.rend(), [](const Slot & slot) { return slot.busy; });
        const auto n_used = static_cast<size_t>(slots_.rend() - last_busy);
        if (slots_[i].busy || i >= n_used) {
            continue;
        }
        const auto from = static_cast<int32_t>(n_used) - 1, to = static_cast<int32_t>(i);
        const std::vector<uint8_t> saved = save(from);
        llama_memory_seq_rm(memory(), from, -1, -1);
        restore(to, saved);
        std::swap(slots_[i], slots_[n_used - 1]);
    }
}

}  // namespace ggtune
