// The loss of each row and its gradient, without a dense one-hot of the targets.
#include "ops/ggml/ggml_ops.h"

namespace ggtune {

namespace {

// log() of it is finite; as a probability it is nothing
constexpr float kSmallestProbability = 1e-37f;

// targets I32 ne = [rows] -> the same as ids for tensors of ne = [1, n_vocab, rows]
ggml_tensor * one_per_row(ggml_context * ctx, ggml_tensor * targets) {
    return ggml_reshape_2d(ctx, targets, 1, targets->ne[0]);
}

// ne = [n_vocab, rows] -> ne = [1, n_vocab, rows]
ggml_tensor * by_elements(ggml_context * ctx, ggml_tensor * t) {
    return ggml_reshape_3d(ctx, t, 1, t->ne[0], t->ne[1]);
}

}  // namespace

// For every j: log p(target) = log p_j - (logit_j - logit_target). What is taken is their mean weighted by p, since
// p(target) itself may be too small for a float.
ggml_tensor * GgmlOps::log_probabilities(ggml_tensor * logits, ggml_tensor * targets) {
    const int64_t n_rows = logits->ne[1];
    ggml_tensor * from = contiguous(logits);
    ggml_tensor * p = ggml_clamp(ctx, ggml_soft_max(ctx, from), kSmallestProbability, 1.0f);
    probabilities_[logits] = p;
    ggml_tensor * of_target =
        ggml_reshape_2d(ctx, ggml_get_rows(ctx, by_elements(ctx, from), one_per_row(ctx, targets)), 1, n_rows);
    ggml_tensor * differences = ggml_sub(ctx, from, of_target);
    ggml_tensor * surprise = ggml_sum_rows(ctx, ggml_mul(ctx, ggml_sub(ctx, differences, ggml_log(ctx, p)), p));
    // the last node is the result itself, not a view: it is kept for the caller
    return ggml_scale(ctx, ggml_reshape_1d(ctx, surprise, n_rows), -1.0f);
}

// weight (p - 1 at the target), written over p
ggml_tensor * GgmlOps::cross_entropy_dx(ggml_tensor * logits, ggml_tensor * targets, ggml_tensor * weights,
                                        ggml_tensor * /*log_probs*/) {
    const auto known = probabilities_.find(logits);
    ggml_tensor * p = known != probabilities_.end() ? known->second : ggml_soft_max(ctx, contiguous(logits));
    ggml_tensor * elements = by_elements(ctx, p);
    ggml_tensor * ids = one_per_row(ctx, targets);
    ggml_tensor * at_target = ggml_scale_bias(ctx, ggml_get_rows(ctx, elements, ids), 1.0f, -1.0f);
    ggml_tensor * difference = ggml_reshape_2d(ctx, ggml_set_rows(ctx, elements, at_target, ids), p->ne[0], p->ne[1]);
    return ggml_mul_inplace(ctx, difference, ggml_reshape_2d(ctx, weights, 1, weights->ne[0]));
}

}  // namespace ggtune
