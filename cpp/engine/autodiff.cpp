#include "engine/autodiff.h"

#include <cstring>
#include <utility>

#include "base/error.h"

namespace ggtune {

namespace {

// Each rule gets y, the node it differentiates (with y->src), `proto`, the node with ggml's op and parameters (y itself
// unless ggtune has put a node of its own in its place), and dy.
using Rule = void (*)(Autodiff & ad, ggml_tensor * y, const ggml_tensor * proto, ggml_tensor * dy);

float param(const ggml_tensor * node, int index) {
    float value;
    std::memcpy(&value, node->op_params + index, sizeof(value));
    return value;
}

// Sum dy over the dimensions that the operand was repeated along.
ggml_tensor * unbroadcast(Autodiff & ad, ggml_tensor * dy, const ggml_tensor * operand) {
    if (ggml_are_same_shape(dy, operand)) {
        return dy;
    }
    ggml_tensor * shape = ggml_new_tensor(ad.ops.ctx, GGML_TYPE_F32, GGML_MAX_DIMS, operand->ne);
    return ggml_repeat_back(ad.ops.ctx, ad.ops.contiguous(dy), shape);
}

// y = a + b
void add_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor *, ggml_tensor * dy) {
    ad.add(y->src[0], dy);
    if (ad.needs_gradient(y->src[1])) {
        ad.add(y->src[1], unbroadcast(ad, dy, y->src[1]));
    }
}

// y = a - b
void sub_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor *, ggml_tensor * dy) {
    ad.add(y->src[0], dy);
    if (ad.needs_gradient(y->src[1])) {
        ad.add(y->src[1], ggml_scale(ad.ops.ctx, ad.ops.contiguous(unbroadcast(ad, dy, y->src[1])), -1.0f));
    }
}

// y = a b
void mul_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor *, ggml_tensor * dy) {
    ggml_tensor * a = y->src[0];
    ggml_tensor * b = y->src[1];
    if (ad.needs_gradient(a)) {
        ad.add(a, ggml_mul(ad.ops.ctx, ad.ops.contiguous(dy), b));
    }
    if (ad.needs_gradient(b)) {
        ad.add(b, unbroadcast(ad, ggml_mul(ad.ops.ctx, ad.ops.contiguous(dy), a), b));
    }
}

// y = a / b
void div_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor *, ggml_tensor * dy) {
    ggml_tensor * b = y->src[1];
    ggml_tensor * da = ggml_div(ad.ops.ctx, ad.ops.contiguous(dy), b);
    ad.add(y->src[0], da);
    if (ad.needs_gradient(b)) {
        ad.add(b, unbroadcast(ad, ggml_scale(ad.ops.ctx, ggml_mul(ad.ops.ctx, da, y), -1.0f), b));
    }
}

// y = s x + c
void scale_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor *, ggml_tensor * dy) {
    ad.add(y->src[0], ggml_scale(ad.ops.ctx, ad.ops.contiguous(dy), param(y, 0)));
}

bool is_matrix(const ggml_tensor * t) {
    return t->ne[2] == 1 && t->ne[3] == 1 && t->nb[0] == ggml_type_size(t->type);
}

// dx and dw of a product whose result is multiplied by `scale`
void product_gradients(Autodiff & ad, ggml_tensor * w, ggml_tensor * x, ggml_tensor * dy, float scale) {
    if (ad.needs_gradient(x)) {
        const bool frozen_matrix = !ad.needs_gradient(w) && is_matrix(w);
        ggml_tensor * own = ad.own_gradient(x);
        ggml_tensor * dx =
            frozen_matrix && scale == 1.0f ? ad.ops.weight_dx(w, dy, x->ne, own) : ad.ops.matmul_dx(w, dy, scale, own);
        if (own != nullptr) {
            ad.set_own_gradient(x, dx);
        } else {
            ad.add_own(x, dx);
        }
    }
    if (ad.needs_gradient(w)) {
        ggml_tensor * accumulator = ad.accumulator(w);
        ggml_tensor * dw = ad.ops.matmul_dw(w, x, dy, scale, accumulator);
        if (accumulator != nullptr) {
            ad.add_result(w, dw);
        } else {
            ad.add_own(w, dw);
        }
    }
}

// y = w^T x
void mul_mat_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor *, ggml_tensor * dy) {
    product_gradients(ad, y->src[0], y->src[1], dy, 1.0f);
}

// y = src0 + scale b h
void lora_add_rule(Autodiff & ad, ggml_tensor * y, float scale, ggml_tensor * dy) {
    product_gradients(ad, y->src[1], y->src[2], dy, scale);
    ad.add(y->src[0], dy);
}

