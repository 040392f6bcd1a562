// What the unpacking of all weight types shares. Private to cpp/kernels.
#pragma once

#include <cstdint>

#include "kernels/half.h"
#include "kernels/int8_unpack.h"

namespace ggtune::kernels::detail {

// The Int8Format of a type that a struct describes: values per block, bytes per block, the format's numbers, the
// largest integer of a weight, and the unpacking of one block, which returns its scale. A block that is one sub-block
// has no factor.

template <class Type>
void unpack_row(const uint8_t * src, int64_t n, uint8_t * values, float * scales, float * mins) {
    constexpr int kSubBlocks = Type::kValues / Type::kSubBlock;
    for (int64_t i = 0; i < n; i += Type::kValues) {
        int16_t factors[kSubBlocks];
        const float d = Type::unpack(src, values + i, factors, mins);
        for (int j = 0; j < kSubBlocks; ++j) {
            scales[j] = kSubBlocks == 1 ? d : d * static_cast<float>(factors[j]);
        }
        scales += kSubBlocks;
        mins += Type::kHasMin ? kSubBlocks : 0;
        src += Type::kBytes;
    }
}

template <class Type>
float unpack_block(const uint8_t * src, uint8_t * values, int16_t * factors, float * mins) {
    if (Type::kValues == Type::kSubBlock) {
        *factors = 1;
    }
    return Type::unpack(src, values, factors, mins);
}

template <class Type>
inline constexpr Int8Format kFormat = {Type::kSubBlock,    Type::kOffset,    Type::kHasMin,
                                       Type::kLargestByte, unpack_row<Type>, Type::kValues,
                                       Type::kCenter,      Type::kLargest,   unpack_block<Type>};

}  // namespace ggtune::kernels::detail
