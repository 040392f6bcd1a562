#include "engine/inference.h"

#include <ggml-cpu.h>

#include <string>
#include <unordered_set>
#include <vector>

#include "base/abort_guard.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "engine/llama_access.h"
#include "files/gguf_check.h"
#include "files/gguf_file.h"
#include "files/llama_log.h"

namespace ggtune {

namespace {

bool abort_callback(void *) {
    return interrupted();
}

void check_weights(const Model & model) {
    if (!model.has_weights()) {
        throw Error(model.path + " was loaded without its weights");
    }
}

void check_kind(const Model & model) {
    const char * kind = llama_model_has_encoder(&model.llama())    ? "it has an encoder"
                        : !llama_model_has_decoder(&model.llama()) ? "it has no decoder"
                        : llama_model_is_diffusion(&model.llama()) ? "it is a diffusion model"
                                                                   : nullptr;
    if (kind != nullptr) {
        throw ModelFileError(model.path + ": this model can't be asked or scored: " + kind + " (architecture " +
                             model.architecture() + "). Give a model that writes on from a prompt");
    }
}

llama_context_ptr new_context(Model & model, const llama_context_params & params, const ScaledLoras & loras) {
    check_kind(model);
    take_llama_log();
    llama_context_ptr ctx;
    const AbortAsException guard;
    try {
        ctx.reset(llama_init_from_model(&model.llama(), params));
        if (!ctx) {
            const std::string said = take_llama_log();
            if (said.find("failed to allocate") != std::string::npos) {
                throw Error("not enough memory for a context of " + std::to_string(params.n_ctx) + " tokens: " + said);
            }
            throw ModelFileError(model.path + ": " + reason_of_no_graph(model.llama(), said));
        }
        if (llama_get_memory(ctx.get()) == nullptr) {
            throw ModelFileError(model.path +
                                 ": this model can't be asked or scored: it reads a text as a whole "
                                 "(architecture " +
                                 model.architecture() + "). Give a model that writes on from a prompt");
        }
        std::vector<llama_adapter_lora *> adapters;
        std::vector<float> scales;
        for (const auto & [lora, scale] : loras) {
            adapters.push_back(lora);
            scales.push_back(scale);
        }
        if (!loras.empty() &&
            llama_set_adapters_lora(ctx.get(), adapters.data(), adapters.size(), scales.data()) != 0) {
            throw Error("llama.cpp refused the adapter: " + take_llama_log());
        }
        const std::string problem = problem_of_graph(*ctx);
        if (!problem.empty()) {
            throw ModelFileError(model.path + ": " + problem);
        }
    } catch (const Error &) {
        throw;
    } catch (const std::exception & e) {
        throw ModelFileError(model.path + ": " + reason_of_no_graph(model.llama(), reason(e)));
    }
    return ctx;
}

}  // namespace

llama_context_params inference_params(int64_t n_tokens, int threads) {
    if (threads < 1 || threads > GGML_MAX_N_THREADS) {
        throw Error("there must be 1 to " + std::to_string(GGML_MAX_N_THREADS) + " threads, not " +
                    std::to_string(threads));
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(n_tokens);
    params.n_batch = params.n_ctx;
    params.n_ubatch = params.n_ctx;
    params.n_seq_max = 1;
    params.n_threads = threads;
    params.n_threads_batch = threads;
    params.abort_callback = abort_callback;
    params.no_perf = true;
    return params;
}

llama_context_ptr make_context(Model & model, const llama_context_params & params, const ScaledLoras & loras) {
    check_weights(model);
    return new_context(model, params, loras);
}

llama_context_ptr make_planning_context(Model & model, const llama_context_params & params, const ScaledLoras & loras) {
    return new_context(model, params, loras);
}

void check_answers(Model & model) {
    constexpr int64_t kNTokens = 32;  // the graphs are the same for any number
    model.tokenize("A b\n", true, true);
    new_context(model, inference_params(kNTokens, 1), {});
}

llama_adapter_lora_ptr load_lora(Model & model, const std::string & path) {
    check_weights(model);
    check_adapter(open_checked(path), open_checked(model.path));
    take_llama_log();
    llama_adapter_lora_ptr lora;
    std::string why;
    const AbortAsException guard;
    try {
        lora.reset(llama_adapter_lora_init(&model.llama(), path.c_str()));
    } catch (const std::exception & e) {
        why = reason(e);
    }
    if (!lora) {
        throw ModelFileError(path + ": llama.cpp can't use this adapter: " + (why.empty() ? take_llama_log() : why));
    }
    return lora;
}

bool keeps_sequences_apart(const Model & model) {
    static const std::unordered_set<std::string> mixed_up = {"arwkv7", "plamo2", "rwkv6qwen2"};
    return mixed_up.count(model.architecture()) == 0;
}

void decode(const Model & model, llama_context & ctx, const llama_batch & batch) {
    const std::string what =
        model.path + ": llama.cpp could not decode " + std::to_string(batch.n_tokens) + " tokens: ";
    llama_batch rows = batch;
    std::vector<int8_t> all_rows;
    if (model.architecture() == "cogvlm") {  // its graph computes the logits of all rows, whichever are asked for
        all_rows.assign(static_cast<size_t>(batch.n_tokens), 1);
        rows.logits = all_rows.data();
    }
    take_llama_log();
    int status = 0;
    try {
        const AbortAsException guard(AbortAsException::Around::computation);
        status = llama_decode(&ctx, rows);
    } catch (const std::exception & e) {
        throw ModelFileError(model.path + ": " + reason_of_no_graph(model.llama(), reason(e)));
    }
    if (status == 2) {
        throw Interrupted();
    }
    if (status != 0) {
        throw Error(what + take_llama_log());
    }
}

}  // namespace ggtune
