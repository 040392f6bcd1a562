// Reverse-mode differentiation of ggml graphs: a table from op to rule. Rules emit nodes; nothing is computed here.
#pragma once

#include <ggml.h>

#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "engine/graph_ops.h"

namespace ggtune {

class Autodiff {
  public:
    explicit Autodiff(GraphOps & ops_) : ops(ops_) {}

    GraphOps & ops;

    // A leaf whose gradient is wanted, added in place to `accumulator` (F32, same shape). Each leaf may be used by one
    // product.
    void set_trainable(ggml_tensor * leaf, ggml_tensor * accumulator);

    // Mark the nodes that depend on a trainable leaf; nodes in topological order. May be called again for further
    // nodes.
    void trace(const std::vector<ggml_tensor *> & nodes);
    bool needs_gradient(const ggml_tensor * t) const { return t != nullptr && on_path.count(t) != 0; }

    // One line per node on the path that has no rule: op and tensor name. Empty when all can be differentiated.
    std::vector<std::string> missing_rules(const std::vector<ggml_tensor *> & nodes) const;

    // d(loss)/dt += dt. F32, the shape of t, any strides.
    void add(ggml_tensor * t, ggml_tensor * dt);
    // The same for a dt that was made for this and is read by nothing else: later terms may be added to it in place.
    void add_own(ggml_tensor * t, ggml_tensor * dt);
    // Where a term of d(loss)/dt can be added in place, or nullptr: then it has to be added with add_own().
    ggml_tensor * own_gradient(const ggml_tensor * t) const;
    void set_own_gradient(const ggml_tensor * t, ggml_tensor * dt) { gradients[t] = dt; }
    // d(loss)/dt as far as it has been added up; nullptr if nothing has
    ggml_tensor * gradient(const ggml_tensor * t) const;

    // Apply the rules to the nodes (topological order) from the last to the first, as far as gradients reach.
    void backward(const std::vector<ggml_tensor *> & nodes);

    // For rules: the accumulator of a trainable leaf, or nullptr; and the word that a leaf's gradient is on its way.
    ggml_tensor * accumulator(const ggml_tensor * leaf) const;
    void add_result(ggml_tensor * leaf, ggml_tensor * accumulated);

    // Nodes that write into accumulators, in the order in which they were made since the last call.
    std::vector<ggml_tensor *> take_results();
    bool has_result(const ggml_tensor * leaf) const { return reached.count(leaf) != 0; }

  private:
    std::unordered_map<const ggml_tensor *, ggml_tensor *> accumulators;
    std::unordered_map<const ggml_tensor *, ggml_tensor *> gradients;
    std::unordered_set<const ggml_tensor *> owned;  // tensors whose gradient nothing else reads
    std::unordered_set<const ggml_tensor *> on_path;
    std::unordered_set<const ggml_tensor *> reached;
    std::vector<ggml_tensor *> results;
};

// The activation that a UNARY or GLU node applies; false where ggtune has no kernel for it.
bool activation_of(const ggml_tensor * node, Activation & f);

}  // namespace ggtune
