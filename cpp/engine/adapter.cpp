#include "engine/adapter.h"

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <llama.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "base/error.h"
#include "engine/devices.h"
#include "kernels/dropout.h"

namespace ggtune {

namespace {

// FNV-1a: a tensor's seed depends on its name alone, not on which other tensors are adapted
uint64_t hash_name(const std::string & name) {
    uint64_t h = 0xcbf29ce484222325u;
    for (const unsigned char c : name) {
        h = (h ^ c) * 0x100000001b3u;
    }
    return h;
}

// Box-Muller on a Mersenne twister: std::normal_distribution differs between standard libraries
void fill_normal(float * values, int64_t n, double deviation, uint64_t seed) {
    std::mt19937_64 engine(seed);
    const auto uniform = [&] { return (static_cast<double>(engine() >> 11) + 0.5) / 9007199254740992.0; };
    constexpr double kTwoPi = 6.283185307179586;
    for (int64_t i = 0; i < n; i += 2) {
        const double radius = deviation * std::sqrt(-2.0 * std::log(uniform()));
        const double angle = kTwoPi * uniform();
        values[i] = static_cast<float>(radius * std::cos(angle));
        if (i + 1 < n) {
            values[i + 1] = static_cast<float>(radius * std::sin(angle));
        }
    }
}

std::string joined(const std::set<std::string> & names) {
    std::string text;
    for (const std::string & name : names) {
        text += (text.empty() ? "" : ", ") + name;
    }
    return text;
}

}  // namespace

Adapter::Adapter(Model & model, int rank, float unscaled_alpha, const std::vector<std::string> & targets, bool rslora,
                 uint64_t seed)
    : rank(rank),
      alpha(rslora ? unscaled_alpha * std::sqrt(static_cast<float>(rank)) : unscaled_alpha),
      base_(&model),
      placed_(2 * model.linears().size()) {
    if (rank < 1) {
        throw Error("rank must be at least 1, not " + std::to_string(rank));
    }
    if (!(unscaled_alpha > 0) || !std::isfinite(unscaled_alpha)) {
        throw Error("alpha must be a number above 0");
    }
    if (model.contents == Model::Contents::vocabulary) {
        throw Error(model.path + " was loaded without its weights");
    }
    const std::vector<Linear> & linears = model.linears();
    std::set<std::string> kinds;
    for (const Linear & linear : linears) {
        kinds.insert(linear.kind);
    }
    if (kinds.empty()) {
        const char * why = llama_model_has_encoder(&model.llama()) ? "it has an encoder, only decoders can"
                                                                   : "llama.cpp does not apply adapters to its linears";
        throw ModelFileError(model.path + ": " + untrainable(model.architecture(), why).what());
    }
    for (const std::string & target : targets) {
        if (kinds.count(target) == 0) {
            throw Error("the model has no linear named '" + target + "'; it has " + joined(kinds));
        }
    }
    if (targets.empty()) {
        throw Error("no linear is chosen; the model has " + joined(kinds));
    }

    std::vector<LoraWeights> weights;
    for (const Linear & linear : linears) {
        if (std::find(targets.begin(), targets.end(), linear.kind) == targets.end()) {
            continue;
        }
        if (rank > std::min(linear.n_in, linear.n_out)) {
            throw Error("rank " + std::to_string(rank) + " is more than " + linear.name + " has (" +
                        std::to_string(linear.n_in) + " x " + std::to_string(linear.n_out) + ")");
        }
        ggml_context * ctx = placed_.beside(linear.weight);
        ggml_tensor * a = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, linear.n_in, rank, linear.n_mat);
        ggml_tensor * b = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, rank, linear.n_out, linear.n_mat);
        ggml_format_name(a, "%s.lora_a", linear.name.c_str());
        ggml_format_name(b, "%s.lora_b", linear.name.c_str());
        list_.push_back({linear, a, b});
        named_.emplace_back(linear.name + ".lora_a", a);
        named_.emplace_back(linear.name + ".lora_b", b);
        weights.push_back({linear.name, a, b});
    }
    placed_.allocate(model.has_weights(), "an adapter of " + std::to_string(n_params()) + " parameters");
    handle_ = make_lora(model.llama(), alpha, weights);
    if (!model.has_weights()) {
        return;
    }
    for (const auto & entry : named_) {
        if (device_of(entry.second) != nullptr) {
            host_values_[entry.second].resize(ggml_nelements(entry.second), 0.0f);
        }
    }
    for (const AdapterPair & pair : list_) {
        const uint64_t tensor_seed = kernels::detail::mix64(seed ^ hash_name(pair.linear.name));
        fill_normal(values(pair.a), ggml_nelements(pair.a), 1.0 / std::sqrt(static_cast<double>(pair.a->ne[0])),
                    tensor_seed);
        push(pair.a);
    }
}

