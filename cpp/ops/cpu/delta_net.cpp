// GATED_DELTA_NET: q, k, v, g, beta, state.
#include "kernels/gated_delta_net.h"

#include <cmath>

#include "ops/cpu/scan.h"
#include "ops/recurrent.h"

namespace ggtune {

namespace {

// [n, heads, T, sequences]
kernels::ConstVectors vectors(const ggml_tensor * t) {
    return {floats(t), stride(t, 2), stride(t, 1), stride(t, 3)};
}

kernels::DeltaNetShape shape_of(ggml_tensor * const * src) {
    const ggml_tensor *q = src[0], *k = src[1], *v = src[2], *g = src[3];
    return {v->ne[2], v->ne[3], v->ne[1], q->ne[1],
            k->ne[1], v->ne[0], g->ne[0], 1.0f / std::sqrt(static_cast<float>(v->ne[0]))};
}

kernels::DeltaNetOperands operands_of(ggml_tensor * const * src) {
    return {vectors(src[0]), vectors(src[1]), vectors(src[2]), floats(src[3]), floats(src[4]), floats(src[5])};
}

float * removed_values(ggml_tensor * y, ggml_tensor * const * src) {
    return kept_by(y, ggml_nelements(src[2]), ggml_nelements(src[5]));
}

void run(ggml_tensor * y, int ith, int nth, void *) {
    kernels::delta_net_forward(shape_of(y->src), operands_of(y->src), floats(y), floats(y) + ggml_nelements(y->src[2]),
                               removed_values(y, y->src), ith, nth);
}

void run_dx(ggml_tensor * dx, int ith, int nth, void * params) {
    const std::vector<float *> d = gradient_parts(delta_net_scan, dx, *static_cast<ScanParams *>(params));
    const float * dy = floats(dx->src[6]);
    kernels::delta_net_backward(shape_of(dx->src), operands_of(dx->src), dy, dy + ggml_nelements(dx->src[2]),
                                removed_values(dx->src[7], dx->src), {d[0], d[1], d[2], d[3], d[4], d[5]}, ith, nth);
}

void rule(const BackwardStep & s) {
    add_scan_gradients(s, GGML_OP_GATED_DELTA_NET);
}

// Of q and k one for each head of v, which take turns in sharing them.
std::vector<ScanPart> parts(ggml_tensor * const * src) {
    std::vector<ScanPart> list;
    for (int i = 0; i < 6; i++) {
        list.push_back(like(src[i]));
    }
    list[0].ne = list[1].ne = list[2].ne;
    return list;
}

}  // namespace

const CpuScan delta_net_scan = {6, 5, {{"delta_net", rule}, run}, {{"delta_net_dx"}, run_dx}, true, parts};

}  // namespace ggtune
