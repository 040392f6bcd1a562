// Activation functions, alone and in gated linear units.
#include "ops/activation.h"

#include <variant>

#include "ops/cpu/cpu_ops.h"

namespace ggtune {

namespace {

using kernels::split_range;

void run_activation(ggml_tensor * y, int ith, int nth, void * userdata) {
    const auto range = element_range(y, ith, nth);
    kernels::activation_forward(*static_cast<Activation *>(userdata), floats(y->src[0]) + range.begin,
                                floats(y) + range.begin, range.size());
}

void run_activation_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const auto range = element_range(dx, ith, nth);
    kernels::activation_backward(*static_cast<Activation *>(userdata), floats(dx->src[0]) + range.begin,
                                 floats(dx->src[1]) + range.begin, floats(dx) + range.begin, range.size());
}

// f(gate) up, or a unit with limits
using GluFunction = std::variant<Activation, LimitedGlu>;

void glu_forward(const GluFunction & f, const float * gate, const float * up, float * y, int64_t n) {
    if (const auto * limits = std::get_if<LimitedGlu>(&f)) {
        kernels::limited_glu_forward(*limits, gate, up, y, n);
    } else {
        kernels::glu_forward(std::get<Activation>(f), gate, up, y, n);
    }
}

void glu_backward(const GluFunction & f, const float * gate, const float * up, const float * dy, float * d_gate,
                  float * d_up, int64_t n) {
    if (const auto * limits = std::get_if<LimitedGlu>(&f)) {
        kernels::limited_glu_backward(*limits, gate, up, dy, d_gate, d_up, n);
    } else {
        kernels::glu_backward(std::get<Activation>(f), gate, up, dy, d_gate, d_up, n);
    }
}

struct Glu {
    GluFunction f;
    bool fused;
    bool swapped;

    // rows of gate and up; n is the width of one of them
    void inputs(const ggml_tensor * a, const ggml_tensor * b, int64_t row, int64_t n, const float *& gate,
                const float *& up) const {
        const float * first = floats(a) + row * stride(a, 1);
        const float * second = fused ? first + n : floats(b) + row * stride(b, 1);
        gate = swapped ? second : first;
        up = swapped ? first : second;
    }
};

void run_glu(ggml_tensor * y, int ith, int nth, void * userdata) {
    const Glu & glu = *static_cast<Glu *>(userdata);
    const int64_t n = y->ne[0];
    const auto rows = split_range(ggml_nrows(y), ith, nth);
    for (int64_t row = rows.begin; row < rows.end; row++) {
        const float *gate, *up;
        glu.inputs(y->src[0], y->src[1], row, n, gate, up);
        glu_forward(glu.f, gate, up, floats(y) + row * n, n);
    }
}

void run_glu_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const Glu & glu = *static_cast<Glu *>(userdata);
    const ggml_tensor * dy = dx->src[0];
    const int64_t n = dy->ne[0];
    const auto rows = split_range(ggml_nrows(dy), ith, nth);
    for (int64_t row = rows.begin; row < rows.end; row++) {
        const float *gate, *up;
        glu.inputs(dx->src[1], dx->src[2], row, n, gate, up);
        float * first = floats(dx) + row * 2 * n;
        float * d_gate = glu.swapped ? first + n : first;
        float * d_up = glu.swapped ? first : first + n;
        glu_backward(glu.f, gate, up, floats(dy) + row * n, d_gate, d_up, n);
    }
}

void activation_rule(const BackwardStep & s) {
    add_activation_gradient(s, params_of<Activation>(s.y));
}

void glu_rule(const BackwardStep & s) {
    const Glu & glu = params_of<Glu>(s.y);
    if (const auto * limits = std::get_if<LimitedGlu>(&glu.f)) {
        add_limited_glu_gradient(s, *limits, glu.swapped);
    } else {
        add_glu_gradient(s, std::get<Activation>(glu.f), glu.swapped);
    }
}

const CpuOp activation_op = {{"activation", activation_rule, Rows::singly}, run_activation};
const CpuOp activation_dx_op = {{"activation_dx"}, run_activation_dx};
const CpuOp glu_op = {{"glu", glu_rule}, run_glu};
const CpuOp glu_dx_op = {{"glu_dx"}, run_glu_dx};

}  // namespace

ggml_tensor * CpuOps::activation(Activation f, ggml_tensor * x) {
    return node(activation_op, x->ne, {contiguous(x)}, keep(f));
}

ggml_tensor * CpuOps::activation_dx(Activation f, ggml_tensor * x, ggml_tensor * dy) {
    return node(activation_dx_op, x->ne, {contiguous(x), contiguous(dy)}, keep(f));
}

// params: a Glu
ggml_tensor * CpuOps::glu(ggml_tensor * gate, ggml_tensor * up, void * params) {
    const int64_t ne[4] = {up != nullptr ? gate->ne[0] : gate->ne[0] / 2, gate->ne[1], gate->ne[2], gate->ne[3]};
    Operands operands = {even_rows(gate)};
    if (up != nullptr) {
        operands.push_back(even_rows(up));
    }
    return node(glu_op, ne, operands, params);
}

ggml_tensor * CpuOps::glu_dx(ggml_tensor * gate, ggml_tensor * up, ggml_tensor * dy, void * params) {
    const int64_t ne[4] = {2 * dy->ne[0], dy->ne[1], dy->ne[2], dy->ne[3]};
    Operands operands = {contiguous(dy), even_rows(gate)};
    if (up != nullptr) {
        operands.push_back(even_rows(up));
    }
    return node(glu_dx_op, ne, operands, params);
}

ggml_tensor * CpuOps::glu(Activation f, ggml_tensor * gate, ggml_tensor * up, bool swapped) {
    return glu(gate, up, keep(Glu{f, up == nullptr, swapped}));
}

ggml_tensor * CpuOps::limited_glu(const LimitedGlu & f, ggml_tensor * gate, ggml_tensor * up, bool swapped) {
    return glu(gate, up, keep(Glu{f, up == nullptr, swapped}));
}

ggml_tensor * CpuOps::glu_dx(Activation f, ggml_tensor * gate, ggml_tensor * up, bool swapped, ggml_tensor * dy) {
    return glu_dx(gate, up, dy, keep(Glu{f, up == nullptr, swapped}));
}

ggml_tensor * CpuOps::limited_glu_dx(const LimitedGlu & f, ggml_tensor * gate, ggml_tensor * up, bool swapped,
                                     ggml_tensor * dy) {
    return glu_dx(gate, up, dy, keep(Glu{f, up == nullptr, swapped}));
}

}  // namespace ggtune
