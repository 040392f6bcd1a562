#include "engine/graph_ops.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>

#include "kernels/attention.h"
#include "kernels/bf16_product.h"
#include "kernels/dequantize.h"
#include "kernels/gemm.h"
#include "kernels/int16_gradient.h"
#include "kernels/int8_product.h"
#include "kernels/norm.h"
#include "kernels/partition.h"
#include "kernels/softmax.h"
#include "kernels/weight_product.h"

namespace ggtune {

namespace {

using kernels::Operand;
using kernels::split_range;

const float * floats(const ggml_tensor * t) {
    return static_cast<const float *>(t->data);
}
float * floats(ggml_tensor * t) {
    return static_cast<float *>(t->data);
}

int64_t stride(const ggml_tensor * t, int dim) {
    return t->nb[dim] / sizeof(float);
}

// matrix (i2, i3) of a F32 tensor: element (row i1, column i0)
Operand matrix(const ggml_tensor * t, int64_t i2, int64_t i3) {
    return {floats(t) + i2 * stride(t, 2) + i3 * stride(t, 3), stride(t, 1), stride(t, 0)};
}

ggml_tensor * custom(ggml_context * ctx, const int64_t ne[4], std::initializer_list<ggml_tensor *> args,
                     ggml_custom_op_t fun, void * userdata) {
    std::vector<ggml_tensor *> list(args);
    return ggml_custom_4d(ctx, GGML_TYPE_F32, ne[0], ne[1], ne[2], ne[3], list.data(), static_cast<int>(list.size()),
                          fun, GGML_N_TASKS_MAX, userdata);
}

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

// How a node in bf16 is run: `scale` of what is packed, `accumulate` where ggml puts the tensor written to before the
// arguments.
struct Bf16Node {
    float scale = 1.0f;
    bool accumulate = false;
    kernels::Dealer dealer;
};

template <class Pack>
void pack_bf16(ggml_tensor * packed, int nth, void * userdata, Pack pack) {
    Bf16Node & node = *static_cast<Bf16Node *>(userdata);
    const ggml_tensor * x = packed->src[0];
    const int64_t n_tokens = ggml_nrows(x);
    node.dealer.run(kernels::bf16_panel_count(n_tokens), nth, [&](kernels::Range panels) {
        pack(floats(x), stride(x, 1), x->ne[0], n_tokens, node.scale, packed->data, panels.begin, panels.end);
    });
}

void run_bf16_pack(ggml_tensor * packed, int, int nth, void * userdata) {
    pack_bf16(packed, nth, userdata, kernels::bf16_pack_inputs);
}

void run_bf16_pack_gradients(ggml_tensor * packed, int, int nth, void * userdata) {
    pack_bf16(packed, nth, userdata, kernels::bf16_pack_gradients);
}

// `operands`: weights and what is packed for them, in turn.
template <class Multiply>
void multiply_bf16(ggml_tensor * y, ggml_tensor * const * operands, int n_terms, bool over_inputs, int nth,
                   Bf16Node & node, Multiply multiply) {
    kernels::Bf16Term terms[kernels::kMostBf16Terms];
    for (int i = 0; i < n_terms; i++) {
        const ggml_tensor * w = operands[2 * i];
        terms[i] = {w->type, w->data, w->nb[1], w->ne[over_inputs ? 0 : 1], operands[2 * i + 1]->data};
    }
    const int64_t n_columns = y->ne[0];
    const int64_t n_tokens = ggml_nrows(y);
    const kernels::Bf16Blocks block = kernels::bf16_blocks(n_tokens, n_columns, nth);
    const int64_t n_column_blocks = (n_columns + block.columns - 1) / block.columns;
    const int64_t n_token_blocks = (n_tokens + block.tokens - 1) / block.tokens;
    // neighbours in a portion are computed in one call, where they are columns of the same tokens
    node.dealer.run(n_token_blocks * n_column_blocks, nth, [&](kernels::Range portion) {
        while (portion.begin < portion.end) {
            const int64_t row = portion.begin / n_column_blocks;
            const int64_t end = std::min(portion.end, (row + 1) * n_column_blocks);
            const kernels::Range tokens = {row * block.tokens, std::min((row + 1) * block.tokens, n_tokens)};
            const int64_t first = portion.begin - row * n_column_blocks;
            const kernels::Range columns = {first * block.columns,
                                            std::min((end - row * n_column_blocks) * block.columns, n_columns)};
            multiply(terms, n_terms, n_tokens, floats(y), stride(y, 1), node.accumulate, tokens, columns);
            portion.begin = end;
        }
    });
}

void run_bf16_product(ggml_tensor * y, int, int nth, void * userdata) {
    ggml_tensor * const operands[] = {y->src[0], y->src[2], y->src[3], y->src[4]};
    multiply_bf16(y, operands, y->src[3] != nullptr ? 2 : 1, true, nth, *static_cast<Bf16Node *>(userdata),
                  kernels::bf16_forward);
}

void run_bf16_dx(ggml_tensor * dx, int, int nth, void * userdata) {
    Bf16Node & node = *static_cast<Bf16Node *>(userdata);
    ggml_tensor * const * operands = dx->src + (node.accumulate ? 1 : 0);
    multiply_bf16(dx, operands, operands[2] != nullptr ? 2 : 1, false, nth, node, kernels::bf16_input_gradient);
}

// dw[i, o] of a low-rank matrix: one of its sides is the rank, whose tokens are S.
struct Bf16LowRank {
    float scale = 1.0f;
    kernels::Dealer dealer;
};

void run_bf16_dw(ggml_tensor * dw, int, int nth, void * userdata) {
    Bf16LowRank & node = *static_cast<Bf16LowRank *>(userdata);
    const ggml_tensor * x = dw->src[1];
    const ggml_tensor * dy = dw->src[2];
    const bool rank_is_in = dw->ne[0] < dw->ne[1];
    const ggml_tensor * s = rank_is_in ? x : dy;
    const ggml_tensor * l = rank_is_in ? dy : x;
    const int64_t block = kernels::bf16_outer_block();
    node.dealer.run((l->ne[0] + block - 1) / block, nth, [&](kernels::Range blocks) {
        kernels::bf16_outer_product(floats(s), stride(s, 1), s->ne[0], floats(l), stride(l, 1), l->ne[1], node.scale,
                                    true, floats(dw), rank_is_in ? 1 : stride(dw, 1), rank_is_in ? stride(dw, 1) : 1,
                                    blocks.begin * block, std::min(blocks.end * block, l->ne[0]));
    });
}

void run_lora_add(ggml_tensor * y, int ith, int nth, void * userdata) {
    const ggml_tensor * b = y->src[1];
    const ggml_tensor * h = y->src[2];
    kernels::gemm(y->ne[1], y->ne[0], b->ne[0], matrix(h, 0, 0), matrix(b, 0, 0).transposed(),
                  *static_cast<float *>(userdata), 1.0f, floats(y), stride(y, 1), 1, ith, nth);
}

void run_zeros(ggml_tensor * t, int ith, int nth, void *) {
    const auto range = split_range(ggml_nelements(t), ith, nth, 64);
    std::fill(floats(t) + range.begin, floats(t) + range.end, 0.0f);
}

// Of a product's gradient: in place, ggml puts the tensor written to before the arguments.
struct ProductGradient {
    float scale;
    bool accumulate;

