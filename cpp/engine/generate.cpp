#include "engine/generate.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "engine/inference.h"
#include "engine/llama_access.h"
#include "engine/own_products.h"
#include "kernels/softmax.h"

namespace ggtune {

namespace {

constexpr int kDefaultContext = 4096;
constexpr int kDecodeBatch = 512;

void decode_in_batches(const Model & model, llama_context & ctx, std::vector<int32_t> & tokens) {
    for (size_t begin = 0; begin < tokens.size(); begin += kDecodeBatch) {
        const size_t n = std::min<size_t>(kDecodeBatch, tokens.size() - begin);
        decode(model, ctx, llama_batch_get_one(tokens.data() + begin, static_cast<int32_t>(n)));
    }
}

}  // namespace

llama_sampler_ptr make_sampler(const Sampling & sampling) {
    llama_sampler_ptr chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    if (sampling.temperature > 0) {
        llama_sampler_chain_add(chain.get(), llama_sampler_init_top_k(sampling.top_k));
        llama_sampler_chain_add(chain.get(), llama_sampler_init_top_p(sampling.top_p, 1));
        llama_sampler_chain_add(chain.get(), llama_sampler_init_temp(sampling.temperature));
        llama_sampler_chain_add(chain.get(), llama_sampler_init_dist(sampling.seed));
    } else {
        llama_sampler_chain_add(chain.get(), llama_sampler_init_greedy());
    }
    return chain;
}

void check_logits(const Model & model, const float * logits) {
    if (std::any_of(logits, logits + model.n_vocab(), [](float logit) { return std::isnan(logit); })) {
        throw ModelFileError(
            model.path +
            ": the model computes values that are not numbers: its weights, or those of "
            "the adapter, are damaged or too large. Convert the model again, or get another file of it");
    }
}

Generator::Generator(Model & model, const std::vector<int32_t> & prompt, Adapter * adapter, int context, int threads,
                     const Sampling & sampling)
    : model_(model), pending_(prompt) {
    n_context_ = context > 0 ? context : std::min(model_.n_ctx_train(), kDefaultContext);
    check_prompt(prompt);
    model_.check_positions(n_context_);
    llama_context_params params = inference_params(n_context_, threads);
    params.n_batch = params.n_ubatch = static_cast<uint32_t>(std::min<int64_t>(n_context_, kDecodeBatch));
    ctx_ = make_context(model_, params, adapter != nullptr ? ScaledLoras{{adapter->lora(), 1.0f}} : ScaledLoras{});
    use_own_products(cpu_backend(*ctx_));
    sampler_ = make_sampler(sampling);
}

void Generator::check_prompt(const std::vector<int32_t> & prompt) const {
    if (prompt.empty()) {
        throw Error("the prompt is empty");
    }
    if (static_cast<int64_t>(prompt.size()) >= n_context_) {
        throw Error("the prompt of " + std::to_string(prompt.size()) + " tokens does not fit the context of " +
                    std::to_string(n_context_));
    }
    model_.check_tokens(prompt);
}

int64_t Generator::restart(const std::vector<int32_t> & prompt) {
    check_prompt(prompt);
    const auto most = static_cast<int64_t>(std::min(decoded_.size(), prompt.size() - 1));  // one gives the logits
    int64_t n_kept = std::mismatch(decoded_.begin(), decoded_.begin() + most, prompt.begin()).first - decoded_.begin();
    llama_memory_t memory = llama_get_memory(ctx_.get());
    if (!llama_memory_seq_rm(memory, 0, static_cast<llama_pos>(n_kept), -1)) {  // a recurrent state has no parts
        llama_memory_clear(memory, true);
        n_kept = 0;
    }
    decoded_.resize(static_cast<size_t>(n_kept));
    pending_.assign(prompt.begin() + n_kept, prompt.end());
    return n_kept;
}

std::optional<int32_t> Generator::next() {
    if (static_cast<int64_t>(decoded_.size() + pending_.size()) > n_context_) {
        return std::nullopt;
    }
    decode_in_batches(model_, *ctx_, pending_);
    decoded_.insert(decoded_.end(), pending_.begin(), pending_.end());
    check_logits(model_, llama_get_logits_ith(ctx_.get(), -1));
    const llama_token token = llama_sampler_sample(sampler_.get(), ctx_.get(), -1);
    pending_ = {token};
    if (llama_vocab_is_eog(&model_.vocab(), token)) {
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
    model.check_positions(static_cast<int64_t>(tokens.size()));
    llama_context_params params = inference_params(static_cast<int64_t>(tokens.size()), threads);
    params.n_batch = params.n_ubatch = std::min<uint32_t>(params.n_ctx, kDecodeBatch);
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;  // it works in half precision
    llama_adapter_lora_ptr adapter;
    ScaledLoras loras;
    if (!adapter_path.empty()) {
        adapter = load_lora(model, adapter_path);
        loras.emplace_back(adapter.get(), 1.0f);
    }
    const llama_context_ptr ctx = make_context(model, params, loras);
    std::vector<float> log_probs;
    const int32_t n_vocab = model.n_vocab();
    llama_batch batch = llama_batch_init(kDecodeBatch, 0, 1);
    const struct BatchGuard {
        llama_batch & batch;
        ~BatchGuard() { llama_batch_free(batch); }
    } guard{batch};
    for (size_t begin = 0; begin + 1 < tokens.size(); begin += kDecodeBatch) {
        const size_t n = std::min<size_t>(kDecodeBatch, tokens.size() - 1 - begin);
        batch.n_tokens = n;
        for (size_t i = 0; i < n; i++) {
            batch.token[i] = tokens[begin + i];
            batch.pos[i] = begin + i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = 1;
        }
        decode(model, *ctx, batch);
        for (size_t i = 0; i < n; i++) {
            const float * logits = llama_get_logits_ith(ctx.get(), i);
            log_probs.push_back(static_cast<float>(kernels::log_probability(logits, n_vocab, tokens[begin + i + 1])));
        }
    }
    return log_probs;
}

}  // namespace ggtune
