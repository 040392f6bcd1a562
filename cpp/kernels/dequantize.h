// Rows of any ggml weight type as floats.
#pragma once

#include <ggml.h>

#include <cstdint>

namespace ggtune::kernels {

// True for F32 and for every type that ggml can turn into floats (not for integers, nor for the Q8_1 and Q8_K of dot
// products).
bool can_dequantize(ggml_type type);

// dst[0..n) = the n values stored at src; n is a multiple of ggml_blck_size(type), and can_dequantize(type).
void dequantize_row(ggml_type type, const void * src, float * dst, int64_t n);

}  // namespace ggtune::kernels
