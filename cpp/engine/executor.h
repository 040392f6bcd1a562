// Runs graphs on a ggml backend: memory for their tensors, interruption; on the CPU threads, too.
#pragma once

#include <ggml-cpp.h>
#include <ggml-cpu.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ggtune {

class Executor {
  public:
    // On the CPU.
    explicit Executor(int n_threads);
    // On any backend. Where it is not the CPU, compute() can be interrupted before its first node alone.
    explicit Executor(ggml_backend_ptr backend);

    // Of the memory that graphs are given.
    ggml_backend_buffer_type_t buffer_type() const { return ggml_backend_get_default_buffer_type(backend_.get()); }

    // Bytes that the graph's own tensors need together; allocates nothing. `kept` are those of its tensors that live
    // through most of it: they get a place of their own, since among short-lived ones they would cut its memory to
    // pieces.
    size_t measure(ggml_cgraph * graph, const std::vector<ggml_tensor *> & kept = {}) const;
    // Gives them memory, which stays with the executor and grows when needed. Raises Error where there is not enough.
    void allocate(ggml_cgraph * graph, const std::vector<ggml_tensor *> & kept = {});
    // Runs nodes [begin, end). Raises Interrupted.
    void compute(ggml_cgraph * graph, int begin, int end);
    // Calls work(ith, nth) on all threads of the CPU, which the backend must be; never interrupted.
    void in_parallel(const std::function<void(int ith, int nth)> & work);

    // From now on nodes are run one by one and their seconds added up under a name; nullptr ends it.
    using Profile = std::map<std::string, double>;
    void set_profile(Profile * profile) { profile_ = profile; }

  private:
    void compute_slice_checked(ggml_cgraph * graph, int begin, int end);

    size_t padded_bytes(const std::vector<ggml_tensor *> & tensors) const;

    struct PoolDeleter {
        void operator()(ggml_threadpool * pool) const { ggml_threadpool_free(pool); }
    };
    ggml_backend_ptr backend_;
    std::unique_ptr<ggml_threadpool, PoolDeleter> pool_;  // of the CPU
    ggml_gallocr_ptr allocator_;
    ggml_backend_buffer_ptr kept_buffer_;
    Profile * profile_ = nullptr;
};

}  // namespace ggtune
