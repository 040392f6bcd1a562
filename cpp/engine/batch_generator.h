// Answers to many prompts at once: as many side by side as there are slots, which take the next prompts as soon as
// some answers have ended (continuous batching: Yu et al., "Orca", OSDI 2022). Prompts that begin together are read
// together.
#pragma once

#include <llama-cpp.h>

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "engine/adapter.h"
#include "engine/decoder.h"
#include "engine/generate.h"
#include "engine/model.h"

namespace ggtune {

class BatchGenerator {
  public:
    struct Options {
        int64_t n_slots = 1;
        int64_t context = 0;  // the most tokens of a prompt and its answer
        int threads = 1;
    };
    // A token of the answer to the prompt with this number; at_end: it ends the answer and is no part of it.
    struct Step {
        int64_t prompt;
        int32_t token;
        bool at_end;
    };

    // adapters: LoRA files with their scales; live: an adapter of this process, or nullptr. prefix: tokens that all
    // prompts start with and have more than: computed once. Model and adapter must outlive the generator. Raises as
    // Generator.
    BatchGenerator(Model & model, const std::vector<std::pair<std::string, float>> & adapters, Adapter * live,
                   const std::vector<int32_t> & prefix, const Options & options);

    // Puts a prompt at the end of those that wait. Its number is how many were added before it. An answer has at most
    // max_tokens, and what the context leaves. Raises Error for an empty prompt, one without the prefix, or one that
    // does not fit.
    void add(const std::vector<int32_t> & prompt, int64_t max_tokens, const Sampling & sampling);

    // Computes one token of some of the answers under way, of all whose prompts have been read. Empty when all have
    // ended. An answer that has reached its length has no step at its end. Raises Interrupted, and as Generator for
    // what can't be computed.
    std::vector<Step> step();

    // Ends the answer to a prompt; one that is not there any more is none.
    void end(int64_t prompt);

  private:
    struct Request {
        int64_t number;
        std::vector<int32_t> prompt;
        int64_t max_tokens;
        Sampling sampling;
    };
    // Its index is its sequence.
    struct Slot {
        Request request;
        bool busy = false;
        int64_t n_decoded = 0;   // tokens in the memory
        int64_t n_answered = 0;  // tokens given out
        int32_t token = 0;       // the last one
        int32_t row = 0;         // of the batch, whose logits give the next token
        llama_sampler_ptr sampler;

        int64_t n_prompt() const { return static_cast<int64_t>(request.prompt.size()); }
    };

    llama_memory_t memory() { return llama_get_memory(ctx_.get()); }
    void decode_prefix();
    // What the memory holds of a sequence, and such a thing as that of another one, which is free.
    std::vector<uint8_t> save(int32_t sequence);
    void restore(int32_t sequence, const std::vector<uint8_t> & saved);
    std::vector<int32_t> free_slots() const;
    void fill_slots();
    std::vector<Request> take_alike(size_t n);
    void begin(int32_t i, Request request);
    void read_prompts(const std::vector<int32_t> & slots);
    void add_token(int32_t i);
    int32_t choose(Slot & slot);
    void leave(int32_t i);
    void close_gaps();

    Model & model_;
    Options options_;
    std::vector<int32_t> prefix_;
    std::vector<llama_adapter_lora_ptr> loras_;
    llama_context_ptr ctx_;
    std::vector<uint8_t> prefix_memory_;  // once it has been computed
    std::deque<Request> waiting_;
    int64_t n_added_ = 0;
    std::vector<Slot> slots_;
    TokenBatch batch_;
};

}  // namespace ggtune
