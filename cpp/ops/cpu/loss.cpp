// The loss of each row and its gradient.
#include "kernels/softmax.h"
#include "ops/cpu/cpu_ops.h"

namespace ggtune {

namespace {

using kernels::split_range;

void run_log_probabilities(ggml_tensor * log_probs, int ith, int nth, void *) {
    const ggml_tensor * logits = log_probs->src[0];
    const int32_t * targets = static_cast<const int32_t *>(log_probs->src[1]->data);
    const auto rows = split_range(logits->ne[1], ith, nth);
    for (int64_t row = rows.begin; row < rows.end; row++) {
        floats(log_probs)[row] = static_cast<float>(
            kernels::log_probability(floats(logits) + row * stride(logits, 1), logits->ne[0], targets[row]));
    }
}

void run_cross_entropy_dx(ggml_tensor * dlogits, int ith, int nth, void *) {
    const int32_t * targets = static_cast<const int32_t *>(dlogits->src[1]->data);
    const float * weights = floats(dlogits->src[2]);
    const auto rows = split_range(dlogits->ne[1], ith, nth);
    for (int64_t row = rows.begin; row < rows.end; row++) {
        kernels::cross_entropy_gradient_inplace(floats(dlogits) + row * stride(dlogits, 1), dlogits->ne[0],
                                                targets[row], weights[row]);
    }
}

void run_divergences(ggml_tensor * divergences, int ith, int nth, void *) {
    const ggml_tensor * logits = divergences->src[0];
    const ggml_tensor * teacher = divergences->src[1];
    const auto rows = split_range(logits->ne[1], ith, nth);
    for (int64_t row = rows.begin; row < rows.end; row++) {
        floats(divergences)[row] = static_cast<float>(kernels::divergence(
            floats(logits) + row * stride(logits, 1), floats(teacher) + row * stride(teacher, 1), logits->ne[0]));
    }
}

void run_divergence_dx(ggml_tensor * dlogits, int ith, int nth, void *) {
    const ggml_tensor * teacher = dlogits->src[1];
    const float * weights = floats(dlogits->src[2]);
    const auto rows = split_range(dlogits->ne[1], ith, nth);
    for (int64_t row = rows.begin; row < rows.end; row++) {
        kernels::divergence_gradient_inplace(floats(dlogits) + row * stride(dlogits, 1),
                                             floats(teacher) + row * stride(teacher, 1), dlogits->ne[0], weights[row]);
    }
}

const CpuOp log_probabilities_op = {{"log_probabilities"}, run_log_probabilities};
const CpuOp cross_entropy_dx_op = {{"cross_entropy_dx"}, run_cross_entropy_dx};
const CpuOp divergences_op = {{"divergences"}, run_divergences};
const CpuOp divergence_dx_op = {{"divergence_dx"}, run_divergence_dx};

}  // namespace

ggml_tensor * CpuOps::log_probabilities(ggml_tensor * logits, ggml_tensor * targets) {
    const int64_t ne[4] = {logits->ne[1], 1, 1, 1};
    return node(log_probabilities_op, ne, {logits, targets});
}

ggml_tensor * CpuOps::cross_entropy_dx(ggml_tensor * logits, ggml_tensor * targets, ggml_tensor * weights,
                                       ggml_tensor * log_probs) {
    return node_over(cross_entropy_dx_op, logits, {targets, weights, log_probs});
}

ggml_tensor * CpuOps::divergences(ggml_tensor * logits, ggml_tensor * teacher) {
    const int64_t ne[4] = {logits->ne[1], 1, 1, 1};
    return node(divergences_op, ne, {logits, teacher});
}

ggml_tensor * CpuOps::divergence_dx(ggml_tensor * logits, ggml_tensor * teacher, ggml_tensor * weights,
                                    ggml_tensor * divergences) {
    return node_over(divergence_dx_op, logits, {teacher, weights, divergences});
}

}  // namespace ggtune
