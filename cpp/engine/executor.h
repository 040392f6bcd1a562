// Runs graphs on the CPU: memory for their tensors, threads, interruption.
#pragma once

#include <ggml-cpp.h>
#include <ggml-cpu.h>

#include <functional>
#include <memory>

namespace ggtune {

// Asked between nodes while the engine computes, on the calling thread; true stops the work, which then raises Interrupted.
// Set once, by the bindings.
void set_interrupt_check(bool (*check)());
bool interrupted();

class Executor {
  public:
    explicit Executor(int n_threads);

    // Bytes that the graph's own tensors need together; allocates nothing.
    size_t measure(ggml_cgraph * graph) const;
    // Gives them memory, which stays with the executor and grows when needed. Raises Error where there is not enough.
    void allocate(ggml_cgraph * graph);
    // Runs nodes [begin, end). Raises Interrupted.
    void compute(ggml_cgraph * graph, int begin, int end);

    size_t allocated_bytes() const;

  private:
    struct PoolDeleter {
        void operator()(ggml_threadpool * pool) const { ggml_threadpool_free(pool); }
    };
    ggml_backend_ptr backend;
    std::unique_ptr<ggml_threadpool, PoolDeleter> pool;
    ggml_gallocr_ptr allocator;
};

}  // namespace ggtune
