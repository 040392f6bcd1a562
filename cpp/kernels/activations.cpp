#include "kernels/activations.h"

#include <cmath>

#include "kernels/vector_math.h"

namespace ggtune::kernels {
namespace {

using simd::kWidth;
using simd::load;
using simd::load_partial;
using simd::select;
using simd::splat;
using simd::store;
using simd::store_partial;
using simd::Vec;

constexpr float kGeluLinear = 0.797884560802865356f;  // sqrt(2 / pi)
constexpr float kGeluCubic = 0.044715f;
constexpr float kQuick = 1.702f;

struct ValueAndDerivative {
    Vec value;
    Vec derivative;
};

// x * sigmoid(factor * x)
inline ValueAndDerivative scaled_silu(Vec x, float factor) {
    const Vec s = simd::sigmoid(factor * x);
    return {x * s, s * (1.0f + factor * x * (1.0f - s))};
}

template <Activation activation>
inline ValueAndDerivative evaluate(Vec x) {
    if constexpr (activation == Activation::silu) {
        return scaled_silu(x, 1.0f);
    } else if constexpr (activation == Activation::gelu_quick) {
        return scaled_silu(x, kQuick);
    } else if constexpr (activation == Activation::gelu) {
        // 0.5 (1 + tanh(u)) = sigmoid(2 u), which keeps its relative accuracy for negative u
        const Vec square = x * x;
        const Vec s = simd::sigmoid(2.0f * kGeluLinear * x * (1.0f + kGeluCubic * square));
        return {x * s, s * (1.0f + 2.0f * kGeluLinear * x * (1.0f + 3.0f * kGeluCubic * square) * (1.0f - s))};
    } else if constexpr (activation == Activation::gelu_erf) {
        const simd::Normal normal = simd::normal(x);
        return {x * normal.cdf, normal.cdf + x * normal.pdf};
    } else if constexpr (activation == Activation::relu) {
        // written so that NaN stays NaN
        return {select(x <= splat(0.0f), splat(0.0f), x), select(x > splat(0.0f), splat(1.0f), splat(0.0f))};
    } else if constexpr (activation == Activation::tanh) {
        const Vec y = simd::tanh(x);
        return {y, (1.0f - y) * (1.0f + y)};
    } else if constexpr (activation == Activation::sigmoid) {
        const Vec s = simd::sigmoid(x);
        return {s, s * (1.0f - s)};
    } else if constexpr (activation == Activation::sqr) {
        return {x * x, 2.0f * x};
    } else {
        static_assert(activation == Activation::exp);
        const Vec y = simd::exp(x);
        return {y, y};
    }
}

// Calls f with the activation as a compile-time constant.
template <class F>
void dispatch(Activation activation, F && f) {
    switch (activation) {
#define GGTUNE_CASE(name)                                          \
    case Activation::name:                                         \
        f(std::integral_constant<Activation, Activation::name>{}); \
        return;
        GGTUNE_CASE(silu)
        GGTUNE_CASE(gelu)
        GGTUNE_CASE(gelu_erf)
        GGTUNE_CASE(gelu_quick)
        GGTUNE_CASE(relu)
        GGTUNE_CASE(tanh)
        GGTUNE_CASE(sigmoid)
        GGTUNE_CASE(sqr)
        GGTUNE_CASE(exp)
#undef GGTUNE_CASE
    }
}

// Calls f(get, put) for each vector of n elements: get(p) loads it from array p, put(p, v) stores it to array p.
template <class F>
inline void for_each_vector(int64_t n, F && f) {
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) {
        f([i](const float * p) { return load(p + i); }, [i](float * p, Vec v) { store(p + i, v); });
    }
    const int64_t rest = n - i;
    if (rest > 0) {
        f([i, rest](const float * p) { return load_partial(p + i, rest); },
          [i, rest](float * p, Vec v) { store_partial(p + i, v, rest); });
    }
}

}  // namespace