float * Adapter::values(const ggml_tensor * tensor) const {
    const auto on_device = host_values_.find(tensor);
    return on_device != host_values_.end() ? on_device->second.data() : static_cast<float *>(tensor->data);
}

void Adapter::push(const ggml_tensor * tensor) const {
    const auto on_device = host_values_.find(tensor);
    if (on_device != host_values_.end()) {
        ggml_backend_tensor_set(const_cast<ggml_tensor *>(tensor), on_device->second.data(), 0, ggml_nbytes(tensor));
    }
}

ggml_context * PlacedTensors::beside(const ggml_tensor * neighbour) {
    ggml_backend_dev_t device = device_of(neighbour);
    for (const Place & place : places_) {
        if (place.device == device) {
            return place.ctx.get();
        }
    }
    const ggml_init_params params = {n_tensors_ * ggml_tensor_overhead() + 1024, nullptr, true};
    ggml_backend_buffer_type_t type =
        device != nullptr ? ggml_backend_buffer_get_type(neighbour->buffer) : ggml_backend_cpu_buffer_type();
    places_.push_back({device, type, ggml_context_ptr(ggml_init(params)), nullptr});
    return places_.back().ctx.get();
}

void PlacedTensors::allocate(bool with_memory, const std::string & what) {
    for (Place & place : places_) {
        if (with_memory) {
            place.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(place.ctx.get(), place.type));
        } else {
            place.buffer.reset(ggml_backend_buft_alloc_buffer(place.type, 0));
            for (ggml_tensor * t = ggml_get_first_tensor(place.ctx.get()); t != nullptr;
                 t = ggml_get_next_tensor(place.ctx.get(), t)) {
                t->buffer = place.buffer.get();
            }
        }
        if (!place.buffer && place.device != nullptr) {
            throw DeviceMemoryError("not enough memory on " + device_name(place.device) + " for " + what +
                                    ": fewer layers there need less (--gpu-layers)");
        }
        if (!place.buffer) {
            throw Error("not enough memory for " + what);
        }
    }
    if (with_memory) {
        clear();
    }
}

void PlacedTensors::clear() {
    for (const Place & place : places_) {
        ggml_backend_buffer_clear(place.buffer.get(), 0);
    }
}

bool PlacedTensors::has_devices() const {
    return std::any_of(places_.begin(), places_.end(), [](const Place & place) { return place.device != nullptr; });
}

std::map<ggml_backend_dev_t, uint64_t> PlacedTensors::n_bytes() const {
    std::map<ggml_backend_dev_t, uint64_t> n_bytes;
    for (const Place & place : places_) {
        for (ggml_tensor * t = ggml_get_first_tensor(place.ctx.get()); t != nullptr;
             t = ggml_get_next_tensor(place.ctx.get(), t)) {
            n_bytes[place.device] += allocated_bytes(place.type, t);
        }
    }
    return n_bytes;
}

void Adapter::drop(const std::vector<std::string> & linears) {
    const std::set<std::string> names(linears.begin(), linears.end());
    const auto is_dropped = [&](const AdapterPair & pair) { return names.count(pair.linear.name) != 0; };
    if (std::all_of(list_.begin(), list_.end(), is_dropped)) {
        throw Error("no pair of the adapter is left");
    }
    remove_from_lora(*handle_, linears);
    list_.erase(std::remove_if(list_.begin(), list_.end(), is_dropped), list_.end());
    named_.clear();
    for (const AdapterPair & pair : list_) {
        named_.emplace_back(pair.linear.name + ".lora_a", pair.a);
        named_.emplace_back(pair.linear.name + ".lora_b", pair.b);
    }
    dropped_.insert(dropped_.end(), linears.begin(), linears.end());
}

ggml_tensor * Adapter::tensor(const std::string & name) const {
    for (const auto & [known, tensor] : named_) {
        if (known == name) {
            if (!base_->has_weights()) {
                throw Error("the adapter has no values: its model was loaded without weights");
            }
            return tensor;
        }
    }
    throw Error("the adapter has no tensor " + name);
}

int64_t Adapter::n_params() const {
    int64_t n = 0;
    for (const auto & entry : named_) {
        n += ggml_nelements(entry.second);
    }
    return n;
}

}  // namespace ggtune
