#include "engine/calibrate.h"

#include <ggml-cpp.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <string>

#include "base/error.h"
#include "ops/op.h"

namespace ggtune {

namespace {

constexpr int kMaxRepeats = 5;
constexpr double kEnoughSeconds = 0.1;  // of one kind of node
constexpr uint8_t kOperandByte = 0x3f;  // of floats of 0.747: zeros would be quantized too easily

// Whether `node` is written over a part of `src`.
bool is_over(const ggml_tensor * node, const ggml_tensor * src) {
    const ggml_tensor * owner = src->view_src != nullptr ? src->view_src : src;
    return node->view_src == owner && node->view_offs >= src->view_offs &&
           node->view_offs + ggml_nbytes(node) <= src->view_offs + ggml_nbytes(src);
}

// Equal for nodes that take the same time.
std::string kind_of(const ggml_tensor * node, const InputValues & inputs) {
    std::string kind = describe(node);
    const auto add = [&kind](const void * data, size_t n) { kind.append(static_cast<const char *>(data), n); };
    if (node->op != GGML_OP_CUSTOM) {  // there the parameters are pointers
        add(node->op_params, sizeof(node->op_params));
    }
    const auto add_shape = [&](const ggml_tensor * t) {
        add(&t->type, sizeof(t->type));
        add(t->ne, sizeof(t->ne));
        add(t->nb, sizeof(t->nb));
    };
    add_shape(node);
    for (const ggml_tensor * src : node->src) {
        if (src != nullptr) {
            add_shape(src);
            const auto values = inputs.find(src);
            const void * content = values != inputs.end() ? values->second : nullptr;
            add(&content, sizeof(content));
        }
    }
    return kind;
}

// The node with operands of its own in memory of their own.
class Sample {
  public:
    Sample(const ggml_tensor * node, const InputValues & inputs, ggml_backend_buffer_type_t buffer_type)
        : ctx_(ggml_init({(GGML_MAX_SRC + 1) * ggml_tensor_overhead() + ggml_graph_overhead_custom(GGML_MAX_SRC, false),
                          nullptr, true})) {
        ggml_tensor * copy = duplicate(node);
        copy->op = node->op;
        std::memcpy(copy->op_params, node->op_params, sizeof(copy->op_params));
        std::map<const ggml_tensor *, ggml_tensor *> copies;  // an operand may be given twice
        size_t n_bytes = 0;
        const size_t alignment = ggml_backend_buft_get_alignment(buffer_type);
        const auto size = [&](const ggml_tensor * t) {
            return GGML_PAD(ggml_backend_buft_get_alloc_size(buffer_type, t), alignment);
        };
        const ggml_tensor * shared = nullptr;  // the operand that the result is written over
        for (int i = 0; i < GGML_MAX_SRC; i++) {
            const ggml_tensor * src = node->src[i];
            if (src == nullptr) {
                continue;
            }
            if (copies.count(src) == 0) {
                copies[src] = duplicate(src);
                n_bytes += size(src);
            }
            copy->src[i] = copies[src];
            if (shared == nullptr && is_over(node, src)) {
                shared = src;
            }
        }
        n_bytes += size(node);
        buffer_.reset(ggml_backend_buft_alloc_buffer(buffer_type, n_bytes));
        if (!buffer_) {
            throw Error("not enough memory to time " + describe(node) + ": " + std::to_string(n_bytes >> 20) + " MiB");
        }
        ggml_backend_buffer_clear(buffer_.get(), 0);
        ggml_tallocr places = ggml_tallocr_new(buffer_.get());
        for (const auto & [src, twin] : copies) {
            ggml_tallocr_alloc(&places, twin);
            const auto values = inputs.find(src);
            if (values != inputs.end()) {
                ggml_backend_tensor_set(twin, values->second->data(), 0, ggml_nbytes(twin));
            } else if (const CustomNode * custom = custom_node(src); custom != nullptr && custom->op->fill_twin) {
                custom->op->fill_twin(twin, src);
            } else if (twin->type == GGML_TYPE_F32) {
                ggml_backend_tensor_memset(twin, kOperandByte, 0, ggml_nbytes(twin));
            }
        }
        if (shared != nullptr) {
            copy->buffer = buffer_.get();
            copy->data = static_cast<char *>(copies[shared]->data) + (node->view_offs - shared->view_offs);
        } else {
            ggml_tallocr_alloc(&places, copy);
        }
        graph_ = ggml_new_graph_custom(ctx_.get(), GGML_MAX_SRC, false);
        ggml_build_forward_expand(graph_, copy);
    }

    double seconds(Executor & executor) const {
        double best_s = 0;
        double total_s = 0;
        for (int i = 0; i < kMaxRepeats && total_s < kEnoughSeconds; i++) {
            const auto start = std::chrono::steady_clock::now();
            executor.compute(graph_, 0, ggml_graph_n_nodes(graph_));
            const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
            best_s = i == 0 ? elapsed.count() : std::min(best_s, elapsed.count());
            total_s += elapsed.count();
        }
        return best_s;
    }

  private:
    ggml_tensor * duplicate(const ggml_tensor * t) {
        ggml_tensor * copy = ggml_new_tensor(ctx_.get(), t->type, GGML_MAX_DIMS, t->ne);
        std::copy(std::begin(t->nb), std::end(t->nb), copy->nb);
        return copy;
    }

    ggml_context_ptr ctx_;
    ggml_backend_buffer_ptr buffer_;
    ggml_cgraph * graph_ = nullptr;
};

}  // namespace

double measure_seconds(Executor & executor, ggml_cgraph * graph, const InputValues & inputs) {
    std::map<std::string, double> known;
    double total_s = 0;
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        const ggml_tensor * node = ggml_graph_node(graph, i);
        if (computes_nothing(node) || ggml_is_empty(node)) {
            continue;
        }
        const auto [place, is_new] = known.try_emplace(kind_of(node, inputs));
        if (is_new) {
            place->second = Sample(node, inputs, executor.buffer_type()).seconds(executor);
        }
        total_s += place->second;
    }
    return total_s;
}

}  // namespace ggtune
