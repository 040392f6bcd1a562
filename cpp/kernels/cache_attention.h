// Scaled dot-product attention of new tokens over a memory of keys and values in half precision, as llama.cpp keeps
// them, for several sequences side by side. Like attention.h in tiles, without gradients; any mask.
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/partition.h"

namespace ggtune::kernels {

// Bits of IEEE half precision, [n_sequences, n_cells, n_heads, dim]; strides in values.
struct HalfCells {
    const uint16_t * data;
    int64_t cell_stride;
    int64_t head_stride;
    int64_t sequence_stride;
};

// logit = cap(scale * q . k) + mask, with cap() as in AttentionShape.
struct CacheAttentionShape {
    int64_t n_sequences;
    int64_t n_tokens;    // of each sequence
    int64_t n_cells;     // of each sequence's memory
    int64_t n_heads;     // of q and out; head h reads the keys and values of head h / (n_heads / n_heads_kv)
    int64_t n_heads_kv;  // divides n_heads
    int64_t head_dim;    // of q and k
    int64_t head_dim_v;  // of v and out; both multiples of kCacheDimUnit
    float scale;
    float softcap;
    // Half precision, [n_sequences, n_tokens, n_cells], stride in values: what is added to the logits. -infinity: the
    // token does not see the cell. What no token sees is not read; what others see has to be finite to leave it alone.
    const uint16_t * mask;
    int64_t mask_token_stride;
    int64_t mask_sequence_stride;
    const float * sinks = nullptr;  // as in AttentionShape
};

inline constexpr int64_t kCacheDimUnit = 16;

// Pieces that the work is dealt out in. Results do not depend on which thread computes which.
int64_t cache_attention_units(const CacheAttentionShape & shape);

// Some of them. q [n_sequences, n_tokens, n_heads, head_dim]; out the same with head_dim_v, without gaps. A token that
// sees nothing has zeros.
void cache_attention(const CacheAttentionShape & shape, const ConstHeads & q, int64_t q_sequence_stride,
                     const HalfCells & k, const HalfCells & v, float * out, Range units);

}  // namespace ggtune::kernels