    const ggml_tensor * argument(const ggml_tensor * node, int index) const {
        return node->src[index + (accumulate ? 1 : 0)];
    }
};

void run_matmul_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const auto & params = *static_cast<const ProductGradient *>(userdata);
    const ggml_tensor * w = params.argument(dx, 0);
    const ggml_tensor * dy = params.argument(dx, 1);
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
    const ggml_tensor * x = params.argument(dw, 0);
    const ggml_tensor * dy = params.argument(dw, 1);
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

void run_weight_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const auto & params = *static_cast<const ProductGradient *>(userdata);
    const ggml_tensor * w = params.argument(dx, 0);
    const ggml_tensor * dy = params.argument(dx, 1);
    kernels::weight_input_gradient(w->type, w->data, w->nb[1], w->ne[0], w->ne[1], floats(dy), stride(dy, 1),
                                   dy->ne[1] * dy->ne[2] * dy->ne[3], floats(dx), stride(dx, 1), params.accumulate, ith,
                                   nth);
}

void run_int16_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const auto & params = *static_cast<const ProductGradient *>(userdata);
    const ggml_tensor * w = params.argument(dx, 0);
    const ggml_tensor * dy = params.argument(dx, 1);
    kernels::int16_input_gradient(w->type, w->data, w->nb[1], w->ne[0], w->ne[1], floats(dy), stride(dy, 1),
                                  ggml_nrows(dy), floats(dx), stride(dx, 1), params.accumulate, ith, nth);
}

kernels::ConstHeads const_heads(const ggml_tensor * t) {
    return {floats(t), stride(t, 1), stride(t, 2)};
}

kernels::AttentionShape attention_shape(const GraphOps::AttentionParams & params, const ggml_tensor * q,
                                        const ggml_tensor * k, const ggml_tensor * v, const ggml_tensor * first,
                                        const ggml_tensor * end) {
    return {q->ne[1],
            q->ne[2],
            k->ne[2],
            q->ne[0],
            v->ne[0],
            params.pre_scale,
            params.softcap,
            params.post_scale,
            static_cast<const int32_t *>(first->data),
            static_cast<const int32_t *>(end->data)};
}

