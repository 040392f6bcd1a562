// Runs graphs on the CPU: memory for their tensors, threads, interruption.
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
    explicit Executor(int n_threads);

    // Bytes that the graph's own tensors need together; allocates nothing. `kept` are those of its tensors that live
    // through most of it: they get a place of their own, since among short-lived ones they would cut its memory to
    // pieces.
    size_t measure(ggml_cgraph * graph, const std::vector<ggml_tensor *> & kept = {}) const;
    // Gives them memory, which stays with the executor and grows when needed. Raises Error where there is not enough.
    void allocate(ggml_cgraph * graph, const std::vector<ggml_tensor *> & kept = {});
    // Runs nodes [begin, end). Raises Interrupted.
    void compute(ggml_cgraph * graph, int begin, int end);
    // Calls work(ith, nth) on all threads; never interrupted.
    void in_parallel(const std::function<void(int ith, int nth)> & work);

    // From now on nodes are run one by one and their seconds added up under a name; nullptr ends it.
    using Profile = std::map<std::string, double>;
    void set_profile(Profile * profile_) { profile = profile_; }

  private:
    void compute_slice_checked(ggml_cgraph * graph, int begin, int end);

    struct PoolDeleter {
        void operator()(ggml_threadpool * pool) const { ggml_threadpool_free(pool); }
    };
    ggml_backend_ptr backend;
    std::unique_ptr<ggml_threadpool, PoolDeleter> pool;
    ggml_gallocr_ptr allocator;
    ggml_backend_buffer_ptr kept_buffer;
    Profile * profile = nullptr;
};

}  // namespace ggtune
