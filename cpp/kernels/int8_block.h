// What the unpacking of all weight types shares. Private to cpp/kernels.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/int8_unpack.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace ggtune::kernels::detail {

// IEEE half precision, little-endian, at src; a function call per block would cost more than the block. Subnormal
// halves are frequent as scales of K-quants: no instruction may meet them as subnormal floats, which cost 100 cycles
// and more.
inline float half_at(const uint8_t * src) {
    uint16_t half;
    std::memcpy(&half, src, sizeof half);
#if defined(__F16C__)
    return _cvtsh_ss(half);
#elif defined(__aarch64__)
    __fp16 value;
    std::memcpy(&value, &half, sizeof value);
    return value;
#else
    constexpr uint32_t kExponent = 0x0f800000u, kBias = 112u << 23;
    uint32_t bits = (half & 0x7fffu) << 13;
    const uint32_t exponent = bits & kExponent;
    bits += exponent == kExponent ? 2 * kBias : kBias;  // infinity and NaN have the largest exponent
    float value;
    if (exponent == 0) {
        // with an implicit one, which is taken away again
        constexpr float kSmallestNormal = 0x1p-14f;
        bits += 1u << 23;
        std::memcpy(&value, &bits, sizeof value);
        value -= kSmallestNormal;
    } else {
        std::memcpy(&value, &bits, sizeof value);
    }
    return (half & 0x8000u) != 0 ? -value : value;
#endif
}

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
inline constexpr Int8Format kFormat = {Type::kSubBlock, Type::kOffset, Type::kHasMin,  unpack_row<Type>,
                                       Type::kValues,   Type::kCenter, Type::kLargest, unpack_block<Type>};

}  // namespace ggtune::kernels::detail
