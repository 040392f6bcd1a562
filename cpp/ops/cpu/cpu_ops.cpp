#include "ops/cpu/cpu_ops.h"

#include <algorithm>

#include "kernels/bf16_product.h"
#include "ops/activation.h"

namespace ggtune {

CpuOps::CpuOps(ggml_context * ctx, bool may_round)
    : Ops(ctx), may_round_(may_round), bf16_(may_round && kernels::bf16_product_fast()) {}

ggml_tensor * CpuOps::node(const CpuOp & op, const int64_t ne[4], Operands operands, void * params, ggml_type type) {
    return ggml_custom_4d(ctx, type, ne[0], ne[1], ne[2], ne[3], operands.data(), static_cast<int>(operands.size()),
                          run_custom_node, GGML_N_TASKS_MAX, keep(CustomNode{&op.op, op.run, params}));
}

ggml_tensor * CpuOps::node_over(const CpuOp & op, ggml_tensor * over, Operands operands, void * params) {
    return ggml_custom_inplace(ctx, over, operands.data(), static_cast<int>(operands.size()), run_custom_node,
                               GGML_N_TASKS_MAX, keep(CustomNode{&op.op, op.run, params}));
}

ggml_tensor * CpuOps::even_rows(ggml_tensor * t) const {
    const bool even = t->nb[0] == sizeof(float) && t->nb[2] == t->nb[1] * t->ne[1] && t->nb[3] == t->nb[2] * t->ne[2];
    return even ? t : ggml_cont(ctx, t);
}

void CpuOps::begin_stretch(const std::vector<ggml_tensor *> & nodes) {
    quantized_.clear();
    packed_.clear();
    sorted_pairs_.clear();
    expert_inputs_.clear();
    // a model of float32 weights stays exact
    bf16_stretch_ = std::any_of(nodes.begin(), nodes.end(), [&](const ggml_tensor * node) {
        return node->op == GGML_OP_MUL_MAT && can_bf16_product(node->src[0], node->src[1]);
    });
}

// Exact GELU where ggml reads a half-precision table; gated units with limits, which ggml computes value by value;
// products.
ggml_tensor * CpuOps::replacement(ggml_tensor * node) {
    ggml_tensor *w = node->src[0], *x = node->src[1];
    if (node->op == GGML_OP_UNARY || node->op == GGML_OP_GLU) {
        const bool swapped = node->op == GGML_OP_GLU && x == nullptr && node->op_params[1] != 0;
        LimitedGlu limits;
        if (limited_glu_of(node, limits)) {
            return limited_glu(limits, w, x, swapped);
        }
        Activation f;
        if (!activation_of(node, f) || (f != Activation::gelu && f != Activation::gelu_quick)) {
            return nullptr;
        }
        return node->op == GGML_OP_UNARY ? activation(f, w) : glu(f, w, x, swapped);
    }
    if (node->op == GGML_OP_MUL_MAT_ID) {
        return can_expert_product(w, x, node->src[2]) ? expert_product(w, x, node->src[2]) : nullptr;
    }
    if (node->op == GGML_OP_FLASH_ATTN_EXT) {
        return can_cache_attention(node) ? cache_attention(node) : nullptr;
    }
    if (node->op != GGML_OP_MUL_MAT) {
        return recurrent(node);
    }
    if (w->type == GGML_TYPE_F32 && x->type == GGML_TYPE_F32) {
        return matmul(w, x);
    }
    if (!may_round_) {
        return can_weight_forward(w, x) ? weight_forward(w, x) : nullptr;
    }
    if (can_bf16_product(w, x)) {
        return bf16_product(w, x);
    }
    return can_int8_product(w, x) ? int8_product(w, x) : nullptr;
}

}  // namespace ggtune
