// float32 to bf16 and back. Private to cpp/kernels.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#include <immintrin.h>
#endif

namespace ggtune::kernels::detail {

using Bf16 = uint16_t;

inline float to_float(Bf16 value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

// Rounded to the nearest, ties to even; NaN stays NaN.
inline Bf16 to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return static_cast<Bf16>((is_nan ? bits | 0x400000u : rounded) >> 16);
}

// 32 values
inline void round_to_bf16(const float * from, Bf16 * to) {
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
    const __m512bh rounded = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from));
    std::memcpy(to, &rounded, sizeof rounded);
#else
    for (int i = 0; i < 32; ++i) {
        to[i] = to_bf16(from[i]);
    }
#endif
}

}  // namespace ggtune::kernels::detail
