// Layers with a state: the convolution in front of them and their scans over the tokens of a sequence.
#include "base/error.h"
#include "ops/ggml/ggml_ops.h"

namespace ggtune {

// Of each tap, dy by channels and shifted in time: dx[s, c] = sum over k of filters[k, c] dy[c, s - k].
ggml_tensor * GgmlOps::ssm_conv_dx(ggml_tensor * x, ggml_tensor * filters, ggml_tensor * dy) {
    ggml_tensor * dx = zeros_like(x);
    ggml_tensor * by_channels = transposed(dy);
    for (int64_t k = 0; k < filters->ne[0]; k++) {
        ggml_tensor * tap =
            ggml_cont(ctx, ggml_view_2d(ctx, filters, 1, filters->ne[1], filters->nb[1], k * filters->nb[0]));
        dx = ggml_acc_inplace(ctx, dx, ggml_mul(ctx, by_channels, tap), dx->nb[1], dx->nb[2], dx->nb[3],
                              k * sizeof(float));
    }
    return dx;
}

bool GgmlOps::can_serve(const ggml_tensor * node) const {
    switch (node->op) {
        case GGML_OP_SSM_SCAN:
        case GGML_OP_GATED_DELTA_NET:
        case GGML_OP_GATED_LINEAR_ATTN:
        case GGML_OP_RWKV_WKV6:
        case GGML_OP_RWKV_WKV7:
            return false;
        default:
            return true;
    }
}

std::vector<ggml_tensor *> GgmlOps::scan_dx(ggml_op scan, ggml_tensor *, ggml_tensor *, const std::vector<bool> &) {
    throw Error("ops=ggml has no gradient for " + std::string(ggml_op_name(scan)));
}

}  // namespace ggtune
