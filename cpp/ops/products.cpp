#include "ops/products.h"

#include "ops/families.h"

namespace ggtune {

namespace {

bool is_matrix(const ggml_tensor * t) {
    return t->ne[2] == 1 && t->ne[3] == 1 && t->nb[0] == ggml_type_size(t->type);
}

// stacks of quantized matrices appear only in architectures that are refused for other ops
bool has_matrix_or_floats(const ggml_tensor * node) {
    return is_matrix(node->src[0]) || node->src[0]->type == GGML_TYPE_F32;
}

}  // namespace

void product_rule(const BackwardStep & s) {
    add_product_gradients(s, s.y->src[0], s.y->src[1], 1.0f);
}

void add_product_gradients(const BackwardStep & s, ggml_tensor * w, ggml_tensor * x, float scale) {
    if (s.needs(x)) {
        const bool frozen_matrix = !s.needs(w) && is_matrix(w);
        add_in_place(s, x, [&](ggml_tensor * accumulator) {
            return frozen_matrix && scale == 1.0f ? s.ops.weight_dx(w, s.dy, accumulator)
                                                  : s.ops.matmul_dx(w, s.dy, scale, accumulator);
        });
    }
    if (s.needs(w)) {
        ggml_tensor * accumulator = s.gradients.accumulator(w);
        ggml_tensor * dw = s.ops.matmul_dw(w, x, s.dy, scale, accumulator);
        if (accumulator != nullptr) {
            s.gradients.add_result(w, dw);
        } else {
            s.gradients.add_own(w, dw);
        }
    }
}

std::vector<GgmlOp> product_ops() {
    return {{GGML_OP_MUL_MAT, product_rule, Rows::singly, has_matrix_or_floats}};
}

}  // namespace ggtune
