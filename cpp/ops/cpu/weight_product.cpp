// Products with frozen matrices of any type, in float32 and by integers.
#include "kernels/weight_product.h"

#include "kernels/dequantize.h"
#include "kernels/int16_gradient.h"
#include "kernels/int8_product.h"
#include "kernels/scale_gradient.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/product_gradient.h"
#include "ops/products.h"

namespace ggtune {

namespace {

void run_weight_forward(ggml_tensor * y, int ith, int nth, void *) {
    const ggml_tensor * w = y->src[0];
    const ggml_tensor * x = y->src[1];
    kernels::weight_forward(w->type, w->data, w->nb[1], w->ne[0], w->ne[1], floats(x), stride(x, 1),
                            x->ne[1] * x->ne[2] * x->ne[3], floats(y), stride(y, 1), false, ith, nth);
}

void run_int8_quantize(ggml_tensor * quantized, int ith, int nth, void * userdata) {
    const ggml_tensor * x = quantized->src[0];
    kernels::int8_quantize(floats(x), stride(x, 1), x->ne[0], *static_cast<int64_t *>(userdata), ggml_nrows(x),
                           quantized->data, ith, nth);
}

void run_int8_product(ggml_tensor * y, int ith, int nth, void *) {
    const ggml_tensor * w = y->src[0];
    const ggml_tensor * quantized = y->src[2];
    kernels::int8_forward(w->type, w->data, w->nb[1], w->ne[0], w->ne[1], quantized->data, ggml_nrows(y), floats(y),
                          stride(y, 1), ith, nth);
}

void run_weight_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const auto & params = *static_cast<const ProductGradient *>(userdata);
    const ggml_tensor * w = params.operand(dx, 0);
    const ggml_tensor * dy = params.operand(dx, 1);
    const auto multiply = [&](const void * matrix, int64_t first_row, int64_t n_rows) {
        kernels::weight_input_gradient(
            w->type, matrix, w->nb[1], w->ne[0], w->ne[1], floats(dy) + first_row * stride(dy, 1), stride(dy, 1),
            n_rows, floats(dx) + first_row * stride(dx, 1), stride(dx, 1), params.accumulate, ith, nth);
    };
    if (ggml_is_matrix(w)) {
        multiply(w->data, 0, ggml_nrows(dy));
        return;
    }
    const int64_t group2 = dy->ne[2] / w->ne[2];
    const int64_t group3 = dy->ne[3] / w->ne[3];
    for (int64_t i3 = 0; i3 < dy->ne[3]; i3++) {
        for (int64_t i2 = 0; i2 < dy->ne[2]; i2++) {
            multiply(static_cast<const char *>(w->data) + i2 / group2 * w->nb[2] + i3 / group3 * w->nb[3],
                     (i3 * dy->ne[2] + i2) * dy->ne[1], dy->ne[1]);
        }
    }
}

void run_int16_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const auto & params = *static_cast<const ProductGradient *>(userdata);
    const ggml_tensor * w = params.operand(dx, 0);
    const ggml_tensor * dy = params.operand(dx, 1);
    kernels::int16_input_gradient(w->type, w->data, w->nb[1], w->ne[0], w->ne[1], floats(dy), stride(dy, 1),
                                  ggml_nrows(dy), floats(dx), stride(dx, 1), params.accumulate, ith, nth);
}

// in place of the accumulator, which comes before the operands
void run_scales_dw(ggml_tensor * d_scales, int ith, int nth, void *) {
    const ggml_tensor * w = d_scales->src[1];
    const ggml_tensor * x = d_scales->src[2];
    const ggml_tensor * dy = d_scales->src[3];
    for (int64_t i3 = 0; i3 < x->ne[3]; i3++) {
        for (int64_t i2 = 0; i2 < x->ne[2]; i2++) {
            kernels::scale_gradient(w->type, static_cast<const uint8_t *>(w->data), static_cast<int64_t>(w->nb[1]),
                                    w->ne[0], w->ne[1], x->ne[1], matrix(x, i2, i3), matrix(dy, i2, i3),
                                    floats(d_scales), ith, nth);
        }
    }
}

