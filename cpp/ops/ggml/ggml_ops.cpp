#include "ops/ggml/ggml_ops.h"

#include <numeric>

#include "ops/activation.h"
#include "ops/ggml/tiles.h"

namespace ggtune {

GgmlOps::GgmlOps(ggml_context * ctx, BackendTraits traits) : Ops(ctx), traits_(traits) {}

int64_t GgmlOps::max_nodes(const ggml_tensor * node, BackendTraits traits) {
    constexpr int64_t kMost = 24;       // a norm, computed twice, and its gradient
    constexpr int64_t kMostGated = 96;  // an activation written out, computed twice, and its gradient
    constexpr int64_t kPerTile = 12;
    constexpr int64_t kMostOfExperts = 32;  // the gradient of a stack of matrices
    constexpr int64_t kPerExpertTile = 20;
    constexpr int64_t kPerDivision = 12;  // of a matrix of hyper-connections
    constexpr int64_t kPerTap = 4;
    constexpr int64_t kPerStretch = 96, kFewRows = 32;
    switch (node->op) {
        case GGML_OP_UNARY:
        case GGML_OP_GLU:
            return kMostGated;
        case GGML_OP_DSV4_HC_COMB:
            return kMostGated + kPerDivision * 2 * node->op_params[1];
        case GGML_OP_SOFT_MAX: {
            // of attention: a stretch for so many scores, or for short samples
            const int64_t n_bytes = ggml_nelements(node) * static_cast<int64_t>(sizeof(float));
            return kMost + kPerStretch * (3 + node->ne[1] / kFewRows + 2 * n_bytes / traits.max_score_bytes);
        }
        case GGML_OP_MUL_MAT:
            return kMost + kPerTile * n_tiles(node->src[0], traits.max_tile_bytes);
        case GGML_OP_MUL_MAT_ID:
            return kMostOfExperts + kPerExpertTile * n_expert_tiles(node->src[0], traits.max_tile_bytes);
        case GGML_OP_SSM_CONV:
            return kMost + kPerTap * node->src[1]->ne[0];
        default:
            return kMost;
    }
}

ggml_tensor * GgmlOps::host_input(ggml_type type, const int64_t ne[4], const void * values) {
    ggml_tensor * t = ggml_new_tensor(ctx, type, GGML_MAX_DIMS, ne);
    ggml_set_input(t);
    const auto * bytes = static_cast<const uint8_t *>(values);
    inputs.push_back({t, {bytes, bytes + ggml_nbytes(t)}});
    return t;
}

ggml_tensor * GgmlOps::row_numbers(int64_t begin, int64_t n) {
    ggml_tensor *& known = numbers_[{begin, n}];
    if (known == nullptr) {
        std::vector<int32_t> values(n);
        std::iota(values.begin(), values.end(), static_cast<int32_t>(begin));
        const int64_t ne[4] = {n, 1, 1, 1};
        known = host_input(GGML_TYPE_I32, ne, values.data());
    }
    return known;
}

ggml_tensor * GgmlOps::row_means(ggml_tensor * t) const {
    return ggml_scale(ctx, ggml_sum_rows(ctx, t), 1.0f / static_cast<float>(t->ne[0]));
}

// accumulator + scale term, in the accumulator's memory; without one the term alone
ggml_tensor * GgmlOps::added(ggml_tensor * accumulator, ggml_tensor * term, float scale) const {
    if (scale != 1.0f) {
        term = ggml_scale(ctx, term, scale);
    }
    return accumulator != nullptr ? ggml_add_inplace(ctx, accumulator, term) : term;
}

ggml_tensor * GgmlOps::replacement(ggml_tensor * node) {
    if (node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_MUL_MAT_ID) {
        return leaves_products ? nullptr : product(node);
    }
    Activation f;
    const bool rounded = traits_.rounds_gelu && (node->op == GGML_OP_UNARY || node->op == GGML_OP_GLU) &&
                         activation_of(node, f) && (f == Activation::gelu || f == Activation::gelu_quick);
    if (!rounded) {
        return nullptr;
    }
    if (node->op == GGML_OP_UNARY) {
        return activation(f, contiguous(node->src[0]));
    }
    const GateAndUp both = gate_and_up(node->src[0], node->src[1], node->op_params[1] != 0);
    return ggml_mul(ctx, activation(f, both.gate), both.up);
}

// nullptr where ggml's node will do
ggml_tensor * GgmlOps::product(ggml_tensor * node) {
    ggml_tensor *w = node->src[0], *x = node->src[1];
    const bool is_float = w->type == GGML_TYPE_F32;
    if (node->op == GGML_OP_MUL_MAT_ID) {
        return traits_.exact && !is_float ? exact_product(w, x, node->src[2]) : nullptr;
    }
    if (traits_.exact && !is_float && ggml_is_matrix(w)) {
        return exact_product(w, x, nullptr);
    }
    if (is_float) {
        ggml_prec_set_acc(node, GGML_PREC_F32);  // as multiplied() does
    }
    const auto has_gaps = [](const ggml_tensor * t) {
        return t->type == GGML_TYPE_F32 && (t->nb[0] != sizeof(float) || t->nb[1] != t->ne[0] * sizeof(float) ||
                                            (t->ne[3] > 1 && t->nb[3] != t->nb[2] * t->ne[2]));
    };
    if (traits_.wants_contiguous_operands && (has_gaps(w) || has_gaps(x))) {
        ggml_tensor * own = ggml_mul_mat(ctx, has_gaps(w) ? contiguous(w) : w, has_gaps(x) ? contiguous(x) : x);
        ggml_prec_set_acc(own, static_cast<ggml_prec>(node->op_params[0]));
        return own;
    }
    return nullptr;
}

ggml_tensor * GgmlOps::lora_add(ggml_tensor * y, ggml_tensor * b, ggml_tensor * h, float scale) {
    return ggml_add(ctx, y, multiplied(b, ggml_scale(ctx, h, scale)));
}

// Times a mask of 0 and 1 / (1 - p), which costs as much memory as x does for as long as the graph runs.
ggml_tensor * GgmlOps::dropout(ggml_tensor * x, const DropoutMask & mask) {
    std::vector<float> factors(ggml_nelements(x), 1.0f);
    kernels::dropout(mask, 0, factors.data(), factors.data(), ggml_nelements(x));
    return ggml_mul(ctx, contiguous(x), host_input(GGML_TYPE_F32, x->ne, factors.data()));
}

ggml_tensor * GgmlOps::clamp_dx(ggml_tensor * x, ggml_tensor * dy, float min, float max) {
    x = contiguous(x);
    // a limit belongs to the range: STEP is 0 at 0
    ggml_tensor * not_below = one_minus(ggml_step(ctx, ggml_scale_bias(ctx, x, -1.0f, min)));
    ggml_tensor * not_above = one_minus(ggml_step(ctx, ggml_scale_bias(ctx, x, 1.0f, -max)));
    return ggml_mul(ctx, contiguous(dy), ggml_mul(ctx, not_below, not_above));
}

}  // namespace ggtune
