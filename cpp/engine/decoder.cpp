#include "engine/decoder.h"

#include <algorithm>

#include "base/abort_guard.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "files/gguf_check.h"
#include "files/gguf_file.h"

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

Decoder::Decoder(Model & model_, const std::vector<std::pair<std::string, float>> & adapters, const Options & options)
    : model(model_), options_(options) {
    if (!model.has_weights()) {
        throw Error(model.path + " was loaded without its weights");
    }
    const auto most_sequences = static_cast<int64_t>(llama_max_parallel_sequences());
    if (options.n_tokens < 1 || options.n_sequences < 1 || options.n_sequences > most_sequences) {
        throw Error("a batch needs at least one token and 1 to " + std::to_string(most_sequences) + " sequences");
    }
    const AbortAsException guard;
    std::vector<llama_adapter_lora *> handles;
    std::vector<float> scales;
    for (const auto & [path, scale] : adapters) {
        check_adapter(open_checked(path), open_checked(model.path));
        loras_.emplace_back(llama_adapter_lora_init(&model.llama(), path.c_str()));
        if (!loras_.back()) {
            throw ModelFileError(path + ": llama.cpp can't use this adapter: " + take_llama_log());
        }
        handles.push_back(loras_.back().get());
        scales.push_back(scale);
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(options.n_tokens);
    params.n_batch = params.n_ctx;
    params.n_ubatch = static_cast<uint32_t>(std::min(options.n_tokens, options.micro_batch));
    params.n_seq_max = static_cast<uint32_t>(options.n_sequences);
    params.kv_unified = true;
    params.n_threads = options.threads;
    params.n_threads_batch = options.threads;
    params.abort_callback = [](void *) { return interrupted(); };
    params.no_perf = true;
    params.cb_eval = options.on_node;
    params.cb_eval_user_data = options.on_node_data;
    ctx_.reset(llama_init_from_model(&model.llama(), params));
    if (!ctx_) {
        throw Error("llama.cpp could not make a context of " + std::to_string(options.n_tokens) +
                    " tokens: " + take_llama_log());
    }
    if (!handles.empty() && llama_set_adapters_lora(ctx_.get(), handles.data(), handles.size(), scales.data()) != 0) {
        throw Error("llama.cpp refused the adapters: " + take_llama_log());
    }
}

void Decoder::decode(const TokenBatch & batch) {
    const llama_batch & rows = batch.get();
    model.check_tokens({rows.token, rows.token + rows.n_tokens});
    for (int32_t i = 0; i < rows.n_tokens; ++i) {
        const int32_t sequence = rows.seq_id[i][0];
        if (sequence < 0 || sequence >= options_.n_sequences) {
            throw Error("sequence " + std::to_string(sequence) + " is not one of " +
                        std::to_string(options_.n_sequences));
        }
    }
    const int status = llama_decode(ctx_.get(), rows);
    if (status == 2) {
        throw Interrupted();
    }
    if (status != 0) {
        throw Error("llama.cpp could not decode " + std::to_string(rows.n_tokens) + " tokens: " + take_llama_log());
    }
}

void Decoder::clear() {
    llama_memory_clear(llama_get_memory(ctx_.get()), false);
}

const float * Decoder::logits(int32_t row) {
    return llama_get_logits_ith(ctx_.get(), row);
}

}  // namespace ggtune
