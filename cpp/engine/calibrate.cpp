#include "engine/calibrate.h"

#include <ggml-cpp.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <string>

#include "engine/error.h"
#include "engine/executor.h"
#include "engine/graph_ops.h"

namespace ggtune {

ProductTimes measure_products(ggml_type type, int64_t n_in, int64_t n_out, int64_t n_tokens, int threads) {
    if (n_in < 1 || n_out < 1 || n_tokens < 1 || threads < 1 || n_in % ggml_blck_size(type) != 0) {
        throw Error(std::string("no product of type ") + ggml_type_name(type) + " has " + std::to_string(n_in) +
                    " inputs");
    }
    const ggml_context_ptr inputs(ggml_init({8 * ggml_tensor_overhead(), nullptr, true}));
    ggml_tensor * w = ggml_new_tensor_2d(inputs.get(), type, n_in, n_out);
    ggml_tensor * x = ggml_new_tensor_2d(inputs.get(), GGML_TYPE_F32, n_in, n_tokens);
    ggml_tensor * dy = ggml_new_tensor_2d(inputs.get(), GGML_TYPE_F32, n_out, n_tokens);
    const ggml_backend_buffer_ptr buffer(
        ggml_backend_alloc_ctx_tensors_from_buft(inputs.get(), ggml_backend_cpu_buffer_type()));
    if (!buffer) {
        throw Error("not enough memory to try a product of " + std::to_string(n_in) + " x " + std::to_string(n_out));
    }
    ggml_backend_buffer_clear(buffer.get(), 0);
    const ggml_context_ptr nodes(
        ggml_init({64 * ggml_tensor_overhead() + 2 * ggml_graph_overhead_custom(32, false), nullptr, true}));
    GraphOps ops(nodes.get());
    ggml_tensor * const products[] = {
        GraphOps::can_int8_product(w, x)
            ? ops.int8_product(w, x, ops.int8_quantize(x, GraphOps::int8_activation_block(type)))
            : ggml_mul_mat(nodes.get(), w, x),
        ops.weight_dx(w, dy, x->ne, nullptr)};
    double best_s[2];
    Executor executor(threads);
    for (int i = 0; i < 2; i++) {
        ggml_cgraph * graph = ggml_new_graph_custom(nodes.get(), 32, false);
        ggml_build_forward_expand(graph, products[i]);
        executor.allocate(graph);
        best_s[i] = std::numeric_limits<double>::infinity();
        for (int repeat = 0; repeat < 3; repeat++) {
            const auto start = std::chrono::steady_clock::now();
            executor.compute(graph, 0, ggml_graph_n_nodes(graph));
            const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
            best_s[i] = std::min(best_s[i], elapsed.count());
        }
    }
    return {best_s[0], best_s[1]};
}

}  // namespace ggtune