void run_attention(ggml_tensor * packed, int ith, int nth, void * userdata) {
    const auto & params = *static_cast<const GraphOps::AttentionParams *>(userdata);
    ggml_tensor * const * src = packed->src;
    const kernels::AttentionShape shape = attention_shape(params, src[0], src[1], src[2], src[3], src[4]);
    const int64_t width = shape.n_heads * shape.head_dim_v;
    const auto forward = params.bf16 ? kernels::attention_forward_bf16 : kernels::attention_forward;
    forward(shape, const_heads(src[0]), const_heads(src[1]), const_heads(src[2]),
            {floats(packed), width, shape.head_dim_v}, floats(packed) + width * shape.n_tokens, ith, nth);
}

void run_attention_dx(ggml_tensor * packed_dx, int ith, int nth, void * userdata) {
    const auto & params = *static_cast<const GraphOps::AttentionParams *>(userdata);
    ggml_tensor * const * src = packed_dx->src;
    const kernels::AttentionShape shape = attention_shape(params, src[0], src[1], src[2], src[3], src[4]);
    const ggml_tensor * packed = src[5];
    const ggml_tensor * d_out = src[6];
    const int64_t width = shape.n_heads * shape.head_dim_v;
    const int64_t width_q = shape.n_heads * shape.head_dim;
    const int64_t width_k = shape.n_heads_kv * shape.head_dim;
    const int64_t width_v = shape.n_heads_kv * shape.head_dim_v;
    float * dq = floats(packed_dx);
    float * dk = dq + width_q * shape.n_tokens;
    float * dv = dk + width_k * shape.n_tokens;
    const float * out = static_cast<const float *>(packed->data);
    const auto backward = params.bf16 ? kernels::attention_backward_bf16 : kernels::attention_backward;
    backward(shape, const_heads(src[0]), const_heads(src[1]), const_heads(src[2]), {out, width, shape.head_dim_v},
             out + width * shape.n_tokens, {floats(d_out), stride(d_out, 1), shape.head_dim_v},
             {dq, width_q, shape.head_dim}, {dk, width_k, shape.head_dim}, {dv, width_v, shape.head_dim_v}, false, ith,
             nth);
}

// contiguous tensors are cut into runs of one size class so that every thread gets whole cache lines
kernels::Range element_range(const ggml_tensor * t, int ith, int nth) {
    return split_range(ggml_nelements(t), ith, nth, 64);
}

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

struct Glu {
    Activation f;
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
        kernels::glu_forward(glu.f, gate, up, floats(y) + row * n, n);
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
        kernels::glu_backward(glu.f, gate, up, floats(dy) + row * n, d_gate, d_up, n);
    }
}

void run_softmax_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const int64_t n = dx->ne[0];
    kernels::softmax_backward(ggml_nrows(dx), n, floats(dx->src[0]), n, floats(dx->src[1]), n, floats(dx), n,
                              *static_cast<float *>(userdata), ith, nth);
}

void run_rms_norm_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const int64_t n = dx->ne[0];
    kernels::rms_norm_backward(ggml_nrows(dx), n, floats(dx->src[0]), n, floats(dx->src[1]), n, floats(dx), n,
                               *static_cast<float *>(userdata), ith, nth);
}

void run_norm_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const int64_t n = dx->ne[0];
    kernels::layer_norm_backward(ggml_nrows(dx), n, floats(dx->src[0]), n, floats(dx->src[1]), n, floats(dx), n,
                                 *static_cast<float *>(userdata), ith, nth);
}

struct ClampRange {
    float min, max;
};

void run_clamp_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const ClampRange clamp = *static_cast<ClampRange *>(userdata);
    const float * x = floats(dx->src[0]);
    const float * dy = floats(dx->src[1]);
    const auto range = element_range(dx, ith, nth);
    for (int64_t i = range.begin; i < range.end; i++) {
        floats(dx)[i] = x[i] >= clamp.min && x[i] <= clamp.max ? dy[i] : 0.0f;
    }
}

// How a view lies in its source: both are strided windows on the same memory.
struct ViewGeometry {
    int64_t ne[4];  // of the view
    int64_t nb[4];  // bytes, of the view
    int64_t source_nb[4];
    int64_t offset;  // bytes from the source's first element
    int order[4];    // dimensions of the source by falling stride
};