// y = w x + scale b h, h = a x in one node
void bf16_lora_rule(Autodiff & ad, ggml_tensor * y, const GraphOps::Origin & origin, ggml_tensor * dy) {
    ggml_tensor *w = y->src[0], *x = y->src[1], *b = y->src[3], *h = y->src[5];
    ggml_tensor * a = origin.lora_a;
    const float scale = origin.lora_scale;
    if (a == nullptr) {
        product_gradients(ad, b, h, dy, scale);
        product_gradients(ad, w, x, dy, 1.0f);
        return;
    }
    ggml_tensor * dh = ad.ops.bf16_dx(b, dy, h->ne, nullptr);
    ad.add_result(b, ad.ops.bf16_dw(h, dy, scale, ad.accumulator(b)));
    ad.add_result(a, ad.ops.bf16_dw(x, dh, scale, ad.accumulator(a)));
    if (ad.needs_gradient(x)) {
        ggml_tensor * own = ad.own_gradient(x);
        ggml_tensor * dx = ad.ops.bf16_lora_dx(w, dy, a, dh, scale, x->ne, own);
        if (own != nullptr) {
            ad.set_own_gradient(x, dx);
        } else {
            ad.add_own(x, dx);
        }
    }
}

// y = the part of the packed attention node that holds the output
void attention_rule(Autodiff & ad, ggml_tensor * y, ggml_tensor * dy) {
    const ggml_tensor * packed = y->src[0];
    const GraphOps::AttentionGradients d = ad.ops.attention_dx(y, dy);
    ad.add(packed->src[0], d.dq);
    ad.add(packed->src[1], d.dk);
    ad.add(packed->src[2], d.dv);
}

// y = f(x)
void activation_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor * proto, ggml_tensor * dy) {
    Activation f = Activation::silu;
    activation_of(proto, f);
    ad.add(y->src[0], ad.ops.activation_dx(f, y->src[0], dy));
}

// y = f(gate) up
void glu_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor * proto, ggml_tensor * dy) {
    Activation f = Activation::silu;
    activation_of(proto, f);
    const bool fused = proto->src[1] == nullptr;
    const bool swapped = fused && proto->op_params[1] != 0;
    ggml_tensor * both = ad.ops.glu_dx(f, y->src[0], fused ? nullptr : y->src[1], swapped, dy);
    if (fused) {
        ad.add(y->src[0], both);
        return;
    }
    const int64_t n = dy->ne[0];
    for (int half = 0; half < 2; half++) {
        if (ad.needs_gradient(y->src[half])) {
            ad.add(y->src[half], ggml_view_4d(ad.ops.ctx, both, n, dy->ne[1], dy->ne[2], dy->ne[3], both->nb[1],
                                              both->nb[2], both->nb[3], half * n * sizeof(float)));
        }
    }
}

// y = softmax(scale x + mask)
void soft_max_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor *, ggml_tensor * dy) {
    ad.add(y->src[0], ad.ops.softmax_dx(y, dy, param(y, 0)));
}

void rms_norm_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor *, ggml_tensor * dy) {
    ad.add(y->src[0], ad.ops.rms_norm_dx(y->src[0], dy, param(y, 0)));
}

void norm_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor *, ggml_tensor * dy) {
    ad.add(y->src[0], ad.ops.norm_dx(y->src[0], dy, param(y, 0)));
}

// The inverse rotation, which ggml has as an op with the same parameters.
void rope_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor *, ggml_tensor * dy) {
    ggml_tensor * dx = ggml_new_tensor(ad.ops.ctx, GGML_TYPE_F32, GGML_MAX_DIMS, y->ne);
    dx->op = GGML_OP_ROPE_BACK;
    std::memcpy(dx->op_params, y->op_params, sizeof(dx->op_params));
    dx->src[0] = ad.ops.contiguous(dy);
    dx->src[1] = y->src[1];
    dx->src[2] = y->src[2];
    ad.add(y->src[0], dx);
}

// y = clamp(x)
void clamp_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor *, ggml_tensor * dy) {
    ad.add(y->src[0], ad.ops.clamp_dx(y->src[0], dy, param(y, 0), param(y, 1)));
}

// CONT, RESHAPE: the same elements in the same order
void reshape_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor *, ggml_tensor * dy) {
    const ggml_tensor * x = y->src[0];
    ad.add(y->src[0], ggml_reshape_4d(ad.ops.ctx, ad.ops.contiguous(dy), x->ne[0], x->ne[1], x->ne[2], x->ne[3]));
}

