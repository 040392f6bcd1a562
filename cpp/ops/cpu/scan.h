// The scans over the tokens of a sequence, as CPU nodes: each has a file of its own, recurrent.cpp makes the nodes.
#pragma once

#include <array>
#include <vector>

#include "ops/cpu/node.h"

namespace ggtune {

// The gradient of an operand, as the backward node computes it, and what it is to be summed to: along dimensions where
// heads, or sequences, share an operand.
struct ScanPart {
    std::array<int64_t, GGML_MAX_DIMS> ne;
    std::array<int64_t, GGML_MAX_DIMS> summed;

    int64_t size() const { return ne[0] * ne[1] * ne[2] * ne[3]; }
};

struct CpuScan {
    int n_operands;
    int state;  // the operand that holds the first states, whose gradient comes last
    // Of ggml's operands, with ggml's result: the outputs, then the last states.
    CpuOp forward;
    // Of the same operands, the gradient of the result and, if it keeps something, our forward node: the gradients of
    // all operands, one after another.
    CpuOp backward;
    // Whether the forward node has more, behind what ggml's has: for each output a number that the gradient wants.
    bool keeps;
    // a part for each operand that has a gradient; the others are empty
    std::vector<ScanPart> (*parts)(ggml_tensor * const * operands);
};

struct ScanParams {
    float scale;      // of GATED_LINEAR_ATTN
    bool with_state;  // backward: the gradient of the first states is wanted, too
};

extern const CpuScan delta_net_scan;
extern const CpuScan ssm_scan;
extern const CpuScan gated_scan;
extern const CpuScan rwkv6_scan;
extern const CpuScan rwkv7_scan;

// nullptr: none of them
const CpuScan * cpu_scan(ggml_op op);

// The gradient is like its operand.
inline ScanPart like(const ggml_tensor * t) {
    const std::array<int64_t, GGML_MAX_DIMS> ne = {t->ne[0], t->ne[1], t->ne[2], t->ne[3]};
    return {ne, ne};
}

// What a forward node has kept, or nullptr: of ggml's node.
inline float * kept_by(ggml_tensor * y, int64_t n_outputs, int64_t n_states) {
    return y != nullptr ? floats(y) + n_outputs + n_states : nullptr;
}

// Where the gradient of each operand lies in the backward node dx, floats from its beginning.
std::vector<int64_t> part_offsets(const std::vector<ScanPart> & parts, int state);

// The memory of the gradients of all operands; nullptr for states that are not wanted.
std::vector<float *> gradient_parts(const CpuScan & scan, ggml_tensor * dx, const ScanParams & params);

}  // namespace ggtune
