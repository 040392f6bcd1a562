#include "engine/decoder.h"

#include <algorithm>

#include "base/error.h"
#include "engine/inference.h"
#include "engine/llama_access.h"
#include "engine/own_products.h"

namespace ggtune {

TokenBatch::TokenBatch(int64_t capacity)
    : capacity_(capacity), batch_(llama_batch_init(static_cast<int32_t>(std::max<int64_t>(1, capacity)), 0, 1)) {}

TokenBatch::~TokenBatch() {
    llama_batch_free(batch_);
}

void TokenBatch::add(int32_t token, int64_t position, int32_t sequence, bool output) {
    const int32_t i = batch_.n_tokens++;
    batch_.token[i] = token;
    batch_.pos[i] = static_cast<int32_t>(position);
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = sequence;
    batch_.logits[i] = output ? 1 : 0;
}

void TokenBatch::add(const std::vector<int32_t> & tokens, const std::vector<int32_t> & sequences,
                     const std::vector<uint8_t> & outputs) {
    const size_t n = tokens.size();
    if (n == 0 || sequences.size() != n || (!outputs.empty() && outputs.size() != n) ||
        static_cast<int64_t>(n) + size() > capacity_) {
        throw Error("a batch has as many sequences and outputs as tokens, 1 to " + std::to_string(capacity_));
    }
    int64_t position = 0;
    for (size_t i = 0; i < n; ++i) {
        position = i == 0 || sequences[i] != sequences[i - 1] ? 0 : position + 1;
        add(tokens[i], position, sequences[i], outputs.empty() ? i + 1 == n : outputs[i] != 0);
    }
}

Decoder::Decoder(Model & model, const std::vector<std::pair<std::string, float>> & adapters, const Options & options)
    : model(model), options_(options) {
    const auto most_sequences = static_cast<int64_t>(llama_max_parallel_sequences());
    if (options.n_tokens < 1 || options.n_sequences < 1 || options.n_sequences > most_sequences) {
        throw Error("a batch needs at least one token and 1 to " + std::to_string(most_sequences) + " sequences");
    }
    ScaledLoras loras;
    for (const auto & [path, scale] : adapters) {
        loras_.push_back(load_lora(model, path));
        loras.emplace_back(loras_.back().get(), scale);
    }
    llama_context_params params = inference_params(options.n_tokens, options.threads);
    params.n_ubatch = static_cast<uint32_t>(std::min(options.n_tokens, options.micro_batch));
    params.n_seq_max = static_cast<uint32_t>(options.n_sequences);
    params.kv_unified = true;
    if (options.exact) {
        params.type_k = params.type_v = GGML_TYPE_F32;
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;  // it works in half precision
    }
    params.cb_eval = options.on_node;
    params.cb_eval_user_data = options.on_node_data;
    ctx_ = make_context(model, params, loras);
    if (options.own_products) {
        use_own_products(cpu_backend(*ctx_));
    }
    one_by_one_ = options.n_sequences > 1 && !keeps_sequences_apart(model);
}

void Decoder::decode(const TokenBatch & batch) {
    const llama_batch & rows = batch.get();
    model.check_tokens({rows.token, rows.token + rows.n_tokens});
    model.check_positions(1 + *std::max_element(rows.pos, rows.pos + rows.n_tokens));
    for (int32_t i = 0; i < rows.n_tokens; ++i) {
        const int32_t sequence = rows.seq_id[i][0];
        if (sequence < 0 || sequence >= options_.n_sequences) {
            throw Error("sequence " + std::to_string(sequence) + " is not one of " +
                        std::to_string(options_.n_sequences));
        }
    }
    if (one_by_one_) {
        decode_one_by_one(rows);
    } else {
        ggtune::decode(model, *ctx_, rows);
    }
}

void Decoder::decode_one_by_one(const llama_batch & batch) {
    kept_.clear();
    for (int32_t begin = 0, end = 0; begin < batch.n_tokens; begin = end) {
        while (end < batch.n_tokens && batch.seq_id[end][0] == batch.seq_id[begin][0]) {
            ++end;
        }
        llama_batch rows = batch;
        rows.n_tokens = end - begin;
        rows.token += begin;
        rows.pos += begin;
        rows.n_seq_id += begin;
        rows.seq_id += begin;
        rows.logits += begin;
        ggtune::decode(model, *ctx_, rows);
        for (int32_t i = begin; i < end; ++i) {
            if (batch.logits[i] != 0) {
                const float * row = llama_get_logits_ith(ctx_.get(), i - begin);
                kept_[i].assign(row, row + model.n_vocab());
            }
        }
    }
}

void Decoder::clear() {
    kept_.clear();
    llama_memory_clear(llama_get_memory(ctx_.get()), false);
}

void Decoder::copy(int32_t from, int32_t to) {
    llama_memory_seq_cp(llama_get_memory(ctx_.get()), from, to, -1, -1);
}

const float * Decoder::logits(int32_t row) {
    return one_by_one_ ? kept_.at(row).data() : llama_get_logits_ith(ctx_.get(), row);
}

}  // namespace ggtune
