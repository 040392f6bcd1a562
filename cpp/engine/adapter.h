// A live LoRA adapter (Hu et al. 2021, arXiv:2106.09685): F32 pairs A, B next to chosen linears of a model.
#pragma once

#include <ggml-cpp.h>

#include <memory>
#include <string>
#include <vector>

#include "engine/llama_access.h"
#include "engine/model.h"

namespace ggtune {

struct AdapterPair {
    Linear linear;
    ggml_tensor * a;  // ne = [n_in, rank, n_mat]
    ggml_tensor * b;  // ne = [rank, n_out, n_mat]
};

// Marks all tensors of a context as allocated elsewhere, for graphs that are planned and never run.
ggml_backend_buffer_ptr no_memory_for(ggml_context * ctx);

class Adapter {
  public:
    // A ~ N(0, 1 / n_in) from a seed of its own per tensor, B = 0, for each matrix of a stack. targets: kinds of
    // Linear. With rslora alpha is multiplied by sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732). The model must
    // outlive the adapter. Of a model's header alone: an adapter for planning, without values. Raises Error for a kind
    // that the model does not have, a rank below 1 or above the smallest dimension, an alpha that is not > 0.
    Adapter(Model & model, int rank, float unscaled_alpha, const std::vector<std::string> & targets, bool rslora,
            uint64_t seed);

    const int rank;
    const float alpha;  // as stored in adapter.lora.alpha

    Model & model() const { return *base_; }
    llama_adapter_lora * lora() const { return handle_.get(); }
    const std::vector<AdapterPair> & pairs() const { return list_; }

    // "<base tensor>.lora_a" and ".lora_b" with their tensors, in model order
    const std::vector<std::pair<std::string, ggml_tensor *>> & tensors() const { return named_; }
    ggml_tensor * tensor(const std::string & name) const;  // raises Error for an unknown name, or without values
    int64_t n_params() const;

    // Leaves pairs out, by the names of their linears: those that the loss does not depend on. Before a graph is built
    // with the adapter; the others keep their values. Raises Error, and changes nothing, where none would be left.
    void drop(const std::vector<std::string> & linears);
    const std::vector<std::string> & dropped() const { return dropped_; }  // in the order given

  private:
    Model * base_;
    ggml_context_ptr ctx_;
    ggml_backend_buffer_ptr buffer_;
    LoraHandle handle_;
    std::vector<AdapterPair> list_;
    std::vector<std::pair<std::string, ggml_tensor *>> named_;
    std::vector<std::string> dropped_;
};

}  // namespace ggtune
