// The executor on a backend that it is given, and interruption.
#include "engine/executor.h"

#include <ggml-cpp.h>

#include "base/error.h"
#include "base/interrupt.h"
#include "check.h"

namespace {

using namespace ggtune;
using namespace ggtune::test;

bool stop = false;

void run(const std::string & name, Executor executor) {
    const ggml_context_ptr ctx(ggml_init({1 << 20, nullptr, true}));
    ggml_tensor * x = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 3);
    ggml_set_input(x);
    ggml_tensor * kept = ggml_scale(ctx.get(), x, 2.0f);
    ggml_tensor * y = ggml_add(ctx.get(), kept, x);
    ggml_set_output(y);
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, y);
    const size_t n_bytes = executor.measure(graph, {kept});
    check(name + ": bytes for three tensors", n_bytes >= 3 * ggml_nbytes(x) ? 0 : 1, 0);
    executor.allocate(graph, {kept});
    const std::vector<float> values = {1.0f, -2.0f, 0.5f};
    ggml_backend_tensor_set(x, values.data(), 0, ggml_nbytes(x));
    executor.compute(graph, 0, ggml_graph_n_nodes(graph));
    std::vector<float> results(3);
    ggml_backend_tensor_get(y, results.data(), 0, ggml_nbytes(y));
    check(name + ": results", relative_difference(results, std::vector<float>{3.0f, -6.0f, 1.5f}), 0);

    bool interrupted = false;
    stop = true;
    try {
        executor.compute(graph, 0, ggml_graph_n_nodes(graph));
    } catch (const Interrupted &) {
        interrupted = true;
    }
    stop = false;
    check(name + ": interrupted", interrupted ? 0 : 1, 0);
}

}  // namespace

int main() {
    set_interrupt_check([] { return stop; });
    run("the CPU with threads of its own", Executor(2));
    run("a given backend", Executor(ggml_backend_ptr(ggml_backend_cpu_init())));
    return finish();
}
