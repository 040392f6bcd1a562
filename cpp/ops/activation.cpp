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

constexpr Known kNown[] = {
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

}  // namespace

void add_activation_gradient(const BackwardStep & s, Activation f) {
    s.add(s.y->src[0], s.ops.activation_dx(f, s.y->src[0], s.dy));
}

void add_glu_gradient(const BackwardStep & s, Activation f, bool swapped) {
    ggml_tensor *gate = s.y->src[0], *up = s.y->src[1];
    ggml_tensor * both = s.ops.glu_dx(f, gate, up, swapped, s.dy);
    if (up == nullptr) {
        s.add(gate, both);
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

bool activation_of(const ggml_tensor * node, Activation & f) {
    for (const Known & k : kNown) {
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
    std::vector<GgmlOp> ops = {{GGML_OP_UNARY, nullptr, Rows::singly}};
    for (const Known & k : kNown) {
        const Rows rows = k.op == GGML_OP_UNARY ? Rows::singly : Rows::together;
        ops.push_back({k.op, k.op == GGML_OP_GLU ? glu_rule : activation_rule, rows, nullptr, k.function});
    }
    return ops;
}

}  // namespace ggtune
