#include "engine/executor.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/abort_guard.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "engine/devices.h"
#include "engine/llama_access.h"
#include "kernels/huge_pages.h"
#include "ops/op.h"

namespace ggtune {

namespace {

// Nodes that a device is given at once: between them it waits, and can be interrupted.
constexpr int kNodesAtOnce = 64;

bool abort_callback(void *) {
    return interrupted();
}

Error not_enough_memory(size_t n_bytes) {
    return Error("not enough memory for a micro-batch: " + std::to_string(n_bytes >> 20) +
                 " MiB are needed. A smaller context or recomputation needs less.");
}

DeviceMemoryError not_enough_memory_on(ggml_backend_dev_t device, size_t n_bytes) {
    return DeviceMemoryError("not enough memory on " + device_name(device) +
                             " for a micro-batch: " + std::to_string(n_bytes >> 20) +
                             " MiB are needed beside what lies there. Fewer layers on " +
                             "it (--gpu-layers), a smaller context or recomputation need less.");
}

// Marks tensors as another's for as long as it lives, so that an allocator leaves them alone.
class Elsewhere {
  public:
    Elsewhere(const std::vector<ggml_tensor *> & tensors,
              const std::function<ggml_backend_buffer_type_t(const ggml_tensor *)> & type_of)
        : tensors_(tensors) {
        for (ggml_tensor * t : tensors) {
            ggml_backend_buffer_ptr & buffer = buffers_[type_of(t)];
            if (!buffer) {
                buffer.reset(ggml_backend_buft_alloc_buffer(type_of(t), 0));
            }
            t->buffer = buffer.get();
        }
    }
    ~Elsewhere() {
        for (ggml_tensor * t : tensors_) {
            t->buffer = nullptr;
        }
    }
    Elsewhere(const Elsewhere &) = delete;
    Elsewhere & operator=(const Elsewhere &) = delete;

  private:
    const std::vector<ggml_tensor *> & tensors_;
    std::map<ggml_backend_buffer_type_t, ggml_backend_buffer_ptr> buffers_;
};

}  // namespace

Executor::Executor(ggml_backend_ptr backend)
    : backend_(std::move(backend)), allocator_(ggml_gallocr_new(buffer_type())) {}

Executor::Executor(int n_threads, const std::vector<ggml_backend_dev_t> & devices)
    : Executor(ggml_backend_ptr(ggml_backend_cpu_init())) {
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    pool_.reset(ggml_threadpool_new(&params));
    ggml_backend_cpu_set_n_threads(backend_.get(), n_threads);
    ggml_backend_cpu_set_threadpool(backend_.get(), pool_.get());
    ggml_backend_cpu_set_abort_callback(backend_.get(), abort_callback, nullptr);
    for (ggml_backend_dev_t device : devices) {
        const AbortAsException guard;
        ggml_backend_ptr opened;
        std::string why;
        try {
            opened.reset(ggml_backend_dev_init(device, nullptr));
        } catch (const std::exception & e) {
            why = ": " + reason(e);
        }
        if (!opened) {
            throw Error("the device " + device_name(device) + " can't be opened" + why);
        }
        devices_.push_back({device, std::move(opened), ggml_backend_dev_buffer_type(device)});
    }
}

std::vector<ggml_backend_buffer_type_t> Executor::types() const {
    std::vector<ggml_backend_buffer_type_t> types;
    for (const Device & device : devices_) {
        types.push_back(device.type);
    }
    types.push_back(buffer_type());
    return types;
}

size_t Executor::padded_bytes(const std::vector<ggml_tensor *> & tensors) const {
    size_t n_bytes = 0;
    for (const ggml_tensor * t : tensors) {
        n_bytes += allocated_bytes(buffer_type(), t);
    }
    return n_bytes;
}

size_t Executor::measure(ggml_cgraph * graph, const std::vector<ggml_tensor *> & kept) const {
    const Elsewhere elsewhere(kept, [this](const ggml_tensor *) { return buffer_type(); });
    const ggml_gallocr_ptr scratch(ggml_gallocr_new(buffer_type()));
    size_t n_bytes = 0;
    ggml_gallocr_reserve_n_size(scratch.get(), graph, nullptr, nullptr, &n_bytes);
    return n_bytes + padded_bytes(kept);
}

DeviceBytes Executor::measure(ggml_cgraph * graph, const std::vector<ggml_tensor *> & kept,
                              const PlaceOf & place_of) const {
    std::vector<ggml_backend_buffer_type_t> all = types();
    std::vector<size_t> n_bytes(all.size(), 0);
    {
        const Elsewhere elsewhere(kept, [&](const ggml_tensor * t) { return all[place_of(t)]; });
        const PlacedGraph placed(graph, place_of, all);
        const ggml_gallocr_ptr scratch(ggml_gallocr_new_n(all.data(), static_cast<int>(all.size())));
        ggml_gallocr_reserve_n_size(scratch.get(), placed.with_copies(), placed.node_places().data(),
                                    placed.leaf_places().data(), n_bytes.data());
    }
    for (const ggml_tensor * t : kept) {
        n_bytes[place_of(t)] += allocated_bytes(all[place_of(t)], t);
    }
    DeviceBytes by_device;
    for (size_t place = 0; place < all.size(); place++) {
        by_device[device(static_cast<int>(place))] = n_bytes[place];
    }
    return by_device;
}

void Executor::allocate(ggml_cgraph * graph, const std::vector<ggml_tensor *> & kept, const PlaceOf & place_of) {
    placed_.reset();
    kept_buffers_.resize(devices_.size() + 1);
    if (place_of != nullptr) {
        allocate_placed(graph, kept, place_of);
        return;
    }
    const size_t kept_bytes = padded_bytes(kept);
    ggml_backend_buffer_ptr & kept_buffer = kept_buffers_.back();
    if (kept_bytes > 0 && (!kept_buffer || ggml_backend_buffer_get_size(kept_buffer.get()) < kept_bytes)) {
        kept_buffer.reset();
        kept_buffer.reset(ggml_backend_buft_alloc_buffer(buffer_type(), kept_bytes));
        if (!kept_buffer) {
            throw not_enough_memory(measure(graph, kept));
        }
    }
    if (!kept.empty()) {
        ggml_tallocr places = ggml_tallocr_new(kept_buffer.get());
        for (ggml_tensor * t : kept) {
            ggml_tallocr_alloc(&places, t);
        }
    }
    // always planned anew: alloc_graph alone would take another graph of the same size for the one planned before
    if (!ggml_gallocr_reserve(allocator_.get(), graph) || !ggml_gallocr_alloc_graph(allocator_.get(), graph)) {
        throw not_enough_memory(measure(graph, kept));
    }
    prefer_huge_pages(graph);
}

void Executor::prefer_huge_pages(ggml_cgraph * graph) {
    ggml_backend_buffer_t last = nullptr;
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        ggml_backend_buffer_t buffer = ggml_graph_node(graph, i)->buffer;
        if (buffer != nullptr && buffer != last && ggml_backend_buffer_is_host(buffer)) {
            kernels::prefer_huge_pages(ggml_backend_buffer_get_base(buffer), ggml_backend_buffer_get_size(buffer));
            last = buffer;
        }
    }
}

