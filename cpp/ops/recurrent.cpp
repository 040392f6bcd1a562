// Layers with a state: the convolution in front of them and their scans over the tokens of a sequence.
#include "ops/recurrent.h"

#include "base/error.h"
#include "ops/families.h"

namespace ggtune {

namespace {

void scan_rule(const BackwardStep & s) {
    add_scan_gradients(s, s.y->op);
}

}  // namespace

void refuse_filters(const BackwardStep & s, const ggml_tensor * filters) {
    if (s.needs(filters)) {
        throw Error("no gradient of the filters of a convolution: " + std::string(filters->name));
    }
}

void add_ssm_conv_gradient(const BackwardStep & s) {
    ggml_tensor *x = s.y->src[0], *filters = s.y->src[1];
    refuse_filters(s, filters);
    s.add(x, s.ops.ssm_conv_dx(x, filters, s.dy));
}

bool keeps_last_state_alone(const ggml_tensor * scan) {
    const bool counts = scan->op == GGML_OP_SSM_SCAN || scan->op == GGML_OP_GATED_DELTA_NET;
    return !counts || scan->op_params[0] == 1;
}

void add_scan_gradients(const BackwardStep & s, ggml_op scan) {
    std::vector<bool> needed(GGML_MAX_SRC);
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        needed[i] = s.y->src[i] != nullptr && s.needs(s.y->src[i]);
    }
    const std::vector<ggml_tensor *> gradients = s.ops.scan_dx(scan, s.y, s.dy, needed);
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        if (needed[i]) {
            s.add(s.y->src[i], gradients[i]);
        }
    }
}

std::vector<GgmlOp> recurrent_ops() {
    return {
        {GGML_OP_SSM_CONV, add_ssm_conv_gradient},
        {GGML_OP_SSM_SCAN, scan_rule, Rows::together, keeps_last_state_alone},
        {GGML_OP_GATED_DELTA_NET, scan_rule, Rows::together, keeps_last_state_alone},
        {GGML_OP_GATED_LINEAR_ATTN, scan_rule},
        {GGML_OP_RWKV_WKV6, scan_rule},
        {GGML_OP_RWKV_WKV7, scan_rule},
    };
}

}  // namespace ggtune
