// Gradients of what is normalized by rows: norms, softmax.
#include "kernels/norm.h"

#include "kernels/softmax.h"
#include "ops/cpu/cpu_ops.h"

namespace ggtune {

namespace {

void run_softmax_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const int64_t n = dx->ne[0];
    kernels::softmax_backward(ggml_nrows(dx), n, floats(dx->src[0]), n, floats(dx->src[1]), n, floats(dx), n,
                              *static_cast<float *>(userdata), ith, nth);
}

void run_rms_norm_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const int64_t n = dx->ne[0];
    kernels::rms_norm_backward(ggml_nrows(dx), n, floats(dx->src[0]), n, floats(dx->src[1]), n, floats(dx), n,
                               *static_cast<float *>(userdata), ith, nth);
}

void run_norm_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const int64_t n = dx->ne[0];
    kernels::layer_norm_backward(ggml_nrows(dx), n, floats(dx->src[0]), n, floats(dx->src[1]), n, floats(dx), n,
                                 *static_cast<float *>(userdata), ith, nth);
}

void run_l2_norm_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const int64_t n = dx->ne[0];
    kernels::l2_norm_backward(ggml_nrows(dx), n, floats(dx->src[0]), n, floats(dx->src[1]), n, floats(dx), n,
                              *static_cast<float *>(userdata), ith, nth);
}

const CpuOp softmax_dx_op = {{"softmax_dx"}, run_softmax_dx};
const CpuOp rms_norm_dx_op = {{"rms_norm_dx"}, run_rms_norm_dx};
const CpuOp norm_dx_op = {{"norm_dx"}, run_norm_dx};
const CpuOp l2_norm_dx_op = {{"l2_norm_dx"}, run_l2_norm_dx};

}  // namespace

ggml_tensor * CpuOps::softmax_dx(ggml_tensor * y, ggml_tensor * dy, float scale) {
    return node(softmax_dx_op, y->ne, {contiguous(y), contiguous(dy)}, keep(scale));
}

ggml_tensor * CpuOps::rms_norm_dx(ggml_tensor * x, ggml_tensor * dy, float eps) {
    return node(rms_norm_dx_op, x->ne, {contiguous(x), contiguous(dy)}, keep(eps));
}

ggml_tensor * CpuOps::norm_dx(ggml_tensor * x, ggml_tensor * dy, float eps) {
    return node(norm_dx_op, x->ne, {contiguous(x), contiguous(dy)}, keep(eps));
}

ggml_tensor * CpuOps::l2_norm_dx(ggml_tensor * x, ggml_tensor * dy, float eps) {
    return node(l2_norm_dx_op, x->ne, {contiguous(x), contiguous(dy)}, keep(eps));
}

}  // namespace ggtune
