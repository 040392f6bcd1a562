// llama.cpp's own contexts, for everything that decodes. What a model or an adapter can't do is an exception here, not
// the end of the process: graphs are built, and their operands looked at, before anything is computed.
#pragma once

#include <llama-cpp.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/model.h"

namespace ggtune {

using ScaledLoras = std::vector<std::pair<llama_adapter_lora *, float>>;

// One sequence of at most n_tokens, which may be computed all at once; signals interrupt it. Raises Error for a number
// of threads that ggml has no room for.
llama_context_params inference_params(int64_t n_tokens, int threads);

// Model and adapters must outlive the context. Raises ModelFileError for a model that doesn't decode (encoders,
// embedding and diffusion models, damaged ones), Error where there is no memory for the context.
llama_context_ptr make_context(Model & model, const llama_context_params & params, const ScaledLoras & loras = {});

// As make_context(), of a model's header alone too: for its graph.
llama_context_ptr make_planning_context(Model & model, const llama_context_params & params, const ScaledLoras & loras);

// An adapter file of this model. Raises ModelFileError.
llama_adapter_lora_ptr load_lora(Model & model, const std::string & path);

// Raises ModelFileError where make_context() would or the tokenizer can't work; the model's header is enough.
void check_answers(Model & model);

// False for architectures whose states llama.cpp mixes up where it computes several sequences in one llama_decode().
bool keeps_sequences_apart(const Model & model);

// llama_decode. Raises Interrupted, and Error where llama.cpp can't.
void decode(const Model & model, llama_context & ctx, const llama_batch & batch);

}  // namespace ggtune
