// Hyper-connections (DeepSeek V4): a layer's input is mixed from several streams of hidden states, its output is spread
// over them.
//
// ne: x, residual [n, streams, T], what a layer reads and writes [n, T]
#include "ops/families.h"
#include "ops/ops.h"

namespace ggtune {

namespace {

// [n, T] beside the streams: ne = [n, 1, T]
ggml_tensor * one_stream(Ops & ops, ggml_tensor * t) {
    return ggml_reshape_3d(ops.ctx, ops.contiguous(t), t->ne[0], 1, t->ne[1]);
}

// y = scale sum over the streams of x w; w ne = [streams, T], or sigmoid(w), ne as x
void hc_pre_rule(const BackwardStep & s) {
    ggml_context * ctx = s.ops.ctx;
    ggml_tensor *x = s.y->src[0], *w = s.y->src[1];
    ggml_tensor * dy = one_stream(s.ops, s.dy);
    const float scale = float_param(s.y, 0);
    if (scale != 1.0f) {
        dy = ggml_scale(ctx, dy, scale);
    }
    const bool gated = s.y->op_params[1] != 0;
    if (gated) {
        ggml_tensor * gate = ggml_sigmoid(ctx, s.ops.contiguous(w));
        ggml_tensor * dx = ggml_mul(ctx, gate, dy);
        s.add(x, dx);
        if (s.needs(w)) {
            s.add(w, ggml_mul(ctx, ggml_mul(ctx, dx, x), ggml_scale_bias(ctx, gate, -1.0f, 1.0f)));
        }
        return;
    }
    if (s.needs(x)) {
        ggml_tensor * factors = ggml_reshape_3d(ctx, s.ops.contiguous(w), 1, w->ne[0], w->ne[1]);
        s.add(x, ggml_mul(ctx, ggml_repeat(ctx, dy, x), factors));
    }
    if (s.needs(w)) {
        s.add(w, ggml_reshape_2d(ctx, ggml_mul_mat(ctx, s.ops.contiguous(x), dy), w->ne[0], w->ne[1]));
    }
}

// y[target] = post[target] x + sum over the sources of comb[target, source] residual[source]; post ne = [streams, T],
// comb ne = [targets, sources, T] or nullptr: each stream stays what it is
void hc_post_rule(const BackwardStep & s) {
    ggml_context * ctx = s.ops.ctx;
    ggml_tensor *x = s.y->src[0], *residual = s.y->src[1], *post = s.y->src[2], *comb = s.y->src[3];
    ggml_tensor * dy = s.ops.contiguous(s.dy);
    if (s.needs(x)) {
        s.add(x, ggml_dsv4_hc_pre(ctx, dy, post));
    }
    if (s.needs(post)) {
        s.add(post, ggml_reshape_2d(ctx, ggml_mul_mat(ctx, dy, one_stream(s.ops, x)), post->ne[0], post->ne[1]));
    }
    if (comb == nullptr) {
        s.add(residual, dy);
        return;
    }
    if (s.needs(residual)) {
        ggml_tensor * by_element = ggml_cont(ctx, ggml_transpose(ctx, dy));  // ne = [targets, n, T]
        s.add(residual, ggml_mul_mat(ctx, by_element, s.ops.contiguous(comb)));
    }
    if (s.needs(comb)) {
        s.add(comb, ggml_mul_mat(ctx, dy, s.ops.contiguous(residual)));
    }
}

// y = the mixing of the streams; scale and base are frozen
void hc_comb_rule(const BackwardStep & s) {
    s.add(s.y->src[0],
          s.ops.sinkhorn_dx({float_param(s.y, 0), s.y->op_params[1]}, s.y->src[0], s.y->src[1], s.y->src[2], s.dy));
}

}  // namespace

std::vector<GgmlOp> hyper_connection_ops() {
    return {
        {GGML_OP_DSV4_HC_PRE, hc_pre_rule},
        {GGML_OP_DSV4_HC_POST, hc_post_rule},
        {GGML_OP_DSV4_HC_COMB, hc_comb_rule},
    };
}

}  // namespace ggtune
