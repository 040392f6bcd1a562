// Ops that move elements: copies, views, rows, repetitions; and sums of rows, which take repetitions back.
#include "ops/shape.h"

#include "ops/families.h"

namespace ggtune {

ggml_tensor * unbroadcast(Ops & ops, ggml_tensor * dy, const ggml_tensor * operand) {
    return ggml_are_same_shape(dy, operand) ? dy : ops.repeat_dx(operand, dy);
}

namespace {

// CONT, RESHAPE, CPY: the same elements in the same order
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

void get_rows_rule(const BackwardStep & s) {
    s.add(s.y->src[0], s.ops.rows_dx(s.y->src[0], s.y->src[1], s.dy));
}

// Of a CPY: the elements of the first operand in order, in the shape of the second. That is where they go: what it held
// is lost and has no gradient.
bool copies_floats(const ggml_tensor * node) {
    return node->src[0]->type == GGML_TYPE_F32;
}

// y = a, with b written over a part of it, which starts at `offset` and has the strides nb (bytes)
void set_rule(const BackwardStep & s) {
    ggml_tensor *a = s.y->src[0], *b = s.y->src[1];
    const int32_t *nb = s.y->op_params, offset = s.y->op_params[3];
    ggml_tensor * dy = s.ops.contiguous(s.dy);
    if (s.needs(a)) {
        s.add(a, ggml_set(s.ops.ctx, dy, s.ops.zeros_like(b), nb[0], nb[1], nb[2], offset));
    }
    if (s.needs(b)) {
        s.add(b, ggml_view_4d(s.ops.ctx, dy, b->ne[0], b->ne[1], b->ne[2], b->ne[3], nb[0], nb[1], nb[2], offset));
    }
}

// y = a and b one after the other along a dimension
void concat_rule(const BackwardStep & s) {
    const int dim = s.y->op_params[0];
    ggml_tensor * dy = s.dy->nb[0] == sizeof(float) ? s.dy : s.ops.contiguous(s.dy);
    size_t offset = 0;
    for (ggml_tensor * x : {s.y->src[0], s.y->src[1]}) {
        if (s.needs(x)) {
            s.add(x, ggml_view_4d(s.ops.ctx, dy, x->ne[0], x->ne[1], x->ne[2], x->ne[3], dy->nb[1], dy->nb[2],
                                  dy->nb[3], offset));
        }
        offset += x->ne[dim] * dy->nb[dim];
    }
}

// y = the sum of each row of x
void sum_rows_rule(const BackwardStep & s) {
    s.add(s.y->src[0], ggml_repeat(s.ops.ctx, s.ops.contiguous(s.dy), s.y->src[0]));
}

// y = the mean of each row of x
void mean_rule(const BackwardStep & s) {
    const float share = 1.0f / static_cast<float>(s.y->src[0]->ne[0]);
    ggml_tensor * dy = ggml_scale(s.ops.ctx, s.ops.contiguous(s.dy), share);
    s.add(s.y->src[0], ggml_repeat(s.ops.ctx, dy, s.y->src[0]));
}

// y = x repeated
void repeat_rule(const BackwardStep & s) {
    s.add(s.y->src[0], unbroadcast(s.ops, s.dy, s.y->src[0]));
}

// y = a number: nothing passes
void fill_rule(const BackwardStep & /*s*/) {}

}  // namespace

std::vector<GgmlOp> shape_ops() {
    // clang-format off
    return {
        {GGML_OP_CONT, reshape_rule},
        {GGML_OP_RESHAPE, reshape_rule},
        {GGML_OP_PERMUTE, permute_rule},
        {GGML_OP_TRANSPOSE, transpose_rule},
        {GGML_OP_VIEW, view_rule},
        {GGML_OP_GET_ROWS, get_rows_rule},
        {GGML_OP_REPEAT, repeat_rule},
        {GGML_OP_CPY, reshape_rule, Rows::together, copies_floats},
        {GGML_OP_SET, set_rule},
        {GGML_OP_CONCAT, concat_rule},
        {GGML_OP_SUM_ROWS, sum_rows_rule},
        {GGML_OP_MEAN, mean_rule},
        {GGML_OP_FILL, fill_rule},
    };
    // clang-format on
}

}  // namespace ggtune
