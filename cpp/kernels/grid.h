// The quantization grid that a block's scales span: moving weights on it by changing their codes alone.
//
// The weights of a quantized file lie on their grid exactly, and an adapter moves a weight by a small part of a step.
// Rounded to nearest nearly every code would stay as it is. Rounded up with the probability of the fraction, a weight's
// expected value is what it should be, and the errors of different weights are independent: summed over a row they
// stay small while the change adds up. (Stochastic rounding: Gupta et al. 2015, arXiv:1502.02551.)
#pragma once

#include <ggml.h>

#include <cstdint>

namespace ggtune::kernels {

enum class Rounding { unbiased, nearest };

// True for the types whose codes are integers or indices of a monotone table: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K
// Q5_K Q6_K IQ4_NL IQ4_XS MXFP4.
bool has_grid(ggml_type type);

// How many codes changed, and the variance that rounding has added.
struct GridMoves {
    int64_t n_moved = 0;
    double variance = 0;  // sum over the weights of the expected squared rounding error
};

// dst = the n weights at src moved by delta on their grid; scales, mins and the codes of weights with delta 0 are
// copied. The random number of weight i of the row is a hash of key and first_index + i. Codes end at the ends of their
// grid. n is a multiple of ggml_blck_size(type), and has_grid(type).
GridMoves move_on_grid(ggml_type type, const void * src, const float * delta, int64_t n, uint64_t key,
                       int64_t first_index, Rounding rounding, void * dst);

// lost[i] = the part of delta[i] that the ends of the grid cut off (all of it under a scale of 0). Returns whether any
// is not 0.
bool cut_off_by_grid(ggml_type type, const void * src, const float * delta, int64_t n, float * lost);

// squares[i] = the mean square of the steps in block i of the row, n / ggml_blck_size(type) blocks.
void mean_square_steps(ggml_type type, const void * src, int64_t n, float * squares);

// dst[i] = src[i] as BF16, rounded up with the probability of the fraction; infinities and NaN are kept.
void round_to_bf16(const float * src, int64_t n, uint64_t key, int64_t first_index, ggml_bf16_t * dst);

}  // namespace ggtune::kernels
