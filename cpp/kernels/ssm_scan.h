// The selective scan of state-space layers, over the tokens of each sequence. Sources: Gu and Dao, "Mamba",
// arXiv:2312.00752; Dao and Gu, "Transformers are SSMs" (Mamba-2), arXiv:2405.21060.
#pragma once

#include <cstdint>

#include "kernels/scan.h"

namespace ggtune::kernels {

// For each head and sequence, a state M [head_dim, n_state], with step_t = softplus(dt_t):
//   M_t = M_{t-1} diag(exp(step_t a)) + step_t x_t b_t^T     y_t = M_t c_t
struct SsmScanShape {
    int64_t n_tokens;  // of a sequence
    int64_t n_sequences;
    int64_t n_heads;
    int64_t n_groups;  // divides n_heads; head h reads b and c of group h / (n_heads / n_groups)
    int64_t head_dim;
    int64_t n_state;
    int64_t a_width;  // of a: 1 (Mamba-2), or n_state (Mamba-1)
};

struct SsmScanOperands {
    ConstVectors x;               // heads one after another
    const float * dt;             // [n_sequences, n_tokens, n_heads]
    const float * a;              // [n_heads, a_width]
    ConstVectors b, c;            // of each group
    const float * states;         // [any number, n_heads, head_dim, n_state]
    const int32_t * first_state;  // [n_sequences] index of M_0 among `states`
};

// The heads of a group are dealt out to so many parts, of which each makes a term of the gradients of b and c.
int64_t ssm_scan_parts(const SsmScanShape & shape);

// All contiguous. d_states nullptr: not wanted.
struct SsmScanGradients {
    float * dx;    // [n_sequences, n_tokens, n_heads, head_dim]
    float * d_dt;  // [n_sequences, n_tokens, n_heads]
    float * d_a;   // [n_sequences, n_heads, a_width], to be summed over the sequences
    float * d_b;   // [n_sequences, n_tokens, n_groups, ssm_scan_parts(), n_state], to be summed over the parts
    float * d_c;
    float * d_states;  // of M_0 [n_sequences, n_heads, head_dim, n_state]
};

// y [n_sequences, n_tokens, n_heads, head_dim], last_states [n_sequences, n_heads, head_dim, n_state]. Thread ith of
// nth takes its own heads; results have the same bits for every nth.
void ssm_scan_forward(const SsmScanShape & shape, const SsmScanOperands & x, float * y, float * last_states, int ith,
                      int nth);

// The gradients of sum(y * dy) + sum(last_states * d_last_states).
void ssm_scan_backward(const SsmScanShape & shape, const SsmScanOperands & x, const float * dy,
                       const float * d_last_states, const SsmScanGradients & d, int ith, int nth);

// The loops that define them, in double. Of the parts of d_b and d_c, the first holds the sum, the others zeros.
void ssm_scan_forward_reference(const SsmScanShape & shape, const SsmScanOperands & x, float * y, float * last_states);
void ssm_scan_backward_reference(const SsmScanShape & shape, const SsmScanOperands & x, const float * dy,
                                 const float * d_last_states, const SsmScanGradients & d);

}  // namespace ggtune::kernels
