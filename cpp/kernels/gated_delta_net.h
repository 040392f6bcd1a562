// The gated delta rule: a scan over the tokens of each sequence. Source: Yang et al., "Gated Delta Networks",
// arXiv:2412.06464; with a decay of its own for each column, Kimi Delta Attention (arXiv:2510.26692).
#pragma once

#include <cstdint>

#include "kernels/scan.h"

namespace ggtune::kernels {

// For each head and sequence, a state M [dim, dim]:
//   M' = M_{t-1} diag(exp(g_t))     u_t = v_t - M' k_t     M_t = M' + beta_t u_t k_t^T     out_t = scale M_t q_t
struct DeltaNetShape {
    int64_t n_tokens;  // of a sequence
    int64_t n_sequences;
    int64_t n_heads;    // of v; head h reads the queries and keys of head h % n_heads_qk
    int64_t n_heads_q;  // divide n_heads
    int64_t n_heads_k;
    int64_t dim;
    int64_t gate_width;  // of g: 1, or dim
    float scale;
};

struct DeltaNetOperands {
    ConstVectors q, k, v;
    const float * g;      // [n_sequences, n_tokens, n_heads, gate_width]
    const float * beta;   // [n_sequences, n_tokens, n_heads]
    const float * state;  // M_0 [n_sequences, n_heads, dim, dim]
};

// Arrays like the operands', but dq and dk for each head of v: where heads share queries or keys, these are to be
// summed. All contiguous. d_state nullptr: not wanted.
struct DeltaNetGradients {
    float * dq;  // [n_sequences, n_tokens, n_heads, dim]
    float * dk;
    float * dv;
    float * dg;
    float * d_beta;
    float * d_state;
};

// out [n_sequences, n_tokens, n_heads, dim], last_state like M_0. u, where not nullptr: all u_t [n_sequences, n_heads,
// n_tokens, dim], which the gradient wants. Thread ith of nth takes its own heads; results have the same bits for every
// nth.
void delta_net_forward(const DeltaNetShape & shape, const DeltaNetOperands & x, float * out, float * last_state,
                       float * u, int ith, int nth);

// The gradients of sum(out * d_out) + sum(last_state * d_last_state). u: of the forward pass, or nullptr, then it is
// computed again, which costs as much as the forward pass.
void delta_net_backward(const DeltaNetShape & shape, const DeltaNetOperands & x, const float * d_out,
                        const float * d_last_state, float * u, const DeltaNetGradients & d, int ith, int nth);

// The loops that define them, in double.
void delta_net_forward_reference(const DeltaNetShape & shape, const DeltaNetOperands & x, float * out,
                                 float * last_state);
void delta_net_backward_reference(const DeltaNetShape & shape, const DeltaNetOperands & x, const float * d_out,
                                  const float * d_last_state, const DeltaNetGradients & d);

}  // namespace ggtune::kernels