void activation_forward(Activation activation, const float * x, float * y, int64_t n) {
    dispatch(activation, [=](auto constant) {
        for_each_vector(n, [=](auto get, auto put) { put(y, evaluate<decltype(constant)::value>(get(x)).value); });
    });
}

void activation_backward(Activation activation, const float * x, const float * dy, float * dx, int64_t n) {
    dispatch(activation, [=](auto constant) {
        for_each_vector(
            n, [=](auto get, auto put) { put(dx, get(dy) * evaluate<decltype(constant)::value>(get(x)).derivative); });
    });
}

void glu_forward(Activation activation, const float * gate, const float * up, float * y, int64_t n) {
    dispatch(activation, [=](auto constant) {
        for_each_vector(
            n, [=](auto get, auto put) { put(y, evaluate<decltype(constant)::value>(get(gate)).value * get(up)); });
    });
}

void glu_backward(Activation activation, const float * gate, const float * up, const float * dy, float * d_gate,
                  float * d_up, int64_t n) {
    dispatch(activation, [=](auto constant) {
        for_each_vector(n, [=](auto get, auto put) {
            const ValueAndDerivative f = evaluate<decltype(constant)::value>(get(gate));
            const Vec gradient = get(dy);
            const Vec gate_gradient = gradient * get(up) * f.derivative;
            put(d_up, gradient * f.value);
            put(d_gate, gate_gradient);
        });
    });
}

namespace {

struct LimitedInputs {
    Vec gate, up;
};

// Written so that NaN stays NaN.
inline LimitedInputs limited(const LimitedGlu & glu, Vec gate, Vec up) {
    const Vec most = splat(glu.limit), least = splat(-glu.limit);
    up = select(up > most, most, up);
    return {select(gate > most, most, gate), select(up < least, least, up)};
}

}  // namespace

void limited_glu_forward(const LimitedGlu & glu, const float * gate, const float * up, float * y, int64_t n) {
    for_each_vector(n, [=](auto get, auto put) {
        const LimitedInputs in = limited(glu, get(gate), get(up));
        put(y, scaled_silu(in.gate, glu.slope).value * (in.up + glu.offset));
    });
}

void limited_glu_backward(const LimitedGlu & glu, const float * gate, const float * up, const float * dy,
                          float * d_gate, float * d_up, int64_t n) {
    const Vec none = splat(0.0f), most = splat(glu.limit), least = splat(-glu.limit);
    for_each_vector(n, [=](auto get, auto put) {
        const Vec gate_as_given = get(gate), up_as_given = get(up), gradient = get(dy);
        const LimitedInputs in = limited(glu, gate_as_given, up_as_given);
        const ValueAndDerivative f = scaled_silu(in.gate, glu.slope);
        const Vec gate_gradient = gradient * (in.up + glu.offset) * f.derivative;
        const Vec up_gradient = gradient * f.value;
        put(d_gate, select(gate_as_given > most, none, gate_gradient));
        put(d_up, select((up_as_given > most) | (up_as_given < least), none, up_gradient));
    });
}

double activation_reference(Activation activation, double x) {
    switch (activation) {
        case Activation::silu:
            return x / (1.0 + std::exp(-x));
        case Activation::gelu:
            return 0.5 * x * (1.0 + std::tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
        case Activation::gelu_erf:
            return 0.5 * x * std::erfc(-x * 0.70710678118654752440);
        case Activation::gelu_quick:
            return x / (1.0 + std::exp(-1.702 * x));
        case Activation::relu:
            return x > 0.0 ? x : 0.0;
        case Activation::tanh:
            return std::tanh(x);
        case Activation::sigmoid:
            return 1.0 / (1.0 + std::exp(-x));
        case Activation::sqr:
            return x * x;
        case Activation::exp:
            return std::exp(x);
    }
    return NAN;
}

}  // namespace ggtune::kernels
