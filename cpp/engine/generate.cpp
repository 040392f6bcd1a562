#include "engine/generate.h"

#include <algorithm>

#include "base/error.h"
#include "base/interrupt.h"
#include "files/gguf_check.h"
#include "files/gguf_file.h"
#include "kernels/softmax.h"

namespace ggtune {

namespace {

constexpr int default_context = 4096;
constexpr int decode_batch = 512;

bool abort_callback(void *) {
    return interrupted();
}

llama_context_ptr make_context(Model & model, int64_t n_context, int threads, ggml_type cache_type) {
    if (!model.has_weights()) {
        throw Error(model.path + " was loaded without its weights");
    }
    model.check_positions(n_context);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = n_context;
    params.n_batch = std::min<int64_t>(n_context, decode_batch);
    params.n_ubatch = params.n_batch;
    params.n_seq_max = 1;
    params.n_threads = threads;
    params.n_threads_batch = threads;
    params.abort_callback = abort_callback;
    params.no_perf = true;
    params.type_k = cache_type;
    params.type_v = cache_type;
    if (cache_type == GGML_TYPE_F32) {
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;  // it works in half precision
    }
    llama_context_ptr ctx(llama_init_from_model(&model.llama(), params));
    if (!ctx) {
        throw Error("llama.cpp could not make a context of " + std::to_string(n_context) +
                    " tokens: " + take_llama_log());
    }
    return ctx;
}

void decode(llama_context * ctx, std::vector<int32_t> & tokens) {
    for (size_t begin = 0; begin < tokens.size(); begin += decode_batch) {
        const size_t n = std::min<size_t>(decode_batch, tokens.size() - begin);
        const int status = llama_decode(ctx, llama_batch_get_one(tokens.data() + begin, n));
        if (status == 2) {
            throw Interrupted();
        }
        if (status != 0) {
            throw Error("llama.cpp could not decode " + std::to_string(n) + " tokens: " + take_llama_log());
        }
    }
}

}  // namespace

Generator::Generator(Model & model_, const std::vector<int32_t> & prompt, Adapter * adapter, int context, int threads,
                     const Sampling & sampling)
    : model(model_), pending(prompt) {
    n_context = context > 0 ? context : std::min(model.n_ctx_train(), default_context);
    if (prompt.empty()) {
        throw Error("the prompt is empty");
    }
    if (static_cast<int64_t>(prompt.size()) >= n_context) {
        throw Error("the prompt of " + std::to_string(prompt.size()) + " tokens does not fit the context of " +
                    std::to_string(n_context));
    }
    model.check_tokens(prompt);
    ctx = make_context(model, n_context, threads, GGML_TYPE_F16);
    if (adapter != nullptr) {
        llama_adapter_lora * lora = adapter->lora();
        float scale = 1.0f;
        if (llama_set_adapters_lora(ctx.get(), &lora, 1, &scale) != 0) {
            throw Error("llama.cpp refused the adapter: " + take_llama_log());
        }
    }
    sampler.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    if (sampling.temperature > 0) {
        llama_sampler_chain_add(sampler.get(), llama_sampler_init_top_k(sampling.top_k));
        llama_sampler_chain_add(sampler.get(), llama_sampler_init_top_p(sampling.top_p, 1));
        llama_sampler_chain_add(sampler.get(), llama_sampler_init_temp(sampling.temperature));
        llama_sampler_chain_add(sampler.get(), llama_sampler_init_dist(sampling.seed));
    } else {
        llama_sampler_chain_add(sampler.get(), llama_sampler_init_greedy());
    }
}

std::optional<int32_t> Generator::next() {
    if (n_used + static_cast<int64_t>(pending.size()) > n_context) {
        return std::nullopt;
    }
    decode(ctx.get(), pending);
    n_used += pending.size();
    const llama_token token = llama_sampler_sample(sampler.get(), ctx.get(), -1);
    pending = {token};
    if (llama_vocab_is_eog(&model.vocab(), token)) {
        return std::nullopt;
    }
    return token;
}

std::vector<float> decode_log_probs(Model & model, const std::vector<int32_t> & tokens,
                                    const std::string & adapter_path, int threads) {
    if (tokens.size() < 2) {
        throw Error("at least two tokens are needed to score one");
    }
    model.check_tokens(tokens);
    llama_adapter_lora_ptr adapter;
    llama_context_ptr ctx = make_context(model, tokens.size(), threads, GGML_TYPE_F32);
    if (!adapter_path.empty()) {
        check_adapter(open_checked(adapter_path), open_checked(model.path));
        adapter.reset(llama_adapter_lora_init(&model.llama(), adapter_path.c_str()));
        llama_adapter_lora * lora = adapter.get();
        float scale = 1.0f;
        if (lora == nullptr || llama_set_adapters_lora(ctx.get(), &lora, 1, &scale) != 0) {
            throw ModelFileError(adapter_path + ": llama.cpp can't use this adapter: " + take_llama_log());
        }
    }
    std::vector<float> log_probs;
    const int32_t n_vocab = model.n_vocab();
    llama_batch batch = llama_batch_init(decode_batch, 0, 1);
    const struct BatchGuard {
        llama_batch & batch;
        ~BatchGuard() { llama_batch_free(batch); }
    } guard{batch};
    for (size_t begin = 0; begin + 1 < tokens.size(); begin += decode_batch) {
        const size_t n = std::min<size_t>(decode_batch, tokens.size() - 1 - begin);
        batch.n_tokens = n;
        for (size_t i = 0; i < n; i++) {
            batch.token[i] = tokens[begin + i];
            batch.pos[i] = begin + i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = 1;
        }
        const int status = llama_decode(ctx.get(), batch);
        if (status == 2) {
            throw Interrupted();
        }
        if (status != 0) {
            throw Error("llama.cpp could not decode " + std::to_string(n) + " tokens: " + take_llama_log());
        }
        for (size_t i = 0; i < n; i++) {
            const float * logits = llama_get_logits_ith(ctx.get(), i);
            log_probs.push_back(static_cast<float>(kernels::log_probability(logits, n_vocab, tokens[begin + i + 1])));
        }
    }
    return log_probs;
}

}  // namespace ggtune
