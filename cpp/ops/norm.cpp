#include "ops/families.h"
#include "ops/ops.h"

namespace ggtune {

namespace {

void rms_norm_rule(const BackwardStep & s) {
    s.add(s.y->src[0], s.ops.rms_norm_dx(s.y->src[0], s.dy, float_param(s.y, 0)));
}

void norm_rule(const BackwardStep & s) {
    s.add(s.y->src[0], s.ops.norm_dx(s.y->src[0], s.dy, float_param(s.y, 0)));
}

void l2_norm_rule(const BackwardStep & s) {
    s.add(s.y->src[0], s.ops.l2_norm_dx(s.y->src[0], s.dy, float_param(s.y, 0)));
}

}  // namespace

std::vector<GgmlOp> norm_ops() {
    return {
        {GGML_OP_RMS_NORM, rms_norm_rule},
        {GGML_OP_NORM, norm_rule},
        {GGML_OP_L2_NORM, l2_norm_rule},
    };
}

}  // namespace ggtune
