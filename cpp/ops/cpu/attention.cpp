// Attention that never writes the scores out.
#include "kernels/attention.h"

#include "ops/cpu/cpu_ops.h"

namespace ggtune {

namespace {

struct CpuAttention {
    AttentionParams scores;
    bool bf16;  // products of operands rounded to bf16, forward and backward
};

kernels::AttentionShape attention_shape(const CpuAttention & params, const ggml_tensor * q, const ggml_tensor * k,
                                        const ggml_tensor * v, const ggml_tensor * first, const ggml_tensor * end,
                                        const ggml_tensor * sinks) {
    return {q->ne[1],
            q->ne[2],
            k->ne[2],
            q->ne[0],
            v->ne[0],
            params.scores.pre_scale,
            params.scores.softcap,
            params.scores.post_scale,
            static_cast<const int32_t *>(first->data),
            static_cast<const int32_t *>(end->data),
            sinks != nullptr ? floats(sinks) : nullptr};
}

void run_attention(ggml_tensor * packed, int ith, int nth, void * userdata) {
    const auto & params = *static_cast<const CpuAttention *>(userdata);
    ggml_tensor * const * src = packed->src;
    const kernels::AttentionShape shape = attention_shape(params, src[0], src[1], src[2], src[3], src[4], src[5]);
    const int64_t width = shape.n_heads * shape.head_dim_v;
    const auto forward = params.bf16 ? kernels::attention_forward_bf16 : kernels::attention_forward;
    forward(shape, const_heads(src[0]), const_heads(src[1]), const_heads(src[2]),
            {floats(packed), width, shape.head_dim_v}, floats(packed) + width * shape.n_tokens, ith, nth);
}

void run_attention_dx(ggml_tensor * packed_dx, int ith, int nth, void * userdata) {
    const auto & params = *static_cast<const CpuAttention *>(userdata);
    ggml_tensor * const * src = packed_dx->src;
    // the sinks are in the log-sum-exps
    const kernels::AttentionShape shape = attention_shape(params, src[0], src[1], src[2], src[3], src[4], nullptr);
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

const CpuOp attention_dx_op = {{"attention_dx"}, run_attention_dx};

}  // namespace

// A node that also holds the log-sum-exps for the gradient; what is returned is a view of the rest of it.
ggml_tensor * CpuOps::attention(ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, const KeyRanges & keys,
                                const AttentionParams & params, ggml_tensor * sinks) {
    static const CpuOp op = {{"attention", attention_rule, Rows::together, nullptr, Op::Arrival::view}, run_attention};
    const int64_t width = v->ne[0] * q->ne[2];
    const int64_t n_tokens = q->ne[1];
    const int64_t ne[4] = {(width + q->ne[2]) * n_tokens, 1, 1, 1};
    Operands operands = {q, k, v, keys.first, keys.end};
    if (sinks != nullptr) {
        operands.push_back(sinks);
    }
    ggml_tensor * packed = node(op, ne, operands, keep(CpuAttention{params, bf16_stretch_}));
    return ggml_view_2d(ctx, packed, width, n_tokens, width * sizeof(float), 0);
}

void CpuOps::attention_rule(const BackwardStep & s) {
    auto & ops = static_cast<CpuOps &>(s.ops);
    ggml_tensor * packed = s.y->src[0];
    ggml_tensor *q = packed->src[0], *k = packed->src[1], *v = packed->src[2];
    const int64_t ne[4] = {ggml_nelements(q) + ggml_nelements(k) + ggml_nelements(v), 1, 1, 1};
    ggml_tensor * rows = s.dy->nb[0] == sizeof(float) ? s.dy : ggml_cont(ops.ctx, s.dy);
    ggml_tensor * dx = ops.node(attention_dx_op, ne, {q, k, v, packed->src[3], packed->src[4], packed, rows},
                                &params_of<CpuAttention>(packed));
    size_t offset = 0;
    for (ggml_tensor * x : {q, k, v}) {  // token by token, as the projections that they belong to
        const size_t head_bytes = x->ne[0] * sizeof(float);
        s.add(x, ggml_view_3d(ops.ctx, dx, x->ne[0], x->ne[1], x->ne[2], head_bytes * x->ne[2], head_bytes, offset));
        offset += ggml_nelements(x) * sizeof(float);
    }
}

}  // namespace ggtune
