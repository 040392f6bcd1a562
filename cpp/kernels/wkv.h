// The scans of RWKV's layers and of gated linear attention, over the tokens of each sequence. Sources: Peng et al.,
// "Eagle and Finch" (RWKV-6), arXiv:2404.05892, and "RWKV-7", arXiv:2503.14456; Yang et al., "Gated Linear Attention",
// arXiv:2312.06635.
#pragma once

#include <cstdint>

namespace ggtune::kernels {

// For each head and sequence, a state M [dim, dim], a row for each value, with w_t a decay for each column:
//   gated:  M_t = M_{t-1} diag(w_t) + v_t k_t^T                          out_t = scale M_t r_t
//   rwkv6:  the same                                                    out_t = M_{t-1} r_t + v_t (r_t . (u * k_t))
//   rwkv7:  M_t = M_{t-1} diag(w_t) + v_t k_t^T + (M_{t-1} a_t) b_t^T    out_t = M_t r_t
enum class WkvKind { gated, rwkv6, rwkv7 };

struct WkvShape {
    WkvKind kind;
    int64_t n_tokens;  // of a sequence
    int64_t n_sequences;
    int64_t n_heads;
    int64_t dim;
    float scale;  // gated
};

// [n_sequences, n_tokens, n_heads, dim] where nothing else is said. What a kind does not have is nullptr.
struct WkvOperands {
    const float *r, *k, *v, *w;
    const float *a, *b;   // rwkv7
    const float * u;      // rwkv6 [n_heads, dim]
    const float * state;  // M_0 [n_sequences, n_heads, dim, dim], of rwkv7 by rows, else by columns
};

// Arrays like the operands', but d_u [n_sequences, n_heads, dim], to be summed over the sequences. d_state nullptr: not
// wanted.
struct WkvGradients {
    float *dr, *dk, *dv, *dw;
    float *da, *db;
    float * du;
    float * d_state;
};

// out [n_sequences, n_tokens, n_heads, dim], last_state like M_0. c, where not nullptr: of rwkv7 all M_{t-1} a_t
// [n_sequences, n_heads, n_tokens, dim], which the gradient wants. Thread ith of nth takes its own heads; results have
// the same bits for every nth.
void wkv_forward(const WkvShape & shape, const WkvOperands & x, float * out, float * last_state, float * c, int ith,
                 int nth);

// The gradients of sum(out * d_out) + sum(last_state * d_last_state). c: of the forward pass, or nullptr, then it is
// computed again.
void wkv_backward(const WkvShape & shape, const WkvOperands & x, const float * d_out, const float * d_last_state,
                  float * c, const WkvGradients & d, int ith, int nth);

// The loops that define them, in double.
void wkv_forward_reference(const WkvShape & shape, const WkvOperands & x, float * out, float * last_state);
void wkv_backward_reference(const WkvShape & shape, const WkvOperands & x, const float * d_out,
                            const float * d_last_state, const WkvGradients & d);

}  // namespace ggtune::kernels
