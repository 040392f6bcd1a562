#include "ops/products.h"

#include "ops/families.h"

namespace ggtune {

namespace {

// A matrix, or a stack of them: those of each head of multi-head latent attention.
bool is_weight(const ggml_tensor * t) {
    return ggml_is_matrix(t) ? t->nb[0] == ggml_type_size(t->type) : ggml_is_contiguous(t);
}

// Stacks of floats may have any strides and have products of their own.
bool is_frozen_weight(const BackwardStep & s, const ggml_tensor * w) {
    return is_weight(w) && (!s.needs(w) || ggml_is_quantized(w->type)) &&
           (ggml_is_matrix(w) || w->type != GGML_TYPE_F32);
}

bool has_weight_or_floats(const ggml_tensor * node) {
    return is_weight(node->src[0]) || node->src[0]->type == GGML_TYPE_F32;
}

}  // namespace

void product_rule(const BackwardStep & s) {
    add_product_gradients(s, s.y->src[0], s.y->src[1], 1.0f);
}

void add_product_gradients(const BackwardStep & s, ggml_tensor * w, ggml_tensor * x, float scale) {
    if (s.needs(x)) {
        const bool frozen = is_frozen_weight(s, w);
        add_in_place(s, x, [&](ggml_tensor * accumulator) {
            return frozen && scale == 1.0f ? s.ops.weight_dx(w, s.dy, accumulator)
                                           : s.ops.matmul_dx(w, s.dy, scale, accumulator);
        });
    }
    if (s.needs(w)) {
        ggml_tensor * accumulator = s.gradients.accumulator(w);
        // of a quantized matrix the scales alone are trained
        ggml_tensor * dw = ggml_is_quantized(w->type) ? s.ops.scales_dw(w, x, s.dy, accumulator)
                                                      : s.ops.matmul_dw(w, x, s.dy, scale, accumulator);
        if (accumulator != nullptr) {
            s.gradients.add_result(w, dw);
        } else {
            s.gradients.add_own(w, dw);
        }
    }
}

std::vector<GgmlOp> product_ops() {
    return {{GGML_OP_MUL_MAT, product_rule, Rows::singly, has_weight_or_floats}};
}

}  // namespace ggtune
