// Scaled dot-product attention of packed samples, forward and backward, in tiles: the scores are never written in full.
// Source: Dao et al., "FlashAttention", arXiv:2205.14135, and Dao, "FlashAttention-2", arXiv:2307.08691.
#pragma once

#include <cstdint>

namespace ggtune::kernels {

// [n_tokens, n_heads, dim]: element (t, h, i) is data[t * token_stride + h * head_stride + i]; strides in floats.
struct ConstHeads {
    const float * data;
    int64_t token_stride;
    int64_t head_stride;
};

struct Heads {
    float * data;
    int64_t token_stride;
    int64_t head_stride;
};

// logit(t, s) = post_scale * cap(pre_scale * q_t . k_s), with cap(x) = softcap * tanh(x / softcap), or x for softcap 0.
struct AttentionShape {
    int64_t n_tokens;
    int64_t n_heads;     // of q and out; head h reads the keys and values of head h / (n_heads / n_heads_kv)
    int64_t n_heads_kv;  // divides n_heads
    int64_t head_dim;    // of q and k
    int64_t head_dim_v;  // of v and out
    float pre_scale;
    float softcap;
    float post_scale;
    // [n_tokens] Token t sees the keys [first_key[t], end_key[t]), 0 <= first_key[t] and end_key[t] <= n_tokens: its
    // own sample up to itself, or a window of that. A token without keys has zeros for output and gradient.
    const int32_t * first_key;
    const int32_t * end_key;
    // [n_heads] Sinks (Xiao et al., arXiv:2309.17453, as gpt-oss has them): the logit of one more key of each head,
    // which every token sees and whose value is zero. nullptr: none.
    const float * sinks = nullptr;
};

// out = softmax(logits) v;  lse [n_heads, n_tokens] = log(sum(exp(logits))), natural, the sink's among them, -infinity
// for a token without keys. Work grows with the number of (token, key) pairs that see each other. Thread ith of nth
// writes its own part of out and lse; the result has the same bits for every nth. No output may overlap an input.
void attention_forward(const AttentionShape & shape, const ConstHeads & q, const ConstHeads & k, const ConstHeads & v,
                       const Heads & out, float * lse, int ith, int nth);

// The gradients of sum(out * d_out), sinks constant; `out` and `lse` are attention_forward()'s: the sink is in them.
// With `accumulate` they are added to dq, dk and dv, else these are overwritten. Threads as above: every element of dq,
// dk and dv is written by one thread.
void attention_backward(const AttentionShape & shape, const ConstHeads & q, const ConstHeads & k, const ConstHeads & v,
                        const ConstHeads & out, const float * lse, const ConstHeads & d_out, const Heads & dq,
                        const Heads & dk, const Heads & dv, bool accumulate, int ith, int nth);

// The same on bf16 tiles (tile.h), several times as fast where bf16_product_fast() and right everywhere: the products
// with sums in float32 over operands rounded to bf16, everything between them in float32. Queries, keys, values,
// weights and gradients lose 2^-9 of a value at most, without bias: a logit moves by about 1e-3 of |q| |k| (scaled) /
// sqrt(dim), outputs and gradients by about 3e-3 in norm for logits of order 1. attention_backward_bf16() wants the
// `out` and `lse` of attention_forward_bf16().
void attention_forward_bf16(const AttentionShape & shape, const ConstHeads & q, const ConstHeads & k,
                            const ConstHeads & v, const Heads & out, float * lse, int ith, int nth);
void attention_backward_bf16(const AttentionShape & shape, const ConstHeads & q, const ConstHeads & k,
                             const ConstHeads & v, const ConstHeads & out, const float * lse, const ConstHeads & d_out,
                             const Heads & dq, const Heads & dk, const Heads & dv, bool accumulate, int ith, int nth);

// The loops that define them, in double.
void attention_forward_reference(const AttentionShape & shape, const ConstHeads & q, const ConstHeads & k,
                                 const ConstHeads & v, const Heads & out, float * lse);
void attention_backward_reference(const AttentionShape & shape, const ConstHeads & q, const ConstHeads & k,
                                  const ConstHeads & v, const ConstHeads & d_out, const Heads & dq, const Heads & dk,
                                  const Heads & dv, bool accumulate);

}  // namespace ggtune::kernels
