// Reverse-mode differentiation of ggml graphs, by the rule of each node's op (ops/op.h). Rules emit nodes; nothing is
// computed here.
#pragma once

#include <ggml.h>

#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "ops/ops.h"

namespace ggtune {

class Autodiff : public Gradients {
  public:
    explicit Autodiff(Implementations & implementations) : implementations_(implementations) {}

    // A leaf whose gradient is wanted, added in place to `accumulator` (F32, same shape). Each leaf may be used by one
    // product.
    void set_trainable(ggml_tensor * leaf, ggml_tensor * accumulator);

    // Mark the nodes that depend on a trainable leaf; nodes in topological order. May be called again for further
    // nodes.
    void trace(const std::vector<ggml_tensor *> & nodes);
    bool needs_gradient(const ggml_tensor * t) const override { return t != nullptr && on_path_.count(t) != 0; }

    // Nodes that the gradient of the last of `nodes` (topological order) passes through on its way to trainable leaves.
    // What it would need indices or a choice for (integers) stops it.
    std::vector<ggml_tensor *> gradient_path(const std::vector<ggml_tensor *> & nodes) const;
    // One line per node that has no rule: op and tensor name.
    static std::vector<std::string> missing_rules(const std::vector<ggml_tensor *> & nodes);

    void add(ggml_tensor * t, ggml_tensor * dt) override;
    void add_own(ggml_tensor * t, ggml_tensor * dt) override;
    ggml_tensor * own_gradient(const ggml_tensor * t) const override;
    void set_own_gradient(const ggml_tensor * t, ggml_tensor * dt) override { gradients_[t] = dt; }
    // The gradient of a node goes over to a second computation of it; none may follow for the first.
    void hand_over(const ggml_tensor * from, const ggml_tensor * to);
    // d(loss)/dt as far as it has been added up; nullptr if nothing has
    ggml_tensor * gradient(const ggml_tensor * t) const;

    // Apply the rules to the nodes (topological order) from the last to the first, as far as gradients reach.
    void backward(const std::vector<ggml_tensor *> & nodes);

    ggml_tensor * accumulator(const ggml_tensor * leaf) const override;
    void add_result(ggml_tensor * leaf, ggml_tensor * accumulated) override;

    // Nodes that write into accumulators, in the order in which they were made since the last call.
    std::vector<ggml_tensor *> take_results();
    bool has_result(const ggml_tensor * leaf) const { return reached_.count(leaf) != 0; }

  private:
    Implementations & implementations_;
    const Ops * current_ = nullptr;  // the implementation whose node is being differentiated
    std::unordered_map<const ggml_tensor *, ggml_tensor *> accumulators_;
    std::unordered_map<const ggml_tensor *, ggml_tensor *> gradients_;
    std::unordered_set<const ggml_tensor *> owned_;  // tensors whose gradient nothing else reads
    std::unordered_set<const ggml_tensor *> on_path_;
    std::unordered_set<const ggml_tensor *> reached_;
    std::vector<ggml_tensor *> results_;
};

}  // namespace ggtune