void run_view_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const ViewGeometry & g = *static_cast<ViewGeometry *>(userdata);
    const ggml_tensor * dy = dx->src[0];
    // every thread clears and fills its own range of the result, so that none writes where another does
    const auto own = element_range(dx, ith, nth);
    std::fill(floats(dx) + own.begin, floats(dx) + own.end, 0.0f);
    const int64_t strides[4] = {1, dx->ne[0], dx->ne[0] * dx->ne[1], dx->ne[0] * dx->ne[1] * dx->ne[2]};
    const auto position = [&](int64_t bytes) {  // index in the contiguous dx of a byte offset into the source
        int64_t index = 0;
        for (const int d : g.order) {
            if (dx->ne[d] > 1) {
                index += bytes / g.source_nb[d] * strides[d];
                bytes %= g.source_nb[d];
            }
        }
        return index;
    };
    const bool rows_contiguous = g.nb[0] == sizeof(float) && g.source_nb[0] == sizeof(float);
    for (int64_t i3 = 0; i3 < g.ne[3]; i3++) {
        for (int64_t i2 = 0; i2 < g.ne[2]; i2++) {
            for (int64_t i1 = 0; i1 < g.ne[1]; i1++) {
                const int64_t row = g.offset + i1 * g.nb[1] + i2 * g.nb[2] + i3 * g.nb[3];
                const float * from = floats(dy) + ((i3 * g.ne[2] + i2) * g.ne[1] + i1) * g.ne[0];
                if (rows_contiguous && position(row) + g.ne[0] - 1 == position(row + (g.ne[0] - 1) * g.nb[0])) {
                    const int64_t first = position(row);
                    const int64_t begin = std::max(first, own.begin);
                    const int64_t end = std::min(first + g.ne[0], own.end);
                    for (int64_t i = begin; i < end; i++) {
                        floats(dx)[i] += from[i - first];
                    }
                } else {
                    for (int64_t i0 = 0; i0 < g.ne[0]; i0++) {
                        const int64_t i = position(row + i0 * g.nb[0]);
                        if (i >= own.begin && i < own.end) {
                            floats(dx)[i] += from[i0];
                        }
                    }
                }
            }
        }
    }
}

void run_rows_dx(ggml_tensor * dx, int ith, int nth, void *) {
    const int32_t * ids = static_cast<const int32_t *>(dx->src[0]->data);
    const ggml_tensor * dy = dx->src[1];
    const int64_t n = dx->ne[0];
    const auto columns = split_range(n, ith, nth, 16);
    for (int64_t row = 0; row < dx->ne[1]; row++) {
        std::fill_n(floats(dx) + row * n + columns.begin, columns.size(), 0.0f);
    }
    for (int64_t row = 0; row < dy->ne[1]; row++) {
        float * to = floats(dx) + ids[row] * n;
        const float * from = floats(dy) + row * n;
        for (int64_t i = columns.begin; i < columns.end; i++) {
            to[i] += from[i];
        }
    }
}

void run_dropout(ggml_tensor * y, int ith, int nth, void * userdata) {
    const auto range = element_range(y, ith, nth);
    kernels::dropout(*static_cast<kernels::DropoutMask *>(userdata), range.begin, floats(y->src[0]) + range.begin,
                     floats(y) + range.begin, range.size());
}

void run_log_probabilities(ggml_tensor * log_probs, int ith, int nth, void *) {
    const ggml_tensor * logits = log_probs->src[0];
    const int32_t * targets = static_cast<const int32_t *>(log_probs->src[1]->data);
    const auto rows = split_range(logits->ne[1], ith, nth);
    for (int64_t row = rows.begin; row < rows.end; row++) {
        floats(log_probs)[row] = static_cast<float>(
            kernels::log_probability(floats(logits) + row * stride(logits, 1), logits->ne[0], targets[row]));
    }
}

void run_cross_entropy_dx(ggml_tensor * dlogits, int ith, int nth, void *) {
    const int32_t * targets = static_cast<const int32_t *>(dlogits->src[1]->data);
    const float * weights = floats(dlogits->src[2]);
    const auto rows = split_range(dlogits->ne[1], ith, nth);
    for (int64_t row = rows.begin; row < rows.end; row++) {
        kernels::cross_entropy_gradient_inplace(floats(dlogits) + row * stride(dlogits, 1), dlogits->ne[0],
                                                targets[row], weights[row]);
    }
}

}  // namespace

std::string GraphOps::describe(const ggml_tensor * node) {
    static const std::pair<ggml_custom_op_t, const char *> names[] = {
        {run_matmul, "matmul"},
        {run_lora_add, "lora_add"},
        {run_weight_forward, "weight_forward"},
        {run_bf16_pack, "bf16_pack"},
        {run_bf16_pack_gradients, "bf16_pack_gradients"},
        {run_bf16_product, "bf16_product"},
        {run_bf16_dx, "bf16_dx"},
        {run_bf16_dw, "bf16_dw"},
        {run_int8_quantize, "int8_quantize"},
        {run_int8_product, "int8_product"},
        {run_matmul_dx, "matmul_dx"},
        {run_matmul_dw, "matmul_dw"},
        {run_weight_dx, "weight_dx"},
        {run_int16_dx, "int16_dx"},
        {run_activation, "activation"},
        {run_activation_dx, "activation_dx"},
        {run_glu, "glu"},
        {run_glu_dx, "glu_dx"},
        {run_softmax_dx, "softmax_dx"},
        {run_rms_norm_dx, "rms_norm_dx"},
        {run_norm_dx, "norm_dx"},
        {run_clamp_dx, "clamp_dx"},
        {run_view_dx, "view_dx"},
        {run_rows_dx, "rows_dx"},
        {run_dropout, "dropout"},
        {run_log_probabilities, "log_probabilities"},
        {run_cross_entropy_dx, "cross_entropy_dx"},
        {run_attention, "attention"},
        {run_attention_dx, "attention_dx"},
        {run_zeros, "zeros"},
    };
    if (node->op == GGML_OP_CUSTOM) {
        ggml_custom_op_t function;
        std::memcpy(&function, node->op_params, sizeof(function));  // first member of ggml's custom op parameters
        for (const auto & [known, name] : names) {
            if (known == function) {
                return name;
            }
        }
    }
    std::string name = ggml_op_desc(node);
    if (node->op == GGML_OP_MUL_MAT) {
        name += std::string(" ") + ggml_type_name(node->src[0]->type);
    }
    return name;
}

