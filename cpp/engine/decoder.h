// llama_decode over several sequences at once, with adapters beside the weights: what a user's llama.cpp computes.
#pragma once

#include <ggml-backend.h>
#include <llama-cpp.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/model.h"

namespace ggtune {

// Tokens of one sequence each, collected for llama_decode.
class TokenBatch {
  public:
    explicit TokenBatch(int64_t capacity);
    ~TokenBatch();
    TokenBatch(const TokenBatch &) = delete;
    TokenBatch & operator=(const TokenBatch &) = delete;

    void clear() { batch_.n_tokens = 0; }
    int32_t size() const { return batch_.n_tokens; }
    void add(int32_t token, int64_t position, int32_t sequence, bool output);
    // Rows of one sequence are contiguous and in order; they get the positions from 0. outputs: which rows get logits,
    // empty: only the last. Raises Error for lists of different lengths, or longer than the capacity.
    void add(const std::vector<int32_t> & tokens, const std::vector<int32_t> & sequences,
             const std::vector<uint8_t> & outputs);
    const llama_batch & get() const { return batch_; }

  private:
    int64_t capacity_;
    llama_batch batch_;
};

class Decoder {
  public:
    struct Options {
        int64_t n_tokens = 0;     // context: the most that all sequences have together
        int64_t micro_batch = 0;  // tokens computed at once
        int64_t n_sequences = 1;
        int threads = 1;
        ggml_backend_sched_eval_callback on_node = nullptr;  // see llama_context_params.cb_eval
        void * on_node_data = nullptr;
        bool exact = false;         // keys and values in F32, attention as written: as decode_log_probs() does
        bool own_products = false;  // not llama.cpp's: faster, and rounded in another way
    };
    // adapters: LoRA files with their scales; may be empty. The model must outlive the decoder.
    // Raises ModelFileError for an adapter of another model, Error where there is no memory for the context.
    Decoder(Model & model, const std::vector<std::pair<std::string, float>> & adapters, const Options & options);

    // Raises Error for a token or sequence that is none, Interrupted.
    void decode(const TokenBatch & batch);
    // Forgets all sequences.
    void clear();
    // Lets sequence to, which is empty, go on from where sequence from stands.
    void copy(int32_t from, int32_t to);
    // [n_vocab], of a row of the last batch that was flagged as an output.
    const float * logits(int32_t row);

    Model & model;

  private:
    void decode_one_by_one(const llama_batch & batch);

    Options options_;
    std::vector<llama_adapter_lora_ptr> loras_;
    llama_context_ptr ctx_;
    bool one_by_one_ = false;                               // sequences
    std::unordered_map<int32_t, std::vector<float>> kept_;  // by row of the last batch: logits, where one by one
};

}  // namespace ggtune
