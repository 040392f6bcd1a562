#include <vector>

#include "ops/ggml/ggml_ops.h"

namespace ggtune {

namespace {

using kernels::kMixOffset;
using kernels::kStreams;

ggml_tensor * part(ggml_context * ctx, ggml_tensor * t, int64_t begin, int64_t n) {
    return ggml_view_1d(ctx, t, n, begin * t->nb[0]);
}

}  // namespace

// Each division is by sums of rows: the matrices are transposed between two of them.
ggml_tensor * GgmlOps::sinkhorn_dx(const Sinkhorn & sinkhorn, ggml_tensor * mixes, ggml_tensor * scale,
                                   ggml_tensor * base, ggml_tensor * dy) {
    constexpr int64_t kMatrix = kStreams * kStreams;
    const int64_t n_tokens = mixes->ne[1];
    scale = part(ctx, scale, 2, 1);
    ggml_tensor * logits =
        ggml_cont(ctx, ggml_view_2d(ctx, mixes, kMatrix, n_tokens, mixes->nb[1], kMixOffset * mixes->nb[0]));
    logits = ggml_add(ctx, ggml_mul(ctx, logits, scale), part(ctx, base, kMixOffset, kMatrix));
    ggml_tensor * softmax = ggml_soft_max(ctx, ggml_reshape_3d(ctx, logits, kStreams, kStreams, n_tokens));

    struct Division {
        ggml_tensor *quotients, *divisors;
    };
    std::vector<Division> divisions;
    ggml_tensor * x = ggml_scale_bias(ctx, softmax, 1.0f, sinkhorn.eps);
    for (int64_t i = 0; i < 2 * sinkhorn.n_iterations - 1; i++) {
        x = transposed(x);
        ggml_tensor * divisors = ggml_scale_bias(ctx, ggml_sum_rows(ctx, x), 1.0f, sinkhorn.eps);
        x = ggml_div(ctx, x, divisors);
        divisions.push_back({x, divisors});
    }
    ggml_tensor * d = transposed(dy);
    for (auto division = divisions.rbegin(); division != divisions.rend(); ++division) {
        ggml_tensor * along = ggml_sum_rows(ctx, ggml_mul(ctx, d, division->quotients));
        d = transposed(ggml_div(ctx, ggml_sub(ctx, d, along), division->divisors));
    }
    d = ggml_mul(ctx, softmax_dx(softmax, d, 1.0f), scale);
    ggml_tensor * others = zeros_like(ggml_new_tensor_2d(ctx, GGML_TYPE_F32, kMixOffset, n_tokens));
    return ggml_concat(ctx, others, ggml_reshape_2d(ctx, d, kMatrix, n_tokens), 0);
}

}  // namespace ggtune