namespace {

// rows at one distance from each other, whatever the outer dimensions
ggml_tensor * even_rows(GraphOps & ops, ggml_tensor * t) {
    const bool even = t->nb[0] == sizeof(float) && t->nb[2] == t->nb[1] * t->ne[1] && t->nb[3] == t->nb[2] * t->ne[2];
    return even ? t : ggml_cont(ops.ctx, t);
}

}  // namespace

GraphOps::GraphOps(ggml_context * ctx_, bool may_round_)
    : ctx(ctx_), may_round(may_round_), bf16(may_round_ && kernels::bf16_product_fast()) {}

ggml_tensor * GraphOps::contiguous(ggml_tensor * t) {
    return ggml_is_contiguous(t) ? t : ggml_cont(ctx, t);
}

ggml_tensor * GraphOps::zeros_like(const ggml_tensor * t) {
    return custom(ctx, t->ne, {}, run_zeros, nullptr);
}

ggml_tensor * GraphOps::matmul(ggml_tensor * w, ggml_tensor * x) {
    const int64_t ne[4] = {w->ne[1], x->ne[1], x->ne[2], x->ne[3]};
    return custom(ctx, ne, {w, x}, run_matmul, nullptr);
}

bool GraphOps::can_weight_forward(const ggml_tensor * w, const ggml_tensor * x) {
    return ggml_is_matrix(w) && w->nb[0] == ggml_type_size(w->type) && kernels::can_dequantize(w->type) &&
           x->type == GGML_TYPE_F32;
}

ggml_tensor * GraphOps::weight_forward(ggml_tensor * w, ggml_tensor * x) {
    const int64_t ne[4] = {w->ne[1], x->ne[1], x->ne[2], x->ne[3]};
    return custom(ctx, ne, {w, contiguous(x)}, run_weight_forward, nullptr);
}

// Of the activations, for a product by integers: fewer do not pay for unpacking the weights.
static constexpr int64_t min_unpacking_rows = 16;

bool GraphOps::can_int8_product(const ggml_tensor * w, const ggml_tensor * x) {
    return kernels::int8_product_fast() && kernels::int8_product_supported(w->type) && ggml_is_matrix(w) &&
           w->nb[0] == ggml_type_size(w->type) && x->type == GGML_TYPE_F32 && ggml_nrows(x) >= min_unpacking_rows;
}

ggml_tensor * GraphOps::int8_product(ggml_tensor * w, ggml_tensor * x, ggml_tensor * quantized) {
    const int64_t ne[4] = {w->ne[1], x->ne[1], x->ne[2], x->ne[3]};
    return custom(ctx, ne, {w, x, quantized}, run_int8_product, nullptr);  // x for its gradient
}

ggml_tensor * GraphOps::int8_quantize(ggml_tensor * x, int64_t activation_block) {
    ggml_tensor * arg = contiguous(x);
    ggml_tensor * quantized = ggml_custom_4d(
        ctx, GGML_TYPE_I8, static_cast<int64_t>(kernels::int8_token_block_bytes(x->ne[0], activation_block)),
        kernels::int8_token_blocks(ggml_nrows(x)), 1, 1, &arg, 1, run_int8_quantize, GGML_N_TASKS_MAX,
        keep(activation_block));
    origins[quantized] = {Origin::Kind::quantized};
    return quantized;
}

bool GraphOps::can_bf16_product(const ggml_tensor * w, const ggml_tensor * x) const {
    return bf16 && w->type != GGML_TYPE_F32 && can_weight_forward(w, x) && ggml_nrows(x) >= min_unpacking_rows;
}

ggml_tensor * GraphOps::bf16_product(ggml_tensor * w, ggml_tensor * x, ggml_tensor * packed) {
    const int64_t ne[4] = {w->ne[1], x->ne[1], x->ne[2], x->ne[3]};
    return custom(ctx, ne, {w, x, packed}, run_bf16_product, make<Bf16Node>());  // x for its gradient
}

