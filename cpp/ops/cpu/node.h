// What the custom CPU nodes of all families share: their descriptor with the function that runs them, access to the
// memory of their tensors, the work of one thread.
#pragma once

#include <ggml.h>

#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/partition.h"
#include "ops/op.h"

namespace ggtune {

// run: thread ith of nth computes its part of the node.
struct CpuOp {
    Op op;
    void (*run)(ggml_tensor * node, int ith, int nth, void * params);
};

template <class P>
P & params_of(const ggml_tensor * node) {
    return *static_cast<P *>(custom_node(node)->params);
}

// Of the activations, for a product by integers or in bf16: fewer do not pay for unpacking the weights.
constexpr int64_t kMinUnpackingRows = 16;

inline const float * floats(const ggml_tensor * t) {
    return static_cast<const float *>(t->data);
}
inline float * floats(ggml_tensor * t) {
    return static_cast<float *>(t->data);
}

// in floats
inline int64_t stride(const ggml_tensor * t, int dim) {
    return t->nb[dim] / sizeof(float);
}

// matrix (i2, i3) of a F32 tensor: element (row i1, column i0)
inline kernels::Operand matrix(const ggml_tensor * t, int64_t i2, int64_t i3) {
    return {floats(t) + i2 * stride(t, 2) + i3 * stride(t, 3), stride(t, 1), stride(t, 0)};
}

// of a tensor with tokens in rows, ne = [dim, tokens, heads]
inline kernels::ConstHeads const_heads(const ggml_tensor * t) {
    return {floats(t), stride(t, 1), stride(t, 2)};
}

// contiguous tensors are cut into runs of one size class so that every thread gets whole cache lines
inline kernels::Range element_range(const ggml_tensor * t, int ith, int nth) {
    return kernels::split_range(ggml_nelements(t), ith, nth, 64);
}

// Whether dy is one matrix whose rows lie one after another.
inline bool rows_in_step(const ggml_tensor * t) {
    return t->nb[0] == sizeof(float) && t->ne[2] == 1 && t->ne[3] == 1;
}

}  // namespace ggtune
