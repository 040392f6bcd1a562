// Sums, products and the like, element by element; the second operand may be repeated.
#include "ops/families.h"
#include "ops/ops.h"
#include "ops/shape.h"

namespace ggtune {

namespace {

// y = a + b
void add_rule(const BackwardStep & s) {
    s.add(s.y->src[0], s.dy);
    if (s.needs(s.y->src[1])) {
        s.add(s.y->src[1], unbroadcast(s.ops, s.dy, s.y->src[1]));
    }
}

// y = a - b
void sub_rule(const BackwardStep & s) {
    s.add(s.y->src[0], s.dy);
    if (s.needs(s.y->src[1])) {
        s.add(s.y->src[1], ggml_scale(s.ops.ctx, s.ops.contiguous(unbroadcast(s.ops, s.dy, s.y->src[1])), -1.0f));
    }
}

// y = a b
void mul_rule(const BackwardStep & s) {
    ggml_tensor *a = s.y->src[0], *b = s.y->src[1];
    if (s.needs(a)) {
        s.add(a, ggml_mul(s.ops.ctx, s.ops.contiguous(s.dy), b));
    }
    if (s.needs(b)) {
        s.add(b, unbroadcast(s.ops, ggml_mul(s.ops.ctx, s.ops.contiguous(s.dy), a), b));
    }
}

// y = a / b
void div_rule(const BackwardStep & s) {
    ggml_tensor * b = s.y->src[1];
    ggml_tensor * da = ggml_div(s.ops.ctx, s.ops.contiguous(s.dy), b);
    s.add(s.y->src[0], da);
    if (s.needs(b)) {
        s.add(b, unbroadcast(s.ops, ggml_scale(s.ops.ctx, ggml_mul(s.ops.ctx, da, s.y), -1.0f), b));
    }
}

// y = s x + c
void scale_rule(const BackwardStep & s) {
    s.add(s.y->src[0], ggml_scale(s.ops.ctx, s.ops.contiguous(s.dy), float_param(s.y, 0)));
}

// y = clamp(x)
void clamp_rule(const BackwardStep & s) {
    s.add(s.y->src[0], s.ops.clamp_dx(s.y->src[0], s.dy, float_param(s.y, 0), float_param(s.y, 1)));
}

// y = sqrt(x). Where y is 0 its slope is infinite, and x was mostly only rounded to 0 (the softplus of a negative
// number): no gradient.
void sqrt_rule(const BackwardStep & s) {
    constexpr float kSmallest = 1e-20f, kLargest = 1e20f;  // no root of a float is beyond
    ggml_context * ctx = s.ops.ctx;
    ggml_tensor * half = ggml_mul(ctx, ggml_scale(ctx, s.ops.contiguous(s.dy), 0.5f), ggml_step(ctx, s.y));
    s.add(s.y->src[0], ggml_div(ctx, half, ggml_clamp(ctx, s.y, kSmallest, kLargest)));
}

// y = a + the rows of b, which is frozen, that `ids` names
void add_id_rule(const BackwardStep & s) {
    s.add(s.y->src[0], s.dy);
}

}  // namespace

std::vector<GgmlOp> elementwise_ops() {
    // clang-format off
    return {
        {GGML_OP_ADD, add_rule, Rows::singly},
        {GGML_OP_ADD_ID, add_id_rule},
        {GGML_OP_SUB, sub_rule},
        {GGML_OP_MUL, mul_rule, Rows::singly},
        {GGML_OP_DIV, div_rule},
        {GGML_OP_SCALE, scale_rule, Rows::singly},
        {GGML_OP_CLAMP, clamp_rule},
        {GGML_OP_SQRT, sqrt_rule},
    };
    // clang-format on
}

}  // namespace ggtune