void permute_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor *, ggml_tensor * dy) {
    const int32_t * axis = y->op_params;  // source dimension d went to axis[d]
    int inverse[4];
    for (int d = 0; d < 4; d++) {
        inverse[axis[d]] = d;
    }
    ad.add(y->src[0], ggml_permute(ad.ops.ctx, dy, inverse[0], inverse[1], inverse[2], inverse[3]));
}

void transpose_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor *, ggml_tensor * dy) {
    ad.add(y->src[0], ggml_transpose(ad.ops.ctx, dy));
}

void view_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor * proto, ggml_tensor * dy) {
    ggml_tensor * x = y->src[0];
    bool whole = ggml_nelements(x) == ggml_nelements(y) && ggml_is_contiguous(x) && ggml_is_contiguous(y);
    if (ggml_are_same_shape(x, y) && ggml_are_same_stride(x, y)) {
        whole = true;
    }
    if (whole) {
        reshape_rule(ad, y, proto, dy);
    } else {
        ad.add(x, ad.ops.view_dx(x, y, dy));
    }
}

void get_rows_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor *, ggml_tensor * dy) {
    ad.add(y->src[0], ad.ops.rows_dx(y->src[0], y->src[1], dy));
}

// y = x repeated
void repeat_rule(Autodiff & ad, ggml_tensor * y, const ggml_tensor *, ggml_tensor * dy) {
    ad.add(y->src[0], unbroadcast(ad, dy, y->src[0]));
}

Rule rule_for(const ggml_tensor * node) {
    Activation f;
    switch (node->op) {
        case GGML_OP_ADD:
            return add_rule;
        case GGML_OP_SUB:
            return sub_rule;
        case GGML_OP_MUL:
            return mul_rule;
        case GGML_OP_DIV:
            return div_rule;
        case GGML_OP_SCALE:
            return scale_rule;
        case GGML_OP_MUL_MAT:
            // stacks of quantized matrices appear only in architectures that are refused for other ops
            return is_matrix(node->src[0]) || node->src[0]->type == GGML_TYPE_F32 ? mul_mat_rule : nullptr;
        case GGML_OP_UNARY:
        case GGML_OP_SQR:
            return activation_of(node, f) ? activation_rule : nullptr;
        case GGML_OP_GLU:
            return activation_of(node, f) ? glu_rule : nullptr;
        case GGML_OP_SOFT_MAX:
            return soft_max_rule;
        case GGML_OP_RMS_NORM:
            return rms_norm_rule;
        case GGML_OP_NORM:
            return norm_rule;
        case GGML_OP_ROPE:
            return rope_rule;
        case GGML_OP_CLAMP:
            return clamp_rule;
        case GGML_OP_CONT:
        case GGML_OP_RESHAPE:
            return reshape_rule;
        case GGML_OP_PERMUTE:
            return permute_rule;
        case GGML_OP_TRANSPOSE:
            return transpose_rule;
        case GGML_OP_VIEW:
            return view_rule;
        case GGML_OP_GET_ROWS:
            return is_matrix(node->src[0]) ? get_rows_rule : nullptr;
        case GGML_OP_REPEAT:
            return repeat_rule;
        default:
            return nullptr;
    }
}

}  // namespace

bool activation_of(const ggml_tensor * node, Activation & f) {
    if (node->op == GGML_OP_SQR) {
        f = Activation::sqr;
        return true;
    }
    if (node->op == GGML_OP_UNARY) {
        switch (ggml_get_unary_op(node)) {
            case GGML_UNARY_OP_SILU:
                f = Activation::silu;
                return true;
            case GGML_UNARY_OP_GELU:
                f = Activation::gelu;
                return true;
            case GGML_UNARY_OP_GELU_ERF:
                f = Activation::gelu_erf;
                return true;
            case GGML_UNARY_OP_GELU_QUICK:
                f = Activation::gelu_quick;
                return true;
            case GGML_UNARY_OP_RELU:
                f = Activation::relu;
                return true;
            case GGML_UNARY_OP_TANH:
                f = Activation::tanh;
                return true;
            case GGML_UNARY_OP_SIGMOID:
                f = Activation::sigmoid;
                return true;
            case GGML_UNARY_OP_EXP:
                f = Activation::exp;
                return true;
            default:
                return false;
        }
    }
    if (node->op == GGML_OP_GLU) {
        switch (ggml_get_glu_op(node)) {
            case GGML_GLU_OP_SWIGLU:
                f = Activation::silu;
                return true;
            case GGML_GLU_OP_GEGLU:
                f = Activation::gelu;
                return true;
            case GGML_GLU_OP_GEGLU_ERF:
                f = Activation::gelu_erf;
                return true;
            case GGML_GLU_OP_GEGLU_QUICK:
                f = Activation::gelu_quick;
                return true;
            case GGML_GLU_OP_REGLU:
                f = Activation::relu;
                return true;
            default:
                return false;
        }
    }
    return false;
}

