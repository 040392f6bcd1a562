// Quantized weights as bf16. Private to cpp/kernels.
#pragma once

#include <ggml.h>

#include <cstdint>

#include "kernels/bf16.h"

namespace ggtune::kernels::detail {

// n values stored at src, as dequantize_row() gives them, rounded to bf16: each 32 at `to` and `stride` values further.
// n is a multiple of ggml_blck_size(type); what is missing to a multiple of 32 is zeros.
void unpack_bf16(ggml_type type, const void * src, int64_t n, Bf16 * to, int64_t stride);

// One block of a type, whose 32 or 256 values become 32 bf16 at `to` and each `stride` further; nullptr for types and
// CPUs that have no such function.
using UnpackBlock = void (*)(const uint8_t * src, Bf16 * to, int64_t stride);
UnpackBlock vector_unpack(ggml_type type);

}  // namespace ggtune::kernels::detail
