#include <cstring>

#include "ops/families.h"
#include "ops/ops.h"

namespace ggtune {

namespace {

// ROPE and ROPE_BACK are each other's transpose: the same rotation the other way, the same factor.
void rope_rule(const BackwardStep & s) {
    ggml_tensor * dx = ggml_new_tensor(s.ops.ctx, GGML_TYPE_F32, GGML_MAX_DIMS, s.y->ne);
    dx->op = s.y->op == GGML_OP_ROPE ? GGML_OP_ROPE_BACK : GGML_OP_ROPE;
    std::memcpy(dx->op_params, s.y->op_params, sizeof(dx->op_params));
    dx->src[0] = s.ops.contiguous(s.dy);
    dx->src[1] = s.y->src[1];
    dx->src[2] = s.y->src[2];
    s.add(s.y->src[0], dx);
}

}  // namespace

std::vector<GgmlOp> rope_ops() {
    return {{GGML_OP_ROPE, rope_rule}, {GGML_OP_ROPE_BACK, rope_rule}};
}

}  // namespace ggtune
