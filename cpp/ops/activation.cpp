#include "ops/activation.h"

#include "ops/families.h"
#include "ops/ops.h"

namespace ggtune {

namespace {

struct Known {
    ggml_op op;
    int function;
    Activation activation;
};

constexpr Known kKnown[] = {
    {GGML_OP_SQR, kAnyFunction, Activation::sqr},
    {GGML_OP_UNARY, GGML_UNARY_OP_SILU, Activation::silu},
    {GGML_OP_UNARY, GGML_UNARY_OP_GELU, Activation::gelu},
    {GGML_OP_UNARY, GGML_UNARY_OP_GELU_ERF, Activation::gelu_erf},
    {GGML_OP_UNARY, GGML_UNARY_OP_GELU_QUICK, Activation::gelu_quick},
    {GGML_OP_UNARY, GGML_UNARY_OP_RELU, Activation::relu},
    {GGML_OP_UNARY, GGML_UNARY_OP_TANH, Activation::tanh},
    {GGML_OP_UNARY, GGML_UNARY_OP_SIGMOID, Activation::sigmoid},
    {GGML_OP_UNARY, GGML_UNARY_OP_EXP, Activation::exp},
    {GGML_OP_GLU, GGML_GLU_OP_SWIGLU, Activation::silu},
    {GGML_OP_GLU, GGML_GLU_OP_GEGLU, Activation::gelu},
    {GGML_OP_GLU, GGML_GLU_OP_GEGLU_ERF, Activation::gelu_erf},
    {GGML_OP_GLU, GGML_GLU_OP_GEGLU_QUICK, Activation::gelu_quick},
    {GGML_OP_GLU, GGML_GLU_OP_REGLU, Activation::relu},
};

// y = f(x)
void activation_rule(const BackwardStep & s) {
    Activation f = Activation::silu;
    activation_of(s.y, f);
    add_activation_gradient(s, f);
}

// y = f(gate) up
void glu_rule(const BackwardStep & s) {
    Activation f = Activation::silu;
    activation_of(s.y, f);
    add_glu_gradient(s, f, s.y->src[1] == nullptr && s.y->op_params[1] != 0);
}

void limited_glu_rule(const BackwardStep & s) {
    LimitedGlu f = {};
    limited_glu_of(s.y, f);
    add_limited_glu_gradient(s, f, s.y->src[1] == nullptr && s.y->op_params[1] != 0);
}

// y = log(1 + exp(x))
void softplus_rule(const BackwardStep & s) {
    ggml_context * ctx = s.ops.ctx;
    ggml_tensor * slope = ggml_sigmoid(ctx, s.ops.contiguous(s.y->src[0]));
    s.add(s.y->src[0], ggml_mul(ctx, s.ops.contiguous(s.dy), slope));
}

// y = -x
void neg_rule(const BackwardStep & s) {
    s.add(s.y->src[0], ggml_scale(s.ops.ctx, s.ops.contiguous(s.dy), -1.0f));
}

// y = |x|, slope 0 at 0
void abs_rule(const BackwardStep & s) {
    ggml_context * ctx = s.ops.ctx;
    ggml_tensor * slope = ggml_sgn(ctx, s.ops.contiguous(s.y->src[0]));
    s.add(s.y->src[0], ggml_mul(ctx, s.ops.contiguous(s.dy), slope));
}

// Of what is constant but for jumps: nothing passes.
void no_gradient_rule(const BackwardStep & /*s*/) {}

// xIELU (Apertus): y = alpha_p x^2 + beta x where x > 0, else alpha_n (exp(min(x, eps)) - 1 - x) + beta x;
// alpha_n and alpha_p as the node holds them, after the softplus of ggml_xielu().
// eps, some -1e-6, keeps the small differences of exp from 1 out of y: between eps and 0, y falls by -alpha_n eps, and
// steps back at 0. The gradient is that of y without both.
void xielu_rule(const BackwardStep & s) {
    const float alpha_n = float_param(s.y, 1), alpha_p = float_param(s.y, 2), beta = float_param(s.y, 3);
    ggml_context * ctx = s.ops.ctx;
    ggml_tensor * x = s.ops.contiguous(s.y->src[0]);
    ggml_tensor * above = ggml_scale_bias(ctx, ggml_relu(ctx, x), 2.0f * alpha_p, beta);
    // 0 for x > 0, where exp(x) may overflow
    ggml_tensor * below = ggml_scale_bias(ctx, ggml_exp(ctx, ggml_clamp(ctx, x, -1e20f, 0.0f)), alpha_n, -alpha_n);
    s.add(s.y->src[0], ggml_mul(ctx, s.ops.contiguous(s.dy), ggml_add(ctx, above, below)));
}

// What glu_dx() made, to the operands.
void add_both_halves(const BackwardStep & s, ggml_tensor * both) {
    if (s.y->src[1] == nullptr) {
        s.add(s.y->src[0], both);
        return;
    }
    const int64_t * ne = s.dy->ne;
    for (int half = 0; half < 2; half++) {
        if (s.needs(s.y->src[half])) {
            s.add(s.y->src[half], ggml_view_4d(s.ops.ctx, both, ne[0], ne[1], ne[2], ne[3], both->nb[1], both->nb[2],
                                               both->nb[3], half * ne[0] * sizeof(float)));
        }
    }
}

}  // namespace

void add_activation_gradient(const BackwardStep & s, Activation f) {
    s.add(s.y->src[0], s.ops.activation_dx(f, s.y->src[0], s.dy));
}

void add_glu_gradient(const BackwardStep & s, Activation f, bool swapped) {
    add_both_halves(s, s.ops.glu_dx(f, s.y->src[0], s.y->src[1], swapped, s.dy));
}

void add_limited_glu_gradient(const BackwardStep & s, const LimitedGlu & f, bool swapped) {
    add_both_halves(s, s.ops.limited_glu_dx(f, s.y->src[0], s.y->src[1], swapped, s.dy));
}

bool limited_glu_of(const ggml_tensor * node, LimitedGlu & f) {
    if (node->op != GGML_OP_GLU) {
        return false;
    }
    switch (ggml_get_glu_op(node)) {
        case GGML_GLU_OP_SWIGLU_OAI:
            f = {float_param(node, 2), float_param(node, 3), 1.0f};
            return true;
        case GGML_GLU_OP_SWIGLU_CLAMP:
            f = {1.0f, float_param(node, 3), 0.0f};
            return true;
        default:
            return false;
    }
}

bool activation_of(const ggml_tensor * node, Activation & f) {
    for (const Known & k : kKnown) {
        const bool same_op = node->op == k.op;
        const bool same_function = k.op == GGML_OP_UNARY ? same_op && ggml_get_unary_op(node) == k.function
                                   : k.op == GGML_OP_GLU ? same_op && ggml_get_glu_op(node) == k.function
                                                         : same_op;
        if (same_function) {
            f = k.activation;
            return true;
        }
    }
    return false;
}

std::vector<GgmlOp> activation_ops() {
    std::vector<GgmlOp> ops = {
        {GGML_OP_UNARY, nullptr, Rows::singly},
        {GGML_OP_UNARY, xielu_rule, Rows::singly, nullptr, GGML_UNARY_OP_XIELU},
        {GGML_OP_GLU, limited_glu_rule, Rows::together, nullptr, GGML_GLU_OP_SWIGLU_OAI},
        {GGML_OP_GLU, limited_glu_rule, Rows::together, nullptr, GGML_GLU_OP_SWIGLU_CLAMP},
        {GGML_OP_UNARY, softplus_rule, Rows::singly, nullptr, GGML_UNARY_OP_SOFTPLUS},
        {GGML_OP_UNARY, neg_rule, Rows::singly, nullptr, GGML_UNARY_OP_NEG},
        {GGML_OP_UNARY, abs_rule, Rows::singly, nullptr, GGML_UNARY_OP_ABS},
        {GGML_OP_UNARY, no_gradient_rule, Rows::singly, nullptr, GGML_UNARY_OP_SGN},
    };
    for (const Known & k : kKnown) {
        const Rows rows = k.op == GGML_OP_UNARY ? Rows::singly : Rows::together;
        ops.push_back({k.op, k.op == GGML_OP_GLU ? glu_rule : activation_rule, rows, nullptr, k.function});
    }
    return ops;
}

}  // namespace ggtune