ggml_tensor * GraphOps::bf16_pack(ggml_tensor * x, float scale) {
    Bf16Node * node = make<Bf16Node>();
    node->scale = scale;
    ggml_tensor * packed = packed_tensor(x, run_bf16_pack, node);
    origins[packed] = {Origin::Kind::packed};
    return packed;
}

ggml_tensor * GraphOps::bf16_lora(ggml_tensor * w, ggml_tensor * x, ggml_tensor * packed, ggml_tensor * a,
                                  ggml_tensor * b, ggml_tensor * h, ggml_tensor * packed_h, float scale) {
    const int64_t ne[4] = {w->ne[1], x->ne[1], x->ne[2], x->ne[3]};
    ggml_tensor * y = custom(ctx, ne, {w, x, packed, b, packed_h, h}, run_bf16_product, make<Bf16Node>());
    origins[y] = {Origin::Kind::bf16_lora, nullptr, nullptr, scale, nullptr, a};
    return y;
}

ggml_tensor * GraphOps::pack_gradients(ggml_tensor * dy, float scale) {
    ggml_tensor *& packed = packed_gradients[{dy, scale}];
    if (packed == nullptr) {
        Bf16Node * node = make<Bf16Node>();
        node->scale = scale;
        packed = packed_tensor(dy, run_bf16_pack_gradients, node);
    }
    return packed;
}

ggml_tensor * GraphOps::packed_tensor(ggml_tensor * x, ggml_custom_op_t fun, void * node) {
    const bool rows_in_step = x->nb[0] == sizeof(float) && x->ne[2] == 1 && x->ne[3] == 1;
    ggml_tensor * arg = rows_in_step ? x : contiguous(x);
    return ggml_custom_4d(ctx, GGML_TYPE_I8, static_cast<int64_t>(kernels::bf16_panel_bytes(x->ne[0])),
                          packed_rows(ggml_nrows(x)), 1, 1, &arg, 1, fun, GGML_N_TASKS_MAX, node);
}

// One more panel than there are, so that the first can begin on a cache line.
int64_t GraphOps::packed_rows(int64_t n_rows) {
    return kernels::bf16_panel_count(n_rows) + 1;
}

ggml_tensor * GraphOps::bf16_gradient(const int64_t ne[4], const std::vector<ggml_tensor *> & operands,
                                      ggml_tensor * accumulator) {
    Bf16Node * node = make<Bf16Node>();
    node->accumulate = accumulator != nullptr;
    std::vector<ggml_tensor *> args = operands;
    if (accumulator != nullptr) {
        return ggml_custom_inplace(ctx, accumulator, args.data(), static_cast<int>(args.size()), run_bf16_dx,
                                   GGML_N_TASKS_MAX, node);
    }
    return ggml_custom_4d(ctx, GGML_TYPE_F32, ne[0], ne[1], ne[2], ne[3], args.data(), static_cast<int>(args.size()),
                          run_bf16_dx, GGML_N_TASKS_MAX, node);
}

ggml_tensor * GraphOps::bf16_dx(ggml_tensor * w, ggml_tensor * dy, const int64_t ne_x[4], ggml_tensor * accumulator) {
    return bf16_gradient(ne_x, {w, pack_gradients(dy, 1.0f)}, accumulator);
}

ggml_tensor * GraphOps::bf16_dw(ggml_tensor * x, ggml_tensor * dy, float scale, ggml_tensor * accumulator) {
    Bf16LowRank * node = make<Bf16LowRank>();
    node->scale = scale;
    ggml_tensor * args[] = {even_rows(*this, x), even_rows(*this, dy)};
    return ggml_custom_inplace(ctx, accumulator, args, 2, run_bf16_dw, GGML_N_TASKS_MAX, node);
}

ggml_tensor * GraphOps::bf16_lora_dx(ggml_tensor * w, ggml_tensor * dy, ggml_tensor * a, ggml_tensor * dh, float scale,
                                     const int64_t ne_x[4], ggml_tensor * accumulator) {
    return bf16_gradient(ne_x, {w, pack_gradients(dy, 1.0f), a, pack_gradients(dh, scale)}, accumulator);
}

int64_t GraphOps::int8_activation_block(ggml_type type) {
    return kernels::int8_activation_block(type);
}

int64_t GraphOps::cut_rows(const ggml_tensor * node, int64_t n_rows) const {
    switch (origin(node).kind) {
        case Origin::Kind::quantized:
            return kernels::int8_token_blocks(n_rows);
        case Origin::Kind::packed:
            return packed_rows(n_rows);
        default:
            return n_rows;
    }
}

