#include "ops/families.h"
#include "ops/ops.h"

namespace ggtune {

namespace {

// y = softmax(scale x + mask)
void soft_max_rule(const BackwardStep & s) {
    s.add(s.y->src[0], s.ops.softmax_dx(s.y, s.dy, float_param(s.y, 0)));
}

}  // namespace

std::vector<GgmlOp> softmax_ops() {
    return {{GGML_OP_SOFT_MAX, soft_max_rule}};
}

}  // namespace ggtune
