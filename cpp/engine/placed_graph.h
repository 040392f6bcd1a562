// A graph whose nodes lie in several places: cut into runs of nodes of one place, with copies of what a run reads from
// others. It does what ggml's scheduler does, but for nodes whose places are all known before: nothing is guessed, and
// what can't be is an error instead of an abort.
#pragma once

#include <ggml-cpp.h>

#include <functional>
#include <unordered_map>
#include <utility>
#include <vector>

namespace ggtune {

// The number of the place of a node that has memory of its own and no buffer yet; the last one is the CPU.
using PlaceOf = std::function<int(const ggml_tensor *)>;

class PlacedGraph {
  public:
    // types: of the memory of each place. Nodes are put to use in their places: operands from elsewhere are replaced by
    // copies of them, so a graph is placed once. Raises Error for a node that would write over memory of another place.
    PlacedGraph(ggml_cgraph * graph, const PlaceOf & place_of, std::vector<ggml_backend_buffer_type_t> types);

    // Nodes [begin, end), before which the copies are made.
    struct Run {
        int place;
        int begin, end;
        std::vector<std::pair<ggml_tensor *, ggml_tensor *>> copies;  // from, to
    };
    const std::vector<Run> & runs() const { return runs_; }
    int place(const ggml_tensor * t) const;

    // The graph with the copies in it, as an allocator of all places takes it.
    ggml_cgraph * with_copies() const { return all_; }
    const std::vector<int> & node_places() const { return node_places_; }
    const std::vector<int> & leaf_places() const { return leaf_places_; }

  private:
    int place_of_buffer(const ggml_tensor * t) const;

    const PlaceOf place_of_;
    const std::vector<ggml_backend_buffer_type_t> types_;
    ggml_context_ptr ctx_;
    std::vector<Run> runs_;
    ggml_cgraph * all_ = nullptr;
    std::vector<int> node_places_, leaf_places_;
};

// Puts nodes [begin, end) of a graph in an order in which they go over from place to place less often: those of one
// place that could be computed go before those of another, as far as a look some nodes ahead goes.
void group_by_place(ggml_cgraph * graph, int begin, int end, const PlaceOf & place_of, int cpu);

}  // namespace ggtune
