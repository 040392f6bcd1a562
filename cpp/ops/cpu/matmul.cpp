// Products of float matrices, any strides.
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/product_gradient.h"
#include "ops/products.h"

namespace ggtune {

namespace {

using kernels::Operand;
using kernels::split_range;

// Runs body(batch, ith, nth) over n matrices: whole matrices per thread when there are many, else threads share each
// matrix. The kernels give the same bits either way.
template <typename Body>
void for_each_matrix(int64_t n, int ith, int nth, Body body) {
    if (n >= 4 * nth || n % nth == 0) {
        const auto range = split_range(n, ith, nth);
        for (int64_t i = range.begin; i < range.end; i++) {
            body(i, 0, 1);
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            body(i, ith, nth);
        }
    }
}

void run_matmul(ggml_tensor * y, int ith, int nth, void *) {
    const ggml_tensor * w = y->src[0];
    const ggml_tensor * x = y->src[1];
    const int64_t group2 = x->ne[2] / w->ne[2];
    const int64_t group3 = x->ne[3] / w->ne[3];
    for_each_matrix(x->ne[2] * x->ne[3], ith, nth, [&](int64_t b, int i, int n) {
        const int64_t i2 = b % x->ne[2];
        const int64_t i3 = b / x->ne[2];
        const Operand wm = matrix(w, i2 / group2, i3 / group3);
        kernels::gemm(x->ne[1], w->ne[1], w->ne[0], matrix(x, i2, i3), wm.transposed(), 1.0f, 0.0f,
                      floats(y) + i2 * stride(y, 2) + i3 * stride(y, 3), stride(y, 1), 1, i, n);
    });
}

void run_matmul_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const auto & params = *static_cast<const ProductGradient *>(userdata);
    const ggml_tensor * w = params.operand(dx, 0);
    const ggml_tensor * dy = params.operand(dx, 1);
    const int64_t group2 = dy->ne[2] / w->ne[2];
    const int64_t group3 = dy->ne[3] / w->ne[3];
    for_each_matrix(dy->ne[2] * dy->ne[3], ith, nth, [&](int64_t b, int i, int n) {
        const int64_t i2 = b % dy->ne[2];
        const int64_t i3 = b / dy->ne[2];
        kernels::gemm(dy->ne[1], w->ne[0], w->ne[1], matrix(dy, i2, i3), matrix(w, i2 / group2, i3 / group3),
                      params.scale, params.accumulate ? 1.0f : 0.0f,
                      floats(dx) + i2 * stride(dx, 2) + i3 * stride(dx, 3), stride(dx, 1), 1, i, n);
    });
}

void run_matmul_dw(ggml_tensor * dw, int ith, int nth, void * userdata) {
    const auto & params = *static_cast<const ProductGradient *>(userdata);
    const ggml_tensor * x = params.operand(dw, 0);
    const ggml_tensor * dy = params.operand(dw, 1);
    const int64_t group2 = x->ne[2] / dw->ne[2];
    const int64_t group3 = x->ne[3] / dw->ne[3];
    for_each_matrix(dw->ne[2] * dw->ne[3], ith, nth, [&](int64_t b, int i, int n) {
        const int64_t i2 = b % dw->ne[2];
        const int64_t i3 = b / dw->ne[2];
        float * out = floats(dw) + i2 * stride(dw, 2) + i3 * stride(dw, 3);
        float beta = params.accumulate ? 1.0f : 0.0f;
        for (int64_t g3 = 0; g3 < group3; g3++) {
            for (int64_t g2 = 0; g2 < group2; g2++) {
                const Operand xm = matrix(x, i2 * group2 + g2, i3 * group3 + g3);
                const Operand dym = matrix(dy, i2 * group2 + g2, i3 * group3 + g3);
                kernels::gemm(dw->ne[1], dw->ne[0], x->ne[1], dym.transposed(), xm, params.scale, beta, out,
                              stride(dw, 1), 1, i, n);
                beta = 1.0f;
            }
        }
    });
}

void run_lora_add(ggml_tensor * y, int ith, int nth, void * userdata) {
    const ggml_tensor * b = y->src[1];
    const ggml_tensor * h = y->src[2];
    kernels::gemm(y->ne[1], y->ne[0], b->ne[0], matrix(h, 0, 0), matrix(b, 0, 0).transposed(),
                  *static_cast<float *>(userdata), 1.0f, floats(y), stride(y, 1), 1, ith, nth);
}

// y = src0 + scale b h
void lora_add_rule(const BackwardStep & s) {
    add_product_gradients(s, s.y->src[1], s.y->src[2], params_of<float>(s.y));
    s.add(s.y->src[0], s.dy);
}

const CpuOp matmul_op = {{"matmul", product_rule, Rows::singly}, run_matmul};
const CpuOp matmul_dx_op = {{"matmul_dx"}, run_matmul_dx};
const CpuOp matmul_dw_op = {{"matmul_dw"}, run_matmul_dw};
const CpuOp lora_add_op = {{"lora_add", lora_add_rule}, run_lora_add};

}  // namespace

ggml_tensor * CpuOps::matmul(ggml_tensor * w, ggml_tensor * x) {
    const int64_t ne[4] = {w->ne[1], x->ne[1], x->ne[2], x->ne[3]};
    return node(matmul_op, ne, {w, x});
}

ggml_tensor * CpuOps::lora_add(ggml_tensor * y, ggml_tensor * b, ggml_tensor * h, float scale) {
    return node_over(lora_add_op, y, {b, h}, keep(scale));
}

ggml_tensor * CpuOps::product_gradient(const CpuOp & op, const int64_t ne[4], ggml_tensor * a, ggml_tensor * b,
                                       float scale, ggml_tensor * accumulator) {
    ProductGradient * params = keep(ProductGradient{scale, accumulator != nullptr});
    return accumulator != nullptr ? node_over(op, accumulator, {a, b}, params) : node(op, ne, {a, b}, params);
}

ggml_tensor * CpuOps::matmul_dx(ggml_tensor * w, ggml_tensor * dy, float scale, ggml_tensor * accumulator) {
    const int64_t ne[4] = {w->ne[0], dy->ne[1], dy->ne[2], dy->ne[3]};
    return product_gradient(matmul_dx_op, ne, w, dy, scale, accumulator);
}

ggml_tensor * CpuOps::matmul_dw(ggml_tensor * w, ggml_tensor * x, ggml_tensor * dy, float scale,
                                ggml_tensor * accumulator) {
    return product_gradient(matmul_dw_op, w->ne, x, dy, scale, accumulator);
}

}  // namespace ggtune
