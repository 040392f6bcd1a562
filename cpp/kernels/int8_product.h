// Y = X * W^T with a frozen quantized weight W, for many tokens at a time, by int8 dot products: X is quantized to
// int8 with a scale for every 32 or 256 values of a token, a tile of W is unpacked to bytes once and serves all tokens.
// What X was quantized to serves all weights of the same int8_activation_block().
//
// W  ne = [n_in, n_out]: row o holds the n_in weights of output o in w_row_bytes bytes; n_in is a multiple of
// ggml_blck_size(type), and int8_product_supported(type). Row strides are in floats, rows are contiguous.
// Thread ith of nth does its own part, without a barrier inside; the result has the same bits for every nth.
// The error is that of rounding X, as in ggml's own quantized products.
#pragma once

#include <ggml.h>

#include <cstddef>
#include <cstdint>

#include "kernels/partition.h"

namespace ggtune::kernels {

// True for the types that int8_forward() takes: all of ggml's quantized weights.
bool int8_product_supported(ggml_type type);

// True where the kernels are compiled for a CPU with int8 dot products (AVX-512 VNNI, AVX-VNNI, Arm DotProd) or AVX2,
// which needs three instructions for one; not for AVX-512 without VNNI. Elsewhere int8_forward() is right but slower
// than weight_forward().
bool int8_product_fast();

// Values of a token that share a scale, 32 or 256, as in ggml's own quantized products.
int64_t int8_activation_block(ggml_type type);

// Quantized tokens lie in blocks of so many: int8_token_blocks() blocks of int8_token_block_bytes() bytes.
int64_t int8_token_blocks(int64_t n_tokens);
size_t int8_token_block_bytes(int64_t n_in, int64_t activation_block);

//   x  [n_tokens, n_in]
// A value that is not finite makes all outputs of its token NaN.
void int8_quantize(const float * x, int64_t x_row_stride, int64_t n_in, int64_t activation_block, int64_t n_tokens,
                   void * quantized, int ith, int nth);

// Y[t, o] = sum_i X[t, i] * W[o, i].
//   quantized  X from int8_quantize() with int8_activation_block(type)    y  [n_tokens, n_out]
void int8_forward(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, int64_t n_out,
                  const void * quantized, int64_t n_tokens, float * y, int64_t y_row_stride, int ith, int nth);

// The same for rows of larger matrices, which are gathered and scattered: token t is row x_rows[t] of X and y_rows[t]
// of Y. So many blocks of tokens, and so many columns of Y, at a time: it has the same bits for every division.
void int8_quantize_rows(const float * x, int64_t x_row_stride, const int32_t * x_rows, int64_t n_in,
                        int64_t activation_block, int64_t n_tokens, void * quantized, const Range & blocks);
void int8_forward_rows(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, const void * quantized,
                       int64_t n_tokens, float * y, int64_t y_row_stride, const int32_t * y_rows,
                       const Range & columns);

}  // namespace ggtune::kernels
