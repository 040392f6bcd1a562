#include "kernels/sinkhorn.h"

#include "ops/cpu/cpu_ops.h"

namespace ggtune {

namespace {

void run_sinkhorn_dx(ggml_tensor * d_mixes, int ith, int nth, void * userdata) {
    const ggml_tensor *mixes = d_mixes->src[0], *scale = d_mixes->src[1], *base = d_mixes->src[2],
                      *dy = d_mixes->src[3];
    constexpr int64_t kOfMatrix = 2;  // of the three scales
    kernels::sinkhorn_backward(*static_cast<Sinkhorn *>(userdata), mixes->ne[1], floats(mixes), stride(mixes, 1),
                               floats(scale)[kOfMatrix], floats(base), floats(dy), floats(d_mixes), ith, nth);
}

const CpuOp sinkhorn_dx_op = {{"sinkhorn_dx"}, run_sinkhorn_dx};

}  // namespace

ggml_tensor * CpuOps::sinkhorn_dx(const Sinkhorn & sinkhorn, ggml_tensor * mixes, ggml_tensor * scale,
                                  ggml_tensor * base, ggml_tensor * dy) {
    return node(sinkhorn_dx_op, mixes->ne, {contiguous(mixes), contiguous(scale), contiguous(base), contiguous(dy)},
                keep(sinkhorn));
}

}  // namespace ggtune
