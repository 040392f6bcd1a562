#include "engine/own_products.h"

#include <ggml-backend-impl.h>
#include <ggml-cpp.h>
#include <ggml-impl.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ops/cpu/cpu_ops.h"

namespace ggtune {

namespace {

using Compute = decltype(ggml_backend_i::graph_compute);
using Free = decltype(ggml_backend_i::free);

// Attention of many tokens (llama.cpp shares out a few by their keys), and products with a weight that has to be
// unpacked; by experts, only where each has enough rows.
bool is_ours(const ggml_tensor * node) {
    if (node->op == GGML_OP_FLASH_ATTN_EXT) {
        return node->src[0]->ne[1] * node->src[0]->ne[3] >= kMinUnpackingRows;
    }
    const bool is_product = node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_MUL_MAT_ID;
    if (!is_product || node->src[0]->type == GGML_TYPE_F32) {
        return false;
    }
    return node->op == GGML_OP_MUL_MAT || ggml_nelements(node->src[2]) >= kMinUnpackingRows * node->src[0]->ne[2];
}

// A graph in which our nodes stand in place of llama.cpp's products. They write where those did; what else they need
// is in memory of this object's.
class OwnGraph {
  public:
    ggml_status compute(ggml_backend_t cpu, const ggml_cgraph & graph, Compute run) {
        const ggml_init_params params = {ggml_tensor_overhead() * (kNodesEach * static_cast<size_t>(graph.n_nodes) + 1),
                                         nullptr, true};
        const ggml_context_ptr ctx(ggml_init(params));
        CpuOps ops(ctx.get(), true);
        nodes_.clear();
        last_use_.clear();
        ops.begin_stretch({graph.nodes, graph.nodes + graph.n_nodes});
        for (int i = 0; i < graph.n_nodes; i++) {
            add(graph.nodes[i], is_ours(graph.nodes[i]) ? ops.replacement(graph.nodes[i]) : nullptr);
        }
        if (std::equal(nodes_.begin(), nodes_.end(), graph.nodes, graph.nodes + graph.n_nodes)) {
            return run(cpu, const_cast<ggml_cgraph *>(&graph));
        }
        if (!give_memory()) {
            return GGML_STATUS_ALLOC_FAILED;
        }
        ggml_cgraph own = graph;  // with the numbers of uses of its nodes, by which ggml fuses some
        own.nodes = nodes_.data();
        own.n_nodes = static_cast<int>(nodes_.size());
        return run(cpu, &own);
    }

  private:
    // At most: a copy of an operand, what it is made to, what is made of the ids of experts, the product.
    static constexpr size_t kNodesEach = 6;

    // Memory that is one tensor's, and then another's.
    struct Region {
        ggml_backend_buffer_ptr buffer;
        size_t n_bytes = 0;
        int last_use = 0;  // index of a node
    };

    void add(ggml_tensor * node, ggml_tensor * replacement) {
        if (replacement == nullptr) {
            nodes_.push_back(node);
            return;
        }
        add_sources(replacement);
        replacement->data = node->data;
        replacement->buffer = node->buffer;
        push(replacement);
    }

    // ggml passes over nodes without the flag, which it sets where it builds graphs itself.
    void push(ggml_tensor * node) {
        node->flags |= GGML_TENSOR_FLAG_COMPUTE;
        nodes_.push_back(node);
    }

    // Nodes that a replacement reads and that have no memory yet, in the order in which they are computed.
    void add_sources(const ggml_tensor * of) {
        const auto add_one = [&](ggml_tensor * t) {
            if (t == nullptr || t->data != nullptr) {
                return;
            }
            if (last_use_.count(t) == 0) {
                add_sources(t);
                push(t);
            }
            last_use_[t] = 0;
        };
        add_one(of->view_src);
        std::for_each(of->src, of->src + GGML_MAX_SRC, add_one);
    }

    void find_last_uses() {
        for (int i = 0; i < static_cast<int>(nodes_.size()); i++) {
            for (const ggml_tensor * src : nodes_[i]->src) {
                for (; src != nullptr; src = src->view_src) {
                    if (const auto found = last_use_.find(src); found != last_use_.end()) {
                        found->second = i;
                    }
                }
            }
        }
    }

    // False where there is not enough memory.
    bool give_memory() {
        find_last_uses();
        for (Region & region : regions_) {
            region.n_bytes = 0;
            region.last_use = -1;
        }
        std::vector<std::pair<ggml_tensor *, size_t>> places;
        for (int i = 0; i < static_cast<int>(nodes_.size()); i++) {
            const auto found = last_use_.find(nodes_[i]);
            if (found != last_use_.end() && nodes_[i]->view_src == nullptr) {
                places.emplace_back(nodes_[i], region_for(i, found->second));
                size_t & n_bytes = regions_[places.back().second].n_bytes;
                n_bytes = std::max(n_bytes, ggml_nbytes(nodes_[i]));
            }
        }
        for (Region & region : regions_) {
            if (!region.buffer || ggml_backend_buffer_get_size(region.buffer.get()) < region.n_bytes) {
                region.buffer.reset();
                region.buffer.reset(ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), region.n_bytes));
                if (!region.buffer) {
                    return false;
                }
            }
        }
        for (const auto & [node, region] : places) {
            node->data = ggml_backend_buffer_get_base(regions_[region].buffer.get());
        }
        for (ggml_tensor * node : nodes_) {
            if (node->data == nullptr && node->view_src != nullptr) {
                node->data = static_cast<char *>(node->view_src->data) + node->view_offs;
            }
        }
        return true;
    }

    // One that is free at a node, the last one that became so.
    size_t region_for(int index, int last_use) {
        Region * best = nullptr;
        for (Region & region : regions_) {
            if (region.last_use < index && (best == nullptr || region.last_use > best->last_use)) {
                best = &region;
            }
        }
        if (best == nullptr) {
            best = &regions_.emplace_back();
        }
        best->last_use = last_use;
        return static_cast<size_t>(best - regions_.data());
    }

    std::vector<ggml_tensor *> nodes_;
    std::unordered_map<const ggml_tensor *, int> last_use_;  // of those that need memory: index of a node
    std::vector<Region> regions_;
};

// The CPU backends whose graphs are computed so, and what all of them were made with.
struct Backends {
    std::mutex mutex;
    std::unordered_map<ggml_backend_t, std::unique_ptr<OwnGraph>> graphs;
    Compute compute = nullptr;
    Free free = nullptr;
};

Backends & backends() {
    static Backends all;
    return all;
}

ggml_status compute(ggml_backend_t cpu, ggml_cgraph * graph) {
    OwnGraph * own = nullptr;
    {
        const std::lock_guard<std::mutex> lock(backends().mutex);
        own = backends().graphs.at(cpu).get();
    }
    return own->compute(cpu, *graph, backends().compute);
}

void free_backend(ggml_backend_t cpu) {
    {
        const std::lock_guard<std::mutex> lock(backends().mutex);
        backends().graphs.erase(cpu);
    }
    backends().free(cpu);
}

}  // namespace

void use_own_products(ggml_backend_t cpu) {
    const std::lock_guard<std::mutex> lock(backends().mutex);
    if (backends().compute == nullptr) {
        backends().compute = cpu->iface.graph_compute;
        backends().free = cpu->iface.free;
    }
    backends().graphs[cpu] = std::make_unique<OwnGraph>();
    cpu->iface.graph_compute = compute;
    cpu->iface.free = free_backend;
}

}  // namespace ggtune