void Executor::allocate_placed(ggml_cgraph * graph, const std::vector<ggml_tensor *> & kept, const PlaceOf & place_of) {
    std::vector<ggml_backend_buffer_type_t> all = types();
    std::vector<size_t> kept_bytes(all.size(), 0);
    for (const ggml_tensor * t : kept) {
        kept_bytes[place_of(t)] += allocated_bytes(all[place_of(t)], t);
    }
    const auto refuse = [&](int place, size_t n_bytes) {
        if (place < cpu()) {
            throw not_enough_memory_on(device(place), n_bytes);
        }
        throw not_enough_memory(n_bytes);
    };
    const AbortAsException guard;
    for (int place = 0; place <= cpu(); place++) {
        ggml_backend_buffer_ptr & buffer = kept_buffers_[place];
        if (kept_bytes[place] > 0 && (!buffer || ggml_backend_buffer_get_size(buffer.get()) < kept_bytes[place])) {
            buffer.reset();
            buffer.reset(ggml_backend_buft_alloc_buffer(all[place], kept_bytes[place]));
            if (!buffer) {
                refuse(place, kept_bytes[place]);
            }
        }
        if (kept_bytes[place] > 0) {
            ggml_tallocr places = ggml_tallocr_new(buffer.get());
            for (ggml_tensor * t : kept) {
                if (place_of(t) == place) {
                    ggml_tallocr_alloc(&places, t);
                }
            }
        }
    }
    placed_ = std::make_unique<PlacedGraph>(graph, place_of, all);
    if (!placed_allocator_) {
        placed_allocator_.reset(ggml_gallocr_new_n(all.data(), static_cast<int>(all.size())));
    }
    ggml_cgraph * with_copies = placed_->with_copies();
    if (!ggml_gallocr_reserve_n(placed_allocator_.get(), with_copies, placed_->node_places().data(),
                                placed_->leaf_places().data()) ||
        !ggml_gallocr_alloc_graph(placed_allocator_.get(), with_copies)) {
        std::vector<size_t> n_bytes(all.size(), 0);
        const ggml_gallocr_ptr scratch(ggml_gallocr_new_n(all.data(), static_cast<int>(all.size())));
        ggml_gallocr_reserve_n_size(scratch.get(), with_copies, placed_->node_places().data(),
                                    placed_->leaf_places().data(), n_bytes.data());
        placed_allocator_.reset();
        placed_.reset();
        // the allocator does not say whose memory was too little: the first that has less than is needed
        for (int place = 0; place < cpu(); place++) {
            size_t free_bytes = 0, total_bytes = 0;
            ggml_backend_dev_memory(device(place), &free_bytes, &total_bytes);
            if (free_bytes < n_bytes[place]) {
                refuse(place, n_bytes[place]);
            }
        }
        refuse(0, n_bytes[0]);
    }
    prefer_huge_pages(graph);
}

