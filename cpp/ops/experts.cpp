#include "ops/experts.h"

#include "ops/families.h"
#include "ops/products.h"

namespace ggtune {

bool is_expert_product(const ggml_tensor * w, const ggml_tensor * x, const ggml_tensor * ids) {
    return w->nb[0] == ggml_type_size(w->type) && x->type == GGML_TYPE_F32 && (x->ne[1] == 1 || x->ne[1] == ids->ne[0]);
}

void expert_product_rule(const BackwardStep & s) {
    add_expert_gradients(s, s.y->src[0], s.y->src[1], s.y->src[2], 1.0f);
}

void add_expert_gradients(const BackwardStep & s, ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids, float scale) {
    if (s.needs(x)) {
        add_in_place(s, x,
                     [&](ggml_tensor * accumulator) { return s.ops.expert_dx(w, x, ids, s.dy, scale, accumulator); });
    }
    if (s.needs(w)) {
        ggml_tensor * accumulator = s.gradients.accumulator(w);
        ggml_tensor * dw = s.ops.expert_dw(w, x, ids, s.dy, scale, accumulator);
        if (accumulator != nullptr) {
            s.gradients.add_result(w, dw);
        } else {
            s.gradients.add_own(w, dw);
        }
    }
}

namespace {

bool can_differentiate(const ggml_tensor * node) {
    return is_expert_product(node->src[0], node->src[1], node->src[2]);
}

}  // namespace

std::vector<GgmlOp> expert_ops() {
    return {{GGML_OP_MUL_MAT_ID, expert_product_rule, Rows::together, can_differentiate}};
}

}  // namespace ggtune
