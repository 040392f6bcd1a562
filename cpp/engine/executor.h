// Runs graphs on the CPU, or on the CPU and devices: memory for their tensors, interruption, threads.
#pragma once

#include <ggml-cpp.h>
#include <ggml-cpu.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/placed_graph.h"

namespace ggtune {

// Bytes by device; nullptr: main memory.
using DeviceBytes = std::map<ggml_backend_dev_t, uint64_t>;

class Executor {
  public:
    // On the CPU, and where graphs have places (PlaceOf), on these devices: place i is devices[i], the last the CPU.
    explicit Executor(int n_threads, const std::vector<ggml_backend_dev_t> & devices = {});
    // On any backend. Where it is not the CPU, compute() can be interrupted before its first node alone.
    explicit Executor(ggml_backend_ptr backend);

    // Of the memory that graphs without places are given.
    ggml_backend_buffer_type_t buffer_type() const { return ggml_backend_get_default_buffer_type(backend_.get()); }

    // Bytes that the graph's own tensors need together; allocates nothing. `kept` are those of its tensors that live
    // through most of it: they get a place of their own, since among short-lived ones they would cut its memory to
    // pieces.
    size_t measure(ggml_cgraph * graph, const std::vector<ggml_tensor *> & kept = {}) const;
    // The same of a graph with places, which can't be allocated afterwards.
    DeviceBytes measure(ggml_cgraph * graph, const std::vector<ggml_tensor *> & kept, const PlaceOf & place_of) const;

    // Gives them memory, which stays with the executor and grows when needed. Raises Error where there is not enough,
    // DeviceMemoryError where a device has not enough. place_of: see PlacedGraph; without it all is the CPU's.
    void allocate(ggml_cgraph * graph, const std::vector<ggml_tensor *> & kept = {},
                  const PlaceOf & place_of = nullptr);
    // Bytes that allocate() holds on.
    DeviceBytes allocated() const;

    // Runs nodes [begin, end) of the graph that has been allocated last, or of one that has memory anyway. Raises
    // Interrupted, DeviceLostError.
    void compute(ggml_cgraph * graph, int begin, int end);
    // Runs of nodes in one place of the graph that has been allocated last; 0: it has no places.
    int n_runs() const { return placed_ ? static_cast<int>(placed_->runs().size()) : 0; }

    // Calls work(ith, nth) on all threads of the CPU, which the backend must be; never interrupted.
    void in_parallel(const std::function<void(int ith, int nth)> & work);

    // From now on nodes are run one by one and their seconds added up under a name; nullptr ends it.
    using Profile = std::map<std::string, double>;
    void set_profile(Profile * profile) { profile_ = profile; }

  private:
    int cpu() const { return static_cast<int>(devices_.size()); }
    ggml_backend_dev_t device(int place) const { return place < cpu() ? devices_[place].device : nullptr; }
    ggml_backend_t backend(int place) const { return place < cpu() ? devices_[place].backend.get() : backend_.get(); }
    std::vector<ggml_backend_buffer_type_t> types() const;

    void allocate_placed(ggml_cgraph * graph, const std::vector<ggml_tensor *> & kept, const PlaceOf & place_of);
    static void prefer_huge_pages(ggml_cgraph * graph);
    void compute_placed(ggml_cgraph * graph, int begin, int end);
    void compute_part(int place, ggml_cgraph * graph, int begin, int end);
    void compute_slice_checked(int place, ggml_cgraph * graph, int begin, int end);

    size_t padded_bytes(const std::vector<ggml_tensor *> & tensors) const;

    struct PoolDeleter {
        void operator()(ggml_threadpool * pool) const { ggml_threadpool_free(pool); }
    };
    struct Device {
        ggml_backend_dev_t device;
        ggml_backend_ptr backend;
        ggml_backend_buffer_type_t type;
    };
    ggml_backend_ptr backend_;
    std::unique_ptr<ggml_threadpool, PoolDeleter> pool_;  // of the CPU
    std::vector<Device> devices_;
    ggml_gallocr_ptr allocator_;
    ggml_gallocr_ptr placed_allocator_;                  // of all places
    std::vector<ggml_backend_buffer_ptr> kept_buffers_;  // by place
    std::unique_ptr<PlacedGraph> placed_;
    Profile * profile_ = nullptr;
};

}  // namespace ggtune