const CpuOp weight_forward_op = {{"weight_forward", product_rule, Rows::singly}, run_weight_forward};
const CpuOp int8_quantize_op = {
    {"int8_quantize", nullptr, Rows::singly, nullptr, Op::Arrival::nowhere, kernels::int8_token_blocks},
    run_int8_quantize};
const CpuOp int8_product_op = {{"int8_product", product_rule, Rows::singly}, run_int8_product};
const CpuOp weight_dx_op = {{"weight_dx"}, run_weight_dx};
const CpuOp int16_dx_op = {{"int16_dx"}, run_int16_dx};
const CpuOp scales_dw_op = {{"scales_dw"}, run_scales_dw};

}  // namespace

bool CpuOps::can_weight_forward(const ggml_tensor * w, const ggml_tensor * x) {
    return ggml_is_matrix(w) && w->nb[0] == ggml_type_size(w->type) && kernels::can_dequantize(w->type) &&
           x->type == GGML_TYPE_F32;
}

ggml_tensor * CpuOps::weight_forward(ggml_tensor * w, ggml_tensor * x) {
    const int64_t ne[4] = {w->ne[1], x->ne[1], x->ne[2], x->ne[3]};
    return node(weight_forward_op, ne, {w, contiguous(x)});
}

bool CpuOps::can_int8_product(const ggml_tensor * w, const ggml_tensor * x) {
    return kernels::int8_product_fast() && kernels::int8_product_supported(w->type) && ggml_is_matrix(w) &&
           w->nb[0] == ggml_type_size(w->type) && x->type == GGML_TYPE_F32 && ggml_nrows(x) >= kMinUnpackingRows;
}

ggml_tensor * CpuOps::int8_product(ggml_tensor * w, ggml_tensor * x) {
    const int64_t block = kernels::int8_activation_block(w->type);
    ggml_tensor *& rows = quantized_[{x, block}];
    if (rows == nullptr) {
        rows = int8_quantize(x, block);
    }
    const int64_t ne[4] = {w->ne[1], x->ne[1], x->ne[2], x->ne[3]};
    return node(int8_product_op, ne, {w, x, rows});  // x for its gradient
}

ggml_tensor * CpuOps::int8_quantize(ggml_tensor * x, int64_t activation_block) {
    const int64_t ne[4] = {static_cast<int64_t>(kernels::int8_token_block_bytes(x->ne[0], activation_block)),
                           kernels::int8_token_blocks(ggml_nrows(x)), 1, 1};
    return node(int8_quantize_op, ne, {contiguous(x)}, keep(activation_block), GGML_TYPE_I8);
}

ggml_tensor * CpuOps::weight_dx(ggml_tensor * w, ggml_tensor * dy, ggml_tensor * accumulator) {
    if (can_bf16_product(w, dy)) {
        return bf16_dx(w, dy, accumulator);
    }
    const bool rounded = may_round_ && ggml_is_matrix(w) && kernels::int16_gradient_fast() &&
                         kernels::int16_gradient_supported(w->type) && ggml_nrows(dy) >= kMinUnpackingRows;
    const int64_t ne[4] = {w->ne[0], dy->ne[1], dy->ne[2], dy->ne[3]};
    return product_gradient(rounded ? int16_dx_op : weight_dx_op, ne, w, rows_in_step(dy) ? dy : contiguous(dy), 1.0f,
                            accumulator);
}

ggml_tensor * CpuOps::scales_dw(ggml_tensor * w, ggml_tensor * x, ggml_tensor * dy, ggml_tensor * accumulator) {
    return node_over(scales_dw_op, accumulator, {w, x, dy});
}

}  // namespace ggtune
