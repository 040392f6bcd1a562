// dX = dY * W with a frozen quantized weight W, for many tokens at a time, by int16 dot products.
//
// A row of W is, block by block, a float times integers of at most 13 bits (for K-quants the product of the value and
// the integer scale of its sub-block), minus the mins. For each block of columns, dY is multiplied by those floats and
// rounded to integers with one scale for 128 or 256 outputs of a token; their products with the integers of W are
// summed exactly. What the mins contribute is added in single precision.
//
// W  ne = [n_in, n_out]: row o holds the n_in weights of output o in w_row_bytes bytes; n_in is a multiple of
// ggml_blck_size(type), and int16_gradient_supported(type). Row strides are in floats, rows are contiguous.
// Thread ith of nth writes its own part of the result, which has the same bits for every nth.
// dY keeps up to 15 bits of the largest magnitude that shares its scale, as many as the sums leave room for: the error
// of dX, relative in norm, is 3e-5 to 7e-5 for ordinary weights and gradients, 3e-4 where a single dY of the 128 or 256
// holds all the norm. In float32 it is 1e-7. Products of dY and a weight's scale below 1e-34 may be lost.
#pragma once

#include <ggml.h>

#include <cstddef>
#include <cstdint>

#include "kernels/partition.h"

namespace ggtune::kernels {

// True for all of ggml's quantized weights but Q4_1 and Q5_1, whose min for each 32 columns would cost as much as the
// product, and NVFP4, whose scales are floats.
bool int16_gradient_supported(ggml_type type);

// True where the kernel is compiled for a CPU that multiplies int16 faster than floats (AVX2 and later on x86).
// Elsewhere it is right but slower than weight_input_gradient().
bool int16_gradient_fast();

// dX[t, i] = sum_o dY[t, o] * W[o, i], added to dX where `accumulate`.
//   dy  [n_tokens, n_out]    dx  [n_tokens, n_in]
// A value of dY that is not finite makes all of its token's dX NaN.
void int16_input_gradient(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, int64_t n_out,
                          const float * dy, int64_t dy_row_stride, int64_t n_tokens, float * dx, int64_t dx_row_stride,
                          bool accumulate, int ith, int nth);

// The same for rows of larger matrices, which are gathered and scattered: token t is row dy_rows[t] of dY and
// dx_rows[t] of dX. So many columns of dX, in multiples of 16, at a time: it has the same bits for every division.
void int16_input_gradient_rows(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_out, const float * dy,
                               int64_t dy_row_stride, const int32_t * dy_rows, int64_t n_tokens, float * dx,
                               int64_t dx_row_stride, const int32_t * dx_rows, bool accumulate, const Range & columns);

}  // namespace ggtune::kernels
