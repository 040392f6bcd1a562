// Quantized weights as unsigned bytes with scales, the form that integer dot products take. Private to cpp/kernels.
#pragma once

#include <ggml.h>

#include <cstdint>

namespace ggtune::kernels::detail {

// How a weight type is written as bytes: weight = scale * (value - offset) - min, with one scale and one min for each
// sub_block consecutive values of a row.
struct Int8Format {
    int64_t sub_block;  // 16 or 32
    int32_t offset;
    bool has_min;
    int32_t largest_value;  // as bytes: none that a file can hold is larger
    // Unpacks n values stored at src, n a multiple of the type's block: values [n], scales and mins [n / sub_block];
    // mins are left alone unless has_min.
    void (*unpack)(const uint8_t * src, int64_t n, uint8_t * values, float * scales, float * mins);

    // The same with integers alone under each scale: scale = block_scale * factor, with a block scale for each `block`
    // values (32 to 256) and a factor for each sub_block. Of one block; returns the block scale. Null where the scales
    // of a block are no integer multiples of one (NVFP4).
    int64_t block;
    int32_t center;   // of the values: the offset where there are no mins
    int32_t largest;  // of |factor * (value - center)|
    float (*unpack_block)(const uint8_t * src, uint8_t * values, int16_t * factors, float * mins);
};

// The format of a type, nullptr for a type that has none.
const Int8Format * int8_format(ggml_type type);

}  // namespace ggtune::kernels::detail
