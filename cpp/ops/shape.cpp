// Ops that move elements and compute nothing: copies, views, rows, repetitions.
#include "ops/shape.h"

#include "ops/families.h"

namespace ggtune {

ggml_tensor * unbroadcast(Ops & ops, ggml_tensor * dy, const ggml_tensor * operand) {
    return ggml_are_same_shape(dy, operand) ? dy : ops.repeat_dx(operand, dy);
}

namespace {

// CONT, RESHAPE: the same elements in the same order
void reshape_rule(const BackwardStep & s) {
    ggml_tensor * x = s.y->src[0];
    s.add(x, ggml_reshape_4d(s.ops.ctx, s.ops.contiguous(s.dy), x->ne[0], x->ne[1], x->ne[2], x->ne[3]));
}

void permute_rule(const BackwardStep & s) {
    const int32_t * axis = s.y->op_params;  // source dimension d went to axis[d]
    int inverse[4];
    for (int d = 0; d < 4; d++) {
        inverse[axis[d]] = d;
    }
    s.add(s.y->src[0], ggml_permute(s.ops.ctx, s.dy, inverse[0], inverse[1], inverse[2], inverse[3]));
}

void transpose_rule(const BackwardStep & s) {
    s.add(s.y->src[0], ggml_transpose(s.ops.ctx, s.dy));
}

void view_rule(const BackwardStep & s) {
    ggml_tensor *x = s.y->src[0], *y = s.y;
    bool whole = ggml_nelements(x) == ggml_nelements(y) && ggml_is_contiguous(x) && ggml_is_contiguous(y);
    if (ggml_are_same_shape(x, y) && ggml_are_same_stride(x, y)) {
        whole = true;
    }
    if (whole) {
        reshape_rule(s);
    } else {
        s.add(x, s.ops.view_dx(x, y, s.dy));
    }
}

bool takes_rows_of_matrix(const ggml_tensor * node) {
    const ggml_tensor * x = node->src[0];
    return x->ne[2] == 1 && x->ne[3] == 1 && x->nb[0] == ggml_type_size(x->type);
}

void get_rows_rule(const BackwardStep & s) {
    s.add(s.y->src[0], s.ops.rows_dx(s.y->src[0], s.y->src[1], s.dy));
}

// y = x repeated
void repeat_rule(const BackwardStep & s) {
    s.add(s.y->src[0], unbroadcast(s.ops, s.dy, s.y->src[0]));
}

}  // namespace

std::vector<GgmlOp> shape_ops() {
    // clang-format off
    return {
        {GGML_OP_CONT, reshape_rule},
        {GGML_OP_RESHAPE, reshape_rule},
        {GGML_OP_PERMUTE, permute_rule},
        {GGML_OP_TRANSPOSE, transpose_rule},
        {GGML_OP_VIEW, view_rule},
        {GGML_OP_GET_ROWS, get_rows_rule, Rows::together, takes_rows_of_matrix},
        {GGML_OP_REPEAT, repeat_rule},
    };
    // clang-format on
}

}  // namespace ggtune
