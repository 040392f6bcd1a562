// SSM_SCAN: states, x, dt, a, b, c, ids.
#include "kernels/ssm_scan.h"

#include "ops/cpu/scan.h"
#include "ops/recurrent.h"

namespace ggtune {

namespace {

// [n, heads or groups, T, sequences], heads one after another
kernels::ConstVectors vectors(const ggml_tensor * t) {
    return {floats(t), stride(t, 2), stride(t, 1), stride(t, 3)};
}

kernels::SsmScanShape shape_of(ggml_tensor * const * src) {
    const ggml_tensor *states = src[0], *x = src[1], *a = src[3], *b = src[4];
    return {x->ne[2], x->ne[3], x->ne[1], b->ne[1], x->ne[0], states->ne[0], a->ne[0]};
}

kernels::SsmScanOperands operands_of(ggml_tensor * const * src) {
    return {vectors(src[1]),
            floats(src[2]),
            floats(src[3]),
            vectors(src[4]),
            vectors(src[5]),
            floats(src[0]),
            static_cast<const int32_t *>(src[6]->data)};
}

void run(ggml_tensor * y, int ith, int nth, void *) {
    kernels::ssm_scan_forward(shape_of(y->src), operands_of(y->src), floats(y), floats(y) + ggml_nelements(y->src[1]),
                              ith, nth);
}

void run_dx(ggml_tensor * dx, int ith, int nth, void * params) {
    const std::vector<float *> d = gradient_parts(ssm_scan, dx, *static_cast<ScanParams *>(params));
    const float * dy = floats(dx->src[7]);
    kernels::ssm_scan_backward(shape_of(dx->src), operands_of(dx->src), dy, dy + ggml_nelements(dx->src[1]),
                               {d[1], d[2], d[3], d[4], d[5], d[0]}, ith, nth);
}

void rule(const BackwardStep & s) {
    add_scan_gradients(s, GGML_OP_SSM_SCAN);
}

std::vector<ScanPart> parts(ggml_tensor * const * src) {
    std::vector<ScanPart> list;
    for (int i = 0; i < 6; i++) {
        list.push_back(like(src[i]));
    }
    list.push_back({});  // ids have none
    const kernels::SsmScanShape shape = shape_of(src);
    const int64_t state_size = shape.n_state * shape.head_dim * shape.n_heads;
    list[0] = {{state_size, shape.n_sequences, 1, 1}, {state_size, shape.n_sequences, 1, 1}};
    list[3].ne[2] = shape.n_sequences;
    const int64_t n_tokens = shape.n_tokens * shape.n_sequences;
    list[4] = list[5] = {{shape.n_state, kernels::ssm_scan_parts(shape), shape.n_groups, n_tokens},
                         {shape.n_state, 1, shape.n_groups, n_tokens}};
    return list;
}

}  // namespace

const CpuScan ssm_scan = {7, 0, {{"ssm_scan", rule}, run}, {{"ssm_scan_dx"}, run_dx}, false, parts};

}  // namespace ggtune
