#include "engine/executor.h"

#include <chrono>
#include <utility>

#include "base/error.h"
#include "base/interrupt.h"
#include "engine/llama_access.h"
#include "kernels/huge_pages.h"
#include "ops/op.h"

namespace ggtune {

namespace {

bool abort_callback(void *) {
    return interrupted();
}

Error not_enough_memory(size_t n_bytes) {
    return Error("not enough memory for a micro-batch: " + std::to_string(n_bytes >> 20) +
                 " MiB are needed. A smaller context or recomputation needs less.");
}

}  // namespace

Executor::Executor(ggml_backend_ptr backend)
    : backend_(std::move(backend)), allocator_(ggml_gallocr_new(buffer_type())) {}

Executor::Executor(int n_threads) : Executor(ggml_backend_ptr(ggml_backend_cpu_init())) {
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    pool_.reset(ggml_threadpool_new(&params));
    ggml_backend_cpu_set_n_threads(backend_.get(), n_threads);
    ggml_backend_cpu_set_threadpool(backend_.get(), pool_.get());
    ggml_backend_cpu_set_abort_callback(backend_.get(), abort_callback, nullptr);
}

size_t Executor::padded_bytes(const std::vector<ggml_tensor *> & tensors) const {
    size_t n_bytes = 0;
    for (const ggml_tensor * t : tensors) {
        n_bytes +=
            GGML_PAD(ggml_backend_buft_get_alloc_size(buffer_type(), t), ggml_backend_get_alignment(backend_.get()));
    }
    return n_bytes;
}

size_t Executor::measure(ggml_cgraph * graph, const std::vector<ggml_tensor *> & kept) const {
    // a buffer without memory tells the allocator that these tensors are not its own
    const ggml_backend_buffer_ptr elsewhere(ggml_backend_buft_alloc_buffer(buffer_type(), 0));
    for (ggml_tensor * t : kept) {
        t->buffer = elsewhere.get();
    }
    const ggml_gallocr_ptr scratch(ggml_gallocr_new(buffer_type()));
    size_t n_bytes = 0;
    ggml_gallocr_reserve_n_size(scratch.get(), graph, nullptr, nullptr, &n_bytes);
    for (ggml_tensor * t : kept) {
        t->buffer = nullptr;
    }
    return n_bytes + padded_bytes(kept);
}

void Executor::allocate(ggml_cgraph * graph, const std::vector<ggml_tensor *> & kept) {
    const size_t kept_bytes = padded_bytes(kept);
    if (kept_bytes > 0 && (!kept_buffer_ || ggml_backend_buffer_get_size(kept_buffer_.get()) < kept_bytes)) {
        kept_buffer_.reset();
        kept_buffer_.reset(ggml_backend_buft_alloc_buffer(buffer_type(), kept_bytes));
        if (!kept_buffer_) {
            throw not_enough_memory(measure(graph, kept));
        }
    }
    if (!kept.empty()) {
        ggml_tallocr places = ggml_tallocr_new(kept_buffer_.get());
        for (ggml_tensor * t : kept) {
            ggml_tallocr_alloc(&places, t);
        }
    }
    // always planned anew: alloc_graph alone would take another graph of the same size for the one planned before
    if (!ggml_gallocr_reserve(allocator_.get(), graph) || !ggml_gallocr_alloc_graph(allocator_.get(), graph)) {
        throw not_enough_memory(measure(graph, kept));
    }
    ggml_backend_buffer_t last = nullptr;
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        ggml_backend_buffer_t buffer = ggml_graph_node(graph, i)->buffer;
        if (buffer != nullptr && buffer != last && ggml_backend_buffer_is_host(buffer)) {
            kernels::prefer_huge_pages(ggml_backend_buffer_get_base(buffer), ggml_backend_buffer_get_size(buffer));
            last = buffer;
        }
    }
}

void Executor::compute(ggml_cgraph * graph, int begin, int end) {
    if (profile_ == nullptr) {
        compute_slice_checked(graph, begin, end);
        return;
    }
    for (int i = begin; i < end; i++) {
        const auto start = std::chrono::steady_clock::now();
        compute_slice_checked(graph, i, i + 1);
        const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
        (*profile_)[describe(ggml_graph_node(graph, i))] += elapsed.count();
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

void Executor::compute_slice_checked(ggml_cgraph * graph, int begin, int end) {
    if (begin == end) {
        return;
    }
    if (pool_ == nullptr && interrupted()) {
        throw Interrupted();
    }
    const ggml_status status = compute_slice(backend_.get(), graph, begin, end);
    if (status == GGML_STATUS_ABORTED) {
        throw Interrupted();
    }
    if (status != GGML_STATUS_SUCCESS) {
        throw Error("ggml could not compute a graph: " + std::string(ggml_status_to_string(status)));
    }
}

}  // namespace ggtune
