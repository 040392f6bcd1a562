// A live LoRA adapter (Hu et al. 2021, arXiv:2106.09685): F32 pairs A, B next to chosen linears of a model.
#pragma once

#include <ggml-cpp.h>

#include <map>
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

// Tensors in the memory of several places: main memory and devices.
class PlacedTensors {
  public:
    // Room for so many tensors in each place.
    explicit PlacedTensors(size_t n_tensors) : n_tensors_(n_tensors) {}

    // A context whose tensors get memory beside `neighbour`, which has a buffer: on its device, or in main memory.
    ggml_context * beside(const ggml_tensor * neighbour);
    // Gives all of them memory, cleared; with_memory false: marks them as allocated elsewhere, for graphs that are
    // planned and never run. Raises DeviceMemoryError, or Error with `what` they are for.
    void allocate(bool with_memory, const std::string & what);
    void clear();

    std::map<ggml_backend_dev_t, uint64_t> n_bytes() const;  // nullptr: main memory
    bool has_devices() const;

  private:
    struct Place {
        ggml_backend_dev_t device;
        ggml_backend_buffer_type_t type;
        ggml_context_ptr ctx;
        ggml_backend_buffer_ptr buffer;
    };
    size_t n_tensors_;
    std::vector<Place> places_;
};

class Adapter {
  public:
    // A ~ N(0, 1 / n_in) from a seed of its own per tensor, B = 0, for each matrix of a stack. targets: kinds of
    // Linear. With rslora alpha is multiplied by sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732). The model must
    // outlive the adapter. Of a model's header alone: an adapter for planning, without values. Raises Error for a kind
    // that the model does not have, a rank below 1 or above the smallest dimension, an alpha that is not > 0.
    Adapter(Model & model, int rank, float unscaled_alpha, const std::vector<std::string> & targets, bool rslora,
            uint64_t seed);

    // Without pairs, for graphs in which something else is trained. The model must outlive it.
    explicit Adapter(Model & model) : rank(0), alpha(0.0f), base_(&model), placed_(0) {}

    const int rank;
    const float alpha;  // as stored in adapter.lora.alpha

    Model & model() const { return *base_; }
    llama_adapter_lora * lora() const { return handle_.get(); }
    const std::vector<AdapterPair> & pairs() const { return list_; }

    // "<base tensor>.lora_a" and ".lora_b" with their tensors, in model order
    const std::vector<std::pair<std::string, ggml_tensor *>> & tensors() const { return named_; }
    ggml_tensor * tensor(const std::string & name) const;  // raises Error for an unknown name, or without values
    // The values of one of tensors(), in main memory wherever it lies itself: those on a device are a copy of these,
    // made by push() whenever they have changed.
    float * values(const ggml_tensor * tensor) const;
    void push(const ggml_tensor * tensor) const;
    std::map<ggml_backend_dev_t, uint64_t> n_bytes() const { return placed_.n_bytes(); }  // nullptr: main memory
    int64_t n_params() const;

    // Leaves pairs out, by the names of their linears: those that the loss does not depend on. Before a graph is built
    // with the adapter; the others keep their values. Raises Error, and changes nothing, where none would be left.
    void drop(const std::vector<std::string> & linears);
    const std::vector<std::string> & dropped() const { return dropped_; }  // in the order given

  private:
    Model * base_;
    PlacedTensors placed_;
    mutable std::map<const ggml_tensor *, std::vector<float>> host_values_;  // of tensors on devices
    LoraHandle handle_;
    std::vector<AdapterPair> list_;
    std::vector<std::pair<std::string, ggml_tensor *>> named_;
    std::vector<std::string> dropped_;
};

}  // namespace ggtune
