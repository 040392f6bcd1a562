#include "engine/placed_graph.h"

#include <algorithm>
#include <map>
#include <string>

#include "base/error.h"
#include "engine/llama_access.h"
#include "ops/op.h"

namespace ggtune {

namespace {

// Further ahead nodes of devices that need nothing computed before, such as tiles of weights, would fill memory long
// before they are read. The CPU's kernels need no such nodes.
constexpr int kNodesAhead = 64, kNodesAheadOnCpu = 1024;

}  // namespace

void group_by_place(ggml_cgraph * graph, int begin, int end, const PlaceOf & place_of, int cpu) {
    ggml_tensor ** nodes = ggml_graph_nodes(graph) + begin;
    const int n = end - begin;
    std::unordered_map<const ggml_tensor *, int> index;
    for (int i = 0; i < n; i++) {
        index[nodes[i]] = i;
    }
    const auto owner = [](const ggml_tensor * node) { return node->view_src != nullptr ? node->view_src : node; };
    std::vector<bool> done(n, false);
    const auto is_ready = [&](const ggml_tensor * node) {
        const auto is_missing = [&](const ggml_tensor * t) {
            const auto found = t != node ? index.find(t) : index.end();
            return found != index.end() && !done[found->second];
        };
        return !is_missing(node->view_src) && std::none_of(std::begin(node->src), std::end(node->src), is_missing);
    };
    std::vector<ggml_tensor *> ordered;
    ordered.reserve(n);
    int first = 0, place = -1;
    while (first < n) {
        int next = -1;
        const int n_ahead = place == cpu ? kNodesAheadOnCpu : kNodesAhead;
        for (int i = first; i < std::min(first + n_ahead, n) && next < 0; i++) {
            const bool is_here = !done[i] && (computes_nothing(nodes[i]) || place_of(owner(nodes[i])) == place);
            next = is_here && is_ready(nodes[i]) ? i : -1;
        }
        if (next < 0) {
            next = first;
            place = place_of(owner(nodes[first]));
        }
        done[next] = true;
        ordered.push_back(nodes[next]);
        while (first < n && done[first]) {
            first++;
        }
    }
    std::copy(ordered.begin(), ordered.end(), nodes);
}

// Memory of a host is the CPU's, whichever device it was made for.
int PlacedGraph::place_of_buffer(const ggml_tensor * t) const {
    ggml_backend_buffer_type_t type = ggml_backend_buffer_get_type(t->buffer);
    const auto cpu = static_cast<int>(types_.size()) - 1;
    if (ggml_backend_buft_is_host(type)) {
        return cpu;
    }
    for (int place = 0; place < cpu; place++) {
        if (ggml_backend_buft_get_device(types_[place]) == ggml_backend_buft_get_device(type)) {
            return place;
        }
    }
    throw Error("tensor " + std::string(t->name) + " lies in memory of " + ggml_backend_buft_name(type) +
                ", which is none of the run's devices");
}

int PlacedGraph::place(const ggml_tensor * t) const {
    if (t->view_src != nullptr) {
        return place(t->view_src);
    }
    if (t->buffer != nullptr) {
        return place_of_buffer(t);
    }
    // what the host fills in is filled in in its memory
    return t->op == GGML_OP_NONE ? static_cast<int>(types_.size()) - 1 : place_of_(t);
}

PlacedGraph::PlacedGraph(ggml_cgraph * graph, const PlaceOf & place_of, std::vector<ggml_backend_buffer_type_t> types)
    : place_of_(place_of), types_(std::move(types)) {
    const int n_nodes = ggml_graph_n_nodes(graph);
    std::vector<int> places(n_nodes);
    for (int i = 0; i < n_nodes; i++) {
        const ggml_tensor * node = ggml_graph_node(graph, i);
        places[i] = place(node);
        if (computes_nothing(node)) {
            continue;
        }
        if (node->view_src != nullptr && place_of_(node) != places[i]) {
            throw Error("tensor " + std::string(node->name) + " would be written over memory of another device");
        }
        if (runs_.empty() || runs_.back().place != places[i]) {
            runs_.push_back({places[i], i, i, {}});
        }
    }
    for (size_t r = 0; r < runs_.size(); r++) {
        runs_[r].begin = r == 0 ? 0 : runs_[r].begin;
        runs_[r].end = r + 1 < runs_.size() ? runs_[r + 1].begin : n_nodes;
    }

    std::map<std::pair<const ggml_tensor *, int>, ggml_tensor *> copies;
    size_t n_copies = 0;
    for (const Run & run : runs_) {
        for (int i = run.begin; i < run.end; i++) {
            const ggml_tensor * node = ggml_graph_node(graph, i);
            for (const ggml_tensor * src : node->src) {
                if (src != nullptr && src != node && !computes_nothing(node) && place(src) != run.place) {
                    n_copies += copies.try_emplace({src, run.place}, nullptr).second ? 1 : 0;
                }
            }
        }
    }
    copies.clear();
    const std::vector<ggml_tensor *> leafs = leafs_of(graph);
    const size_t n_all = std::max(n_nodes + 2 * n_copies, leafs.size()) + 1;
    const ggml_init_params params = {2 * n_copies * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_all, false),
                                     nullptr, true};
    ctx_.reset(ggml_init(params));
    std::vector<ggml_tensor *> nodes;
    nodes.reserve(n_all);
    for (Run & run : runs_) {
        for (int i = run.begin; i < run.end; i++) {
            ggml_tensor * node = ggml_graph_node(graph, i);
            if (computes_nothing(node)) {
                continue;
            }
            for (ggml_tensor *& src : node->src) {
                if (src == nullptr || src == node || place(src) == run.place) {
                    continue;
                }
                ggml_tensor *& copy = copies[{src, run.place}];
                if (copy == nullptr) {
                    copy = ggml_dup_tensor(ctx_.get(), src);
                    std::copy(std::begin(src->nb), std::end(src->nb), copy->nb);
                    ggml_format_name(copy, "%s (copy)", src->name);
                    run.copies.emplace_back(src, copy);
                    // the original is there until it has been copied
                    ggml_tensor * until_here = ggml_view_tensor(ctx_.get(), src);
                    until_here->src[0] = src;
                    nodes.push_back(until_here);
                    node_places_.push_back(place(src));
                    nodes.push_back(copy);
                    node_places_.push_back(run.place);
                }
                src = copy;
            }
        }
        // all copies of a run are made before its first node
        for (int i = run.begin; i < run.end; i++) {
            nodes.push_back(ggml_graph_node(graph, i));
            node_places_.push_back(places[i]);
        }
    }
    all_ = graph_of(ctx_.get(), graph, nodes);
    for (const ggml_tensor * leaf : leafs) {
        leaf_places_.push_back(place(leaf));
    }
}

}  // namespace ggtune
