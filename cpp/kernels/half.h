// IEEE half precision to float32. Private to cpp/kernels.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/simd.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace ggtune::kernels::detail {

// Little-endian, at src; a function call per block of a weight would cost more than the block. Subnormal halves are
// frequent as scales of K-quants: no instruction may meet them as subnormal floats, which cost 100 cycles and more.
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

// simd::kWidth of them.
inline simd::Vec load_halves(const uint16_t * src) {
#if defined(__AVX512F__)
    return (simd::Vec)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(src)));
#elif defined(__F16C__)
    return (simd::Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(src)));
#else
    float values[simd::kWidth];
    for (int i = 0; i < simd::kWidth; ++i) {
        values[i] = half_at(reinterpret_cast<const uint8_t *>(src + i));
    }
    return simd::load(values);
#endif
}

}  // namespace ggtune::kernels::detail
