// llama.cpp's attention over its memory of keys and values.
#include "kernels/cache_attention.h"

#include "ops/cpu/cpu_ops.h"

namespace ggtune {

namespace {

struct CacheAttention {
    float scale;
    float softcap;
    kernels::Dealer dealer;
};

int64_t half_stride(const ggml_tensor * t, int dim) {
    return static_cast<int64_t>(t->nb[dim] / sizeof(ggml_fp16_t));
}

const uint16_t * halves(const ggml_tensor * t) {
    return static_cast<const uint16_t *>(t->data);
}

kernels::HalfCells half_cells(const ggml_tensor * t) {
    return {halves(t), half_stride(t, 1), half_stride(t, 2), half_stride(t, 3)};
}

void run_cache_attention(ggml_tensor * y, int, int nth, void * userdata) {
    auto & params = *static_cast<CacheAttention *>(userdata);
    const ggml_tensor *q = y->src[0], *k = y->src[1], *v = y->src[2], *mask = y->src[3], *sinks = y->src[4];
    const kernels::CacheAttentionShape shape = {q->ne[3],
                                                q->ne[1],
                                                k->ne[1],
                                                q->ne[2],
                                                k->ne[2],
                                                k->ne[0],
                                                v->ne[0],
                                                params.scale,
                                                params.softcap,
                                                halves(mask),
                                                half_stride(mask, 1),
                                                mask->ne[3] == 1 ? 0 : half_stride(mask, 3),
                                                sinks != nullptr ? floats(sinks) : nullptr};
    params.dealer.run(kernels::cache_attention_units(shape), nth, [&](kernels::Range units) {
        kernels::cache_attention(shape, const_heads(q), stride(q, 3), half_cells(k), half_cells(v), floats(y), units);
    });
}

bool has_rows(const ggml_tensor * t, ggml_type type) {
    return t->type == type && t->nb[0] == ggml_type_size(type) && t->ne[0] % kernels::kCacheDimUnit == 0;
}

}  // namespace

bool CpuOps::can_cache_attention(const ggml_tensor * node) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3];
    const float max_bias = float_param(node, 1);
    return has_rows(q, GGML_TYPE_F32) && has_rows(k, GGML_TYPE_F16) && has_rows(v, GGML_TYPE_F16) &&
           k->ne[2] == v->ne[2] && q->ne[2] % k->ne[2] == 0 && mask != nullptr && mask->ne[2] == 1 &&
           (mask->ne[3] == 1 || mask->ne[3] == q->ne[3]) && max_bias == 0.0f;
}

ggml_tensor * CpuOps::cache_attention(ggml_tensor * y) {
    static const CpuOp op = {{"cache_attention"}, run_cache_attention};
    Operands operands = {y->src[0], y->src[1], y->src[2], y->src[3]};
    if (y->src[4] != nullptr) {
        operands.push_back(y->src[4]);
    }
    auto * params = make<CacheAttention>();
    params->scale = float_param(y, 0);
    params->softcap = float_param(y, 2);
    return node(op, y->ne, operands, params);
}

}  // namespace ggtune