ggml_tensor * GraphOps::lora_add(ggml_tensor * y, ggml_tensor * b, ggml_tensor * h, float scale) {
    float * params = keep(scale);
    ggml_tensor * args[] = {b, h};
    ggml_tensor * sum = ggml_custom_inplace(ctx, y, args, 2, run_lora_add, GGML_N_TASKS_MAX, params);
    origins[sum] = {Origin::Kind::lora_add, nullptr, nullptr, scale};
    return sum;
}

ggml_tensor * GraphOps::product_gradient(const int64_t ne[4], ggml_tensor * a, ggml_tensor * b, float scale,
                                         ggml_tensor * accumulator, ggml_custom_op_t fun) {
    ProductGradient * params = keep(ProductGradient{scale, accumulator != nullptr});
    if (accumulator == nullptr) {
        return custom(ctx, ne, {a, b}, fun, params);
    }
    ggml_tensor * args[] = {a, b};
    return ggml_custom_inplace(ctx, accumulator, args, 2, fun, GGML_N_TASKS_MAX, params);
}

ggml_tensor * GraphOps::matmul_dx(ggml_tensor * w, ggml_tensor * dy, float scale, ggml_tensor * accumulator) {
    const int64_t ne[4] = {w->ne[0], dy->ne[1], dy->ne[2], dy->ne[3]};
    return product_gradient(ne, w, dy, scale, accumulator, run_matmul_dx);
}

ggml_tensor * GraphOps::matmul_dw(ggml_tensor * w, ggml_tensor * x, ggml_tensor * dy, float scale,
                                  ggml_tensor * accumulator) {
    return product_gradient(w->ne, x, dy, scale, accumulator, run_matmul_dw);
}

ggml_tensor * GraphOps::weight_dx(ggml_tensor * w, ggml_tensor * dy, const int64_t ne_x[4], ggml_tensor * accumulator) {
    if (can_bf16_product(w, dy)) {
        return bf16_dx(w, dy, ne_x, accumulator);
    }
    const bool rows_in_step = dy->nb[0] == sizeof(float) && dy->ne[2] == 1 && dy->ne[3] == 1;
    const bool rounded = may_round && kernels::int16_gradient_fast() && kernels::int16_gradient_supported(w->type) &&
                         ggml_nrows(dy) >= min_unpacking_rows;
    return product_gradient(ne_x, w, rows_in_step ? dy : contiguous(dy), 1.0f, accumulator,
                            rounded ? run_int16_dx : run_weight_dx);
}

ggml_tensor * GraphOps::activation(Activation f, ggml_tensor * x) {
    return custom(ctx, x->ne, {contiguous(x)}, run_activation, keep(f));
}

ggml_tensor * GraphOps::activation_dx(Activation f, ggml_tensor * x, ggml_tensor * dy) {
    return custom(ctx, x->ne, {contiguous(x), contiguous(dy)}, run_activation_dx, keep(f));
}

ggml_tensor * GraphOps::glu(Activation f, ggml_tensor * gate, ggml_tensor * up, bool swapped) {
    const int64_t ne[4] = {up != nullptr ? gate->ne[0] : gate->ne[0] / 2, gate->ne[1], gate->ne[2], gate->ne[3]};
    Glu * params = keep(Glu{f, up == nullptr, swapped});
    if (up == nullptr) {
        return custom(ctx, ne, {even_rows(*this, gate)}, run_glu, params);
    }
    return custom(ctx, ne, {even_rows(*this, gate), even_rows(*this, up)}, run_glu, params);
}

ggml_tensor * GraphOps::glu_dx(Activation f, ggml_tensor * gate, ggml_tensor * up, bool swapped, ggml_tensor * dy) {
    const int64_t ne[4] = {2 * dy->ne[0], dy->ne[1], dy->ne[2], dy->ne[3]};
    Glu * params = keep(Glu{f, up == nullptr, swapped});
    if (up == nullptr) {
        return custom(ctx, ne, {contiguous(dy), even_rows(*this, gate)}, run_glu_dx, params);
    }
    return custom(ctx, ne, {contiguous(dy), even_rows(*this, gate), even_rows(*this, up)}, run_glu_dx, params);
}

ggml_tensor * GraphOps::softmax_dx(ggml_tensor * y, ggml_tensor * dy, float scale) {
    return custom(ctx, y->ne, {contiguous(y), contiguous(dy)}, run_softmax_dx, keep(scale));
}

ggml_tensor * GraphOps::rms_norm_dx(ggml_tensor * x, ggml_tensor * dy, float eps) {
    return custom(ctx, x->ne, {contiguous(x), contiguous(dy)}, run_rms_norm_dx, keep(eps));
}

ggml_tensor * GraphOps::norm_dx(ggml_tensor * x, ggml_tensor * dy, float eps) {
    return custom(ctx, x->ne, {contiguous(x), contiguous(dy)}, run_norm_dx, keep(eps));
}

