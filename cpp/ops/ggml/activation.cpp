// Activation functions, alone and in gated linear units.
#include <limits>

#include "base/error.h"
#include "ops/ggml/ggml_ops.h"

namespace ggtune {

namespace {

constexpr float kGeluLinear = 0.797884560802865356f;  // sqrt(2 / pi)
constexpr float kGeluCubic = 0.044715f;
constexpr float kQuick = 1.702f;
constexpr float kNormalDensity = 0.398942280401432678f;  // 1 / sqrt(2 pi)

}  // namespace

// s of the functions x s(x), s a sigmoid. GELU: 0.5 (1 + tanh(u)) = sigmoid(2 u)
ggml_tensor * GgmlOps::gate_of(Activation f, ggml_tensor * x) const {
    switch (f) {
        case Activation::gelu:
            x = ggml_mul(ctx, x,
                         ggml_scale_bias(ctx, ggml_sqr(ctx, x), 2.0f * kGeluLinear * kGeluCubic, 2.0f * kGeluLinear));
            break;
        case Activation::gelu_quick:
            x = ggml_scale(ctx, x, kQuick);
            break;
        default:
            break;
    }
    return ggml_sigmoid(ctx, x);
}

ggml_tensor * GgmlOps::activation(Activation f, ggml_tensor * x) const {
    switch (f) {
        case Activation::silu:
            return ggml_silu(ctx, x);
        case Activation::gelu:
            return traits_.rounds_gelu ? ggml_mul(ctx, x, gate_of(f, x)) : ggml_gelu(ctx, x);
        case Activation::gelu_quick:
            return traits_.rounds_gelu ? ggml_mul(ctx, x, gate_of(f, x)) : ggml_gelu_quick(ctx, x);
        case Activation::gelu_erf:
            return ggml_gelu_erf(ctx, x);
        case Activation::relu:
            return ggml_relu(ctx, x);
        case Activation::tanh:
            return ggml_tanh(ctx, x);
        case Activation::sigmoid:
            return ggml_sigmoid(ctx, x);
        case Activation::sqr:
            return ggml_sqr(ctx, x);
        case Activation::exp:
            return ggml_exp(ctx, x);
    }
    throw Error("an activation function that ggml does not have");
}

// Of the normal distribution, from gelu_erf(x) = x cdf(x), since ggml has no erf: at |x|, not below what a quotient
// can be taken of, and reflected.
ggml_tensor * GgmlOps::normal_cdf(ggml_tensor * x) const {
    ggml_tensor * size = ggml_clamp(ctx, ggml_abs(ctx, x), 1e-20f, 1e20f);
    ggml_tensor * half = ggml_scale_bias(ctx, ggml_div(ctx, ggml_gelu_erf(ctx, size), size), 1.0f, -0.5f);
    return ggml_scale_bias(ctx, ggml_mul(ctx, ggml_sgn(ctx, x), half), 1.0f, 0.5f);
}

ggml_tensor * GgmlOps::derivative(Activation f, ggml_tensor * x) const {
    switch (f) {
        case Activation::silu:
        case Activation::gelu:
        case Activation::gelu_quick: {
            // s (1 + x u' (1 - s)), s = sigmoid(u)
            ggml_tensor * s = gate_of(f, x);
            ggml_tensor * v = x;
            if (f == Activation::gelu) {
                v = ggml_mul(
                    ctx, x,
                    ggml_scale_bias(ctx, ggml_sqr(ctx, x), 6.0f * kGeluLinear * kGeluCubic, 2.0f * kGeluLinear));
            } else if (f == Activation::gelu_quick) {
                v = ggml_scale(ctx, x, kQuick);
            }
            return ggml_mul(ctx, s, ggml_scale_bias(ctx, ggml_mul(ctx, v, one_minus(s)), 1.0f, 1.0f));
        }
        case Activation::gelu_erf: {
            ggml_tensor * bell = ggml_exp(ctx, ggml_scale(ctx, ggml_sqr(ctx, x), -0.5f));
            return ggml_add(ctx, normal_cdf(x), ggml_mul(ctx, x, ggml_scale(ctx, bell, kNormalDensity)));
        }
        case Activation::relu:
            return ggml_step(ctx, x);
        case Activation::tanh:
            return one_minus(ggml_sqr(ctx, ggml_tanh(ctx, x)));
        case Activation::sigmoid: {
            ggml_tensor * s = ggml_sigmoid(ctx, x);
            return ggml_mul(ctx, s, one_minus(s));
        }
        case Activation::sqr:
            return ggml_scale(ctx, x, 2.0f);
        case Activation::exp:
            return ggml_exp(ctx, x);
    }
    throw Error("an activation function that ggml does not have");
}

ggml_tensor * GgmlOps::activation_dx(Activation f, ggml_tensor * x, ggml_tensor * dy) {
    x = contiguous(x);
    dy = contiguous(dy);
    const bool in_one = f == Activation::silu && ggml_nelements(x) <= traits_.max_flat_elements;
    return in_one ? ggml_silu_back(ctx, dy, x) : ggml_mul(ctx, dy, derivative(f, x));
}

GgmlOps::GateAndUp GgmlOps::gate_and_up(ggml_tensor * gate, ggml_tensor * up, bool swapped) const {
    if (up != nullptr) {
        return {contiguous(gate), contiguous(up)};
    }
    ggml_tensor * fused = gate;
    const int64_t n = fused->ne[0] / 2;
    const auto half = [&](int64_t begin) {
        return contiguous(ggml_view_4d(ctx, fused, n, fused->ne[1], fused->ne[2], fused->ne[3], fused->nb[1],
                                       fused->nb[2], fused->nb[3], begin * sizeof(float)));
    };
    return {half(swapped ? n : 0), half(swapped ? 0 : n)};
}

ggml_tensor * GgmlOps::glu_dx(Activation f, ggml_tensor * gate, ggml_tensor * up, bool swapped, ggml_tensor * dy) {
    const GateAndUp both = gate_and_up(gate, up, swapped);
    dy = contiguous(dy);
    ggml_tensor * d_gate = activation_dx(f, both.gate, ggml_mul(ctx, dy, both.up));
    ggml_tensor * d_up = ggml_mul(ctx, dy, activation(f, both.gate));
    return swapped ? ggml_concat(ctx, d_up, d_gate, 0) : ggml_concat(ctx, d_gate, d_up, 0);
}

// y = g sigmoid(slope g) (u + offset), g and u clamped
ggml_tensor * GgmlOps::limited_glu_dx(const LimitedGlu & f, ggml_tensor * gate, ggml_tensor * up, bool swapped,
                                      ggml_tensor * dy) {
    const float none = -std::numeric_limits<float>::max();
    const GateAndUp both = gate_and_up(gate, up, swapped);
    dy = contiguous(dy);
    ggml_tensor * g = ggml_clamp(ctx, both.gate, none, f.limit);
    ggml_tensor * u = ggml_clamp(ctx, both.up, -f.limit, f.limit);
    ggml_tensor * s = ggml_sigmoid(ctx, ggml_scale(ctx, g, f.slope));
    // s (1 + slope g (1 - s))
    ggml_tensor * slope = ggml_mul(ctx, s, ggml_scale_bias(ctx, ggml_mul(ctx, g, one_minus(s)), f.slope, 1.0f));
    ggml_tensor * dg = ggml_mul(ctx, ggml_mul(ctx, dy, slope), ggml_scale_bias(ctx, u, 1.0f, f.offset));
    ggml_tensor * d_gate = clamp_dx(both.gate, dg, none, f.limit);
    ggml_tensor * d_up = clamp_dx(both.up, ggml_mul(ctx, dy, ggml_mul(ctx, g, s)), -f.limit, f.limit);
    return swapped ? ggml_concat(ctx, d_up, d_gate, 0) : ggml_concat(ctx, d_gate, d_up, 0);
}

}  // namespace ggtune
