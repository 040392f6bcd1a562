// Backward pass of the mixing of hyper-connections' streams: a matrix for each token, brought towards sums of 1 along
// rows and columns in turns (Sinkhorn and Knopp; Xie et al., "mHC", arXiv:2512.24880).
#pragma once

#include <cstdint>

namespace ggtune::kernels {

inline constexpr int64_t kStreams = 4;
// In a row of mixes: two numbers for each stream, which are used elsewhere, then the matrix.
inline constexpr int64_t kMixOffset = 2 * kStreams;
inline constexpr int64_t kMixes = kMixOffset + kStreams * kStreams;

struct Sinkhorn {
    float eps;
    int64_t n_iterations;  // >= 1
};

// The matrix y [source][target] of a token: softmax(scale mixes + base) over the targets of each source, plus eps; then
// divided by sum + eps over the sources of each target and, n_iterations - 1 times, over the targets of each source and
// over the sources of each target again.
//
//   mixes, d_mixes  [n_tokens, kMixes], of which the first kMixOffset have no gradient; mix_stride floats from row to
//                   row of mixes
//   base            [kMixes]
//   dy              [n_tokens, kStreams, kStreams]
// Thread ith of nth takes its own tokens.
void sinkhorn_backward(const Sinkhorn & sinkhorn, int64_t n_tokens, const float * mixes, int64_t mix_stride,
                       float scale, const float * base, const float * dy, float * d_mixes, int ith, int nth);

}  // namespace ggtune::kernels
