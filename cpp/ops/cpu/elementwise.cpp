// Element by element: clamp, dropout.
#include "ops/cpu/cpu_ops.h"

namespace ggtune {

namespace {

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

void run_dropout(ggml_tensor * y, int ith, int nth, void * userdata) {
    const auto range = element_range(y, ith, nth);
    kernels::dropout(*static_cast<kernels::DropoutMask *>(userdata), range.begin, floats(y->src[0]) + range.begin,
                     floats(y) + range.begin, range.size());
}

// the same mask
void dropout_rule(const BackwardStep & s) {
    s.add(s.y->src[0], s.ops.dropout(s.dy, params_of<DropoutMask>(s.y)));
}

const CpuOp clamp_dx_op = {{"clamp_dx"}, run_clamp_dx};
const CpuOp dropout_op = {{"dropout", dropout_rule}, run_dropout};

}  // namespace

ggml_tensor * CpuOps::clamp_dx(ggml_tensor * x, ggml_tensor * dy, float min, float max) {
    return node(clamp_dx_op, x->ne, {contiguous(x), contiguous(dy)}, keep(ClampRange{min, max}));
}

ggml_tensor * CpuOps::dropout(ggml_tensor * x, const DropoutMask & mask) {
    return node(dropout_op, x->ne, {contiguous(x)}, keep(mask));
}

}  // namespace ggtune