ggml_tensor * GraphOps::clamp_dx(ggml_tensor * x, ggml_tensor * dy, float min, float max) {
    return custom(ctx, x->ne, {contiguous(x), contiguous(dy)}, run_clamp_dx, keep(ClampRange{min, max}));
}

ggml_tensor * GraphOps::view_dx(ggml_tensor * source, ggml_tensor * view, ggml_tensor * dy) {
    ViewGeometry g;
    for (int d = 0; d < 4; d++) {
        g.ne[d] = view->ne[d];
        g.nb[d] = view->nb[d];
        g.source_nb[d] = source->nb[d];
        g.order[d] = d;
    }
    g.offset = view->view_offs - (source->view_src != nullptr ? source->view_offs : 0);
    std::sort(std::begin(g.order), std::end(g.order), [&](int a, int b) { return g.source_nb[a] > g.source_nb[b]; });
    return custom(ctx, source->ne, {contiguous(dy)}, run_view_dx, keep(g));
}

ggml_tensor * GraphOps::rows_dx(ggml_tensor * x, ggml_tensor * ids, ggml_tensor * dy) {
    return custom(ctx, x->ne, {ids, contiguous(dy)}, run_rows_dx, nullptr);
}

ggml_tensor * GraphOps::dropout(ggml_tensor * x, const kernels::DropoutMask & mask) {
    kernels::DropoutMask * params = keep(mask);
    ggml_tensor * y = custom(ctx, x->ne, {contiguous(x)}, run_dropout, params);
    origins[y] = {Origin::Kind::dropout, nullptr, params};
    return y;
}

ggml_tensor * GraphOps::log_probabilities(ggml_tensor * logits, ggml_tensor * targets) {
    const int64_t ne[4] = {logits->ne[1], 1, 1, 1};
    return custom(ctx, ne, {logits, targets}, run_log_probabilities, nullptr);
}

ggml_tensor * GraphOps::cross_entropy_dx(ggml_tensor * logits, ggml_tensor * targets, ggml_tensor * weights,
                                         ggml_tensor * log_probs) {
    ggml_tensor * args[] = {targets, weights, log_probs};
    return ggml_custom_inplace(ctx, logits, args, 3, run_cross_entropy_dx, GGML_N_TASKS_MAX, nullptr);
}

GraphOps::AttentionNodes GraphOps::attention(ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, ggml_tensor * first,
                                             ggml_tensor * end, const AttentionParams & params) {
    const int64_t width = v->ne[0] * q->ne[2];
    const int64_t n_tokens = q->ne[1];
    const int64_t ne[4] = {(width + q->ne[2]) * n_tokens, 1, 1, 1};
    AttentionParams * kept_params = keep(params);
    ggml_tensor * packed = custom(ctx, ne, {q, k, v, first, end}, run_attention, kept_params);
    ggml_tensor * out = ggml_view_2d(ctx, packed, width, n_tokens, width * sizeof(float), 0);
    origins[packed] = {Origin::Kind::attention, nullptr, nullptr, 0.0f, kept_params};
    origins[out] = origins[packed];
    return {packed, out};
}

GraphOps::AttentionGradients GraphOps::attention_dx(ggml_tensor * out, ggml_tensor * d_out) {
    ggml_tensor * packed = out->src[0];
    ggml_tensor *q = packed->src[0], *k = packed->src[1], *v = packed->src[2];
    const int64_t ne[4] = {ggml_nelements(q) + ggml_nelements(k) + ggml_nelements(v), 1, 1, 1};
    ggml_tensor * rows = d_out->nb[0] == sizeof(float) ? d_out : ggml_cont(ctx, d_out);
    AttentionParams * params = keep(*origin(out).attention);
    ggml_tensor * dx =
        custom(ctx, ne, {q, k, v, packed->src[3], packed->src[4], packed, rows}, run_attention_dx, params);
    size_t offset = 0;
    const auto part = [&](const ggml_tensor * like) {  // token by token, as the projections that they belong to
        const size_t head_bytes = like->ne[0] * sizeof(float);
        ggml_tensor * view =
            ggml_view_3d(ctx, dx, like->ne[0], like->ne[1], like->ne[2], head_bytes * like->ne[2], head_bytes, offset);
        offset += ggml_nelements(like) * sizeof(float);
        return view;
    };
    ggml_tensor * dq = part(q);
    ggml_tensor * dk = part(k);
    return {dq, dk, part(v)};
}

GraphOps::Origin GraphOps::origin(const ggml_tensor * node) const {
    const auto it = origins.find(node);
    return it != origins.end() ? it->second : Origin{};
}

void GraphOps::copy_origin(const ggml_tensor * from, const ggml_tensor * to) {
    const Origin found = origin(from);
    if (found.kind != Origin::Kind::none) {
        origins[to] = found;
    }
}

}  // namespace ggtune