void Autodiff::set_trainable(ggml_tensor * leaf, ggml_tensor * accumulator) {
    accumulators[leaf] = accumulator;
    on_path.insert(leaf);
}

void Autodiff::trace(const std::vector<ggml_tensor *> & nodes) {
    for (const ggml_tensor * node : nodes) {
        for (const ggml_tensor * src : node->src) {
            if (needs_gradient(src)) {
                on_path.insert(node);
                break;
            }
        }
    }
}

std::vector<std::string> Autodiff::missing_rules(const std::vector<ggml_tensor *> & nodes) const {
    std::vector<std::string> missing;
    for (const ggml_tensor * node : nodes) {
        using Kind = GraphOps::Origin::Kind;
        const GraphOps::Origin origin = ops.origin(node);
        const ggml_tensor * proto = origin.kind == Kind::replacement ? origin.replaced : node;
        if (!needs_gradient(node) || (origin.kind != Kind::none && origin.kind != Kind::replacement)) {
            continue;
        }
        if (rule_for(proto) == nullptr || node->type != GGML_TYPE_F32) {
            missing.push_back(std::string(ggml_op_desc(proto)) + " (tensor " + node->name + ")");
        }
    }
    return missing;
}

void Autodiff::add(ggml_tensor * t, ggml_tensor * dt) {
    if (!needs_gradient(t)) {
        return;
    }
    if (ggml_tensor * acc = accumulator(t)) {
        add_result(t, ggml_add_inplace(ops.ctx, acc, ops.contiguous(dt)));
        return;
    }
    const auto it = gradients.find(t);
    if (it == gradients.end()) {
        gradients[t] = dt;
    } else {
        it->second = ggml_add(ops.ctx, ops.contiguous(it->second), dt);
        owned.insert(t);
    }
}

void Autodiff::add_own(ggml_tensor * t, ggml_tensor * dt) {
    add(t, dt);
    owned.insert(t);
}

ggml_tensor * Autodiff::own_gradient(const ggml_tensor * t) const {
    ggml_tensor * dt = owned.count(t) != 0 ? gradient(t) : nullptr;
    return dt != nullptr && ggml_is_contiguous(dt) ? dt : nullptr;
}

ggml_tensor * Autodiff::gradient(const ggml_tensor * t) const {
    const auto it = gradients.find(t);
    return it != gradients.end() ? it->second : nullptr;
}

ggml_tensor * Autodiff::accumulator(const ggml_tensor * leaf) const {
    const auto it = accumulators.find(leaf);
    return it != accumulators.end() ? it->second : nullptr;
}

void Autodiff::add_result(ggml_tensor * leaf, ggml_tensor * accumulated) {
    results.push_back(accumulated);
    reached.insert(leaf);
}

std::vector<ggml_tensor *> Autodiff::take_results() {
    return std::exchange(results, {});
}

void Autodiff::backward(const std::vector<ggml_tensor *> & nodes) {
    for (auto it = nodes.rbegin(); it != nodes.rend(); ++it) {
        ggml_tensor * y = *it;
        ggml_tensor * dy = gradient(y);
        if (dy == nullptr) {
            continue;
        }
        const GraphOps::Origin origin = ops.origin(y);
        const ggml_tensor * proto = y;
        switch (origin.kind) {
            case GraphOps::Origin::Kind::dropout:
                add(y->src[0], ops.dropout(dy, *origin.dropout));
                continue;
            case GraphOps::Origin::Kind::lora_add:
                lora_add_rule(*this, y, origin.lora_scale, dy);
                continue;
            case GraphOps::Origin::Kind::bf16_lora:
                bf16_lora_rule(*this, y, origin, dy);
                continue;
            case GraphOps::Origin::Kind::attention:
                attention_rule(*this, y, dy);
                continue;
            case GraphOps::Origin::Kind::replacement:
                proto = origin.replaced;
                break;
            case GraphOps::Origin::Kind::packed:
            case GraphOps::Origin::Kind::quantized:  // the product's gradient goes to what was quantized
            case GraphOps::Origin::Kind::none:
                break;
        }
        const Rule rule = rule_for(proto);
        if (rule == nullptr) {
            throw Error(std::string("no gradient rule for ") + ggml_op_desc(proto) + " (tensor " + y->name + ")");
        }
        rule(*this, y, proto, dy);
    }
}

}  // namespace ggtune
