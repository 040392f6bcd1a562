// Activation functions f and their derivatives, exact to about 1e-7 (ggml's own GELU reads a half-precision table).
#pragma once

#include <cstdint>

namespace ggtune::kernels {

enum class Activation {
    silu,        // x * sigmoid(x)
    gelu,        // 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), Hendrycks & Gimpel, arXiv:1606.08415
    gelu_erf,    // 0.5 x (1 + erf(x / sqrt(2)))
    gelu_quick,  // x * sigmoid(1.702 x)
    relu,        // max(x, 0), derivative 0 at 0
    tanh,
    sigmoid,
    sqr,
    exp,
};

// All arrays hold n floats. An output may be the same array as an input; other overlaps are not allowed.

// y = f(x)
void activation_forward(Activation activation, const float * x, float * y, int64_t n);

// dx = dy * f'(x)
void activation_backward(Activation activation, const float * x, const float * dy, float * dx, int64_t n);

// Gated linear unit (Shazeer, arXiv:2002.05202): y = f(gate) * up
void glu_forward(Activation activation, const float * gate, const float * up, float * y, int64_t n);

// d_gate = dy * up * f'(gate), d_up = dy * f(gate)
void glu_backward(Activation activation, const float * gate, const float * up, const float * dy, float * d_gate,
                  float * d_up, int64_t n);

// A gated linear unit with limits, y = g sigmoid(slope g) (u + offset) with g = min(gate, limit) and u = up between
// -limit and limit: gpt-oss (slope 1.702, offset 1), SwiGLU with its inputs clamped (slope 1, offset 0). At a limit
// itself the gradient passes.
struct LimitedGlu {
    float slope, limit, offset;
};
void limited_glu_forward(const LimitedGlu & glu, const float * gate, const float * up, float * y, int64_t n);
void limited_glu_backward(const LimitedGlu & glu, const float * gate, const float * up, const float * dy,
                          float * d_gate, float * d_up, int64_t n);

// f(x) in double: the definition that the functions above approximate.
double activation_reference(Activation activation, double x);

}  // namespace ggtune::kernels
