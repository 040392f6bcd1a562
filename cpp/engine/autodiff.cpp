#include "engine/autodiff.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/error.h"

namespace ggtune {

namespace {

GradientRule rule_for(const ggml_tensor * node) {
    const Op & op = op_of(node);
    return op.can_differentiate == nullptr || op.can_differentiate(node) ? op.rule : nullptr;
}

std::string name_of(const ggml_tensor * node) {
    return std::string(ggml_op_desc(node)) + " (tensor " + node->name + ")";
}

}  // namespace

void Autodiff::set_trainable(ggml_tensor * leaf, ggml_tensor * accumulator) {
    accumulators_[leaf] = accumulator;
    on_path_.insert(leaf);
}

void Autodiff::trace(const std::vector<ggml_tensor *> & nodes) {
    for (const ggml_tensor * node : nodes) {
        if (node->type == GGML_TYPE_I32 || node->type == GGML_TYPE_I64) {
            continue;  // a choice: it does not change with what it was made from
        }
        for (const ggml_tensor * src : node->src) {
            if (needs_gradient(src)) {
                on_path_.insert(node);
                break;
            }
        }
    }
}

std::vector<ggml_tensor *> Autodiff::gradient_path(const std::vector<ggml_tensor *> & nodes) const {
    std::vector<ggml_tensor *> path;
    std::unordered_set<const ggml_tensor *> arrives = {nodes.back()};
    for (auto node = nodes.rbegin(); node != nodes.rend(); ++node) {
        if (arrives.count(*node) != 0 && needs_gradient(*node)) {
            path.push_back(*node);
            arrives.insert(std::begin((*node)->src), std::end((*node)->src));
        }
    }
    std::reverse(path.begin(), path.end());
    return path;
}

std::vector<std::string> Autodiff::missing_rules(const std::vector<ggml_tensor *> & nodes) {
    std::vector<std::string> missing;
    for (const ggml_tensor * node : nodes) {
        if (op_of(node).arrival != Op::Arrival::nowhere && (rule_for(node) == nullptr || node->type != GGML_TYPE_F32)) {
            missing.push_back(name_of(node));
        }
    }
    return missing;
}

void Autodiff::add(ggml_tensor * t, ggml_tensor * dt) {
    if (!needs_gradient(t)) {
        return;
    }
    ggml_context * ctx = implementations_.otherwise.ctx;
    if (ggml_tensor * acc = accumulator(t)) {
        add_result(t, ggml_add_inplace(ctx, acc, contiguous(ctx, dt)));
        return;
    }
    const auto it = gradients_.find(t);
    if (it == gradients_.end()) {
        gradients_[t] = dt;
    } else {
        it->second = ggml_add(ctx, contiguous(ctx, it->second), dt);
        owned_.insert(t);
    }
}

void Autodiff::add_own(ggml_tensor * t, ggml_tensor * dt) {
    add(t, dt);
    owned_.insert(t);
}

ggml_tensor * Autodiff::own_gradient(const ggml_tensor * t) const {
    ggml_tensor * dt = owned_.count(t) != 0 ? gradient(t) : nullptr;
    // what another device has made lies in its memory
    const bool is_here = dt != nullptr && (current_ == nullptr || &implementations_.of(dt) == current_);
    return is_here && ggml_is_contiguous(dt) ? dt : nullptr;
}

void Autodiff::hand_over(const ggml_tensor * from, const ggml_tensor * to) {
    const auto it = gradients_.find(from);
    if (it == gradients_.end()) {
        return;
    }
    gradients_[to] = it->second;
    gradients_.erase(from);
    if (owned_.erase(from) != 0) {
        owned_.insert(to);
    }
}

ggml_tensor * Autodiff::gradient(const ggml_tensor * t) const {
    const auto it = gradients_.find(t);
    return it != gradients_.end() ? it->second : nullptr;
}

ggml_tensor * Autodiff::accumulator(const ggml_tensor * leaf) const {
    const auto it = accumulators_.find(leaf);
    return it != accumulators_.end() ? it->second : nullptr;
}

void Autodiff::add_result(ggml_tensor * leaf, ggml_tensor * accumulated) {
    results_.push_back(accumulated);
    reached_.insert(leaf);
}

std::vector<ggml_tensor *> Autodiff::take_results() {
    return std::exchange(results_, {});
}

void Autodiff::backward(const std::vector<ggml_tensor *> & nodes) {
    for (auto it = nodes.rbegin(); it != nodes.rend(); ++it) {
        ggml_tensor * y = *it;
        ggml_tensor * dy = gradient(y);
        if (dy == nullptr) {
            continue;
        }
        const GradientRule rule = rule_for(y);
        if (rule == nullptr) {
            throw Error("no gradient rule for " + name_of(y));
        }
        Ops & ops = implementations_.of(y);
        const int layer = implementations_.layer_of(y);
        implementations_.assign_made(implementations_.otherwise, layer);
        current_ = &ops;
        rule({*this, ops, y, dy});
        current_ = nullptr;
        implementations_.assign_made(ops, layer);
    }
}

}  // namespace ggtune