DeviceBytes Executor::allocated() const {
    DeviceBytes n_bytes;
    for (int place = 0; place <= cpu(); place++) {
        uint64_t & sum = n_bytes[device(place)];
        if (static_cast<size_t>(place) < kept_buffers_.size() && kept_buffers_[place]) {
            sum += ggml_backend_buffer_get_size(kept_buffers_[place].get());
        }
        if (placed_allocator_) {
            sum += ggml_gallocr_get_buffer_size(placed_allocator_.get(), place);
        }
    }
    n_bytes[nullptr] += ggml_gallocr_get_buffer_size(allocator_.get(), 0);
    return n_bytes;
}

void Executor::compute(ggml_cgraph * graph, int begin, int end) {
    if (placed_) {
        compute_placed(graph, begin, end);
    } else {
        compute_part(cpu(), graph, begin, end);
    }
}

void Executor::compute_placed(ggml_cgraph * graph, int begin, int end) {
    for (const PlacedGraph::Run & run : placed_->runs()) {
        const int from = std::max(begin, run.begin), to = std::min(end, run.end);
        if (from >= to) {
            continue;
        }
        if (from == run.begin) {
            // backends wait at the end of each part: nothing reads or writes these any more
            for (const auto & [original, copy] : run.copies) {
                ggml_backend_tensor_copy(original, copy);
            }
        }
        compute_part(run.place, graph, from, to);
    }
}

void Executor::compute_part(int place, ggml_cgraph * graph, int begin, int end) {
    if (profile_ == nullptr) {
        const int step = place < cpu() ? kNodesAtOnce : std::max(1, end - begin);
        for (int i = begin; i < end; i += step) {
            compute_slice_checked(place, graph, i, std::min(i + step, end));
        }
        return;
    }
    const std::string where = place < cpu() ? " @ " + device_name(device(place)) : devices_.empty() ? "" : " @ CPU";
    for (int i = begin; i < end; i++) {
        const auto start = std::chrono::steady_clock::now();
        compute_slice_checked(place, graph, i, i + 1);
        const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
        (*profile_)[describe(ggml_graph_node(graph, i)) + where] += elapsed.count();
    }
}

// One operation of ggml's, since its threads are there already.
void Executor::in_parallel(const std::function<void(int ith, int nth)> & work) {
    const ggml_init_params params = {ggml_tensor_overhead() + ggml_graph_overhead_custom(1, false), nullptr, true};
    const ggml_context_ptr ctx(ggml_init(params));
    const auto run = [](ggml_tensor *, int ith, int nth, void * userdata) {
        (*static_cast<const std::function<void(int, int)> *>(userdata))(ith, nth);
    };
    ggml_cgraph * graph = ggml_new_graph_custom(ctx.get(), 1, false);
    ggml_build_forward_expand(graph,
                              ggml_custom_4d(ctx.get(), GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, run, GGML_N_TASKS_MAX,
                                             const_cast<std::function<void(int, int)> *>(&work)));
    const struct Uninterrupted {
        ggml_backend_t backend;
        explicit Uninterrupted(ggml_backend_t backend) : backend(backend) {
            ggml_backend_cpu_set_abort_callback(backend, nullptr, nullptr);
        }
        ~Uninterrupted() { ggml_backend_cpu_set_abort_callback(backend, abort_callback, nullptr); }
    } guard(backend_.get());
    const ggml_status status = ggml_backend_graph_compute(backend_.get(), graph);
    if (status != GGML_STATUS_SUCCESS) {
        throw Error("ggml could not compute a graph: " + std::string(ggml_status_to_string(status)));
    }
}

void Executor::compute_slice_checked(int place, ggml_cgraph * graph, int begin, int end) {
    if (begin == end) {
        return;
    }
    if ((place < cpu() || pool_ == nullptr) && interrupted()) {
        throw Interrupted();
    }
    ggml_status status;
    if (place < cpu()) {
        const auto lost = [&](const std::string & why) {
            return DeviceLostError("the device " + device_name(device(place)) + " failed: " + why);
        };
        try {
            const AbortAsException guard(AbortAsException::Around::computation);
            status = compute_slice(backend(place), graph, begin, end);
        } catch (const std::exception & e) {
            throw lost(reason(e));
        }
        if (status != GGML_STATUS_SUCCESS) {
            throw lost(ggml_status_to_string(status));
        }
        return;
    }
    status = compute_slice(backend(place), graph, begin, end);
    if (status == GGML_STATUS_ABORTED) {
        throw Interrupted();
    }
    if (status != GGML_STATUS_SUCCESS) {
        throw Error("ggml could not compute a graph: " + std::string(ggml_status_to_string(status)));
    }
}

}  // namespace ggtune
