// Portable SIMD on GCC/Clang vector extensions: the width follows the instruction set the file is compiled for.
// Private to cpp/kernels.
#pragma once

#include <cstdint>
#include <cstring>

namespace ggtune::kernels::simd {

// kWidth: floats per vector register. kPanelVectors: vectors in one row of a register block (see microkernel.cpp).
#if defined(__AVX512F__)
inline constexpr int kWidth = 16;
inline constexpr int kPanelVectors = 4;
#elif defined(__AVX__)
inline constexpr int kWidth = 8;
inline constexpr int kPanelVectors = 2;
#elif defined(__aarch64__)
inline constexpr int kWidth = 4;
inline constexpr int kPanelVectors = 4;
#else
inline constexpr int kWidth = 4;
inline constexpr int kPanelVectors = 2;
#endif

typedef float Vec __attribute__((vector_size(kWidth * sizeof(float))));
typedef int32_t IntVec __attribute__((vector_size(kWidth * sizeof(int32_t))));
typedef uint32_t UintVec __attribute__((vector_size(kWidth * sizeof(uint32_t))));

inline Vec load(const float * p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float * p, Vec v) {
    std::memcpy(p, &v, sizeof v);
}

inline Vec splat(float x) {
    return Vec{} + x;
}

// The first n < kWidth lanes; the others are `fill`.
inline Vec load_partial(const float * p, int64_t n, float fill = 0.0f) {
    Vec v = splat(fill);
    std::memcpy(&v, p, static_cast<size_t>(n) * sizeof(float));
    return v;
}

inline void store_partial(float * p, Vec v, int64_t n) {
    std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(float));
}

inline Vec select(IntVec mask, Vec if_true, Vec if_false) {
    return (Vec)((mask & (IntVec)if_true) | (~mask & (IntVec)if_false));
}

inline Vec max(Vec a, Vec b) {
    return select(a > b, a, b);
}

// The upper half is added to the lower one until one lane is left.
template <int n = kWidth>
inline float horizontal_sum(const float * lanes) {
    if constexpr (n == 1) {
        return *lanes;
    } else {
        typedef float Half __attribute__((vector_size(n / 2 * sizeof(float))));
        Half low, high;
        std::memcpy(&low, lanes, sizeof low);
        std::memcpy(&high, lanes + n / 2, sizeof high);
        low += high;
        return horizontal_sum<n / 2>(reinterpret_cast<const float *>(&low));
    }
}

inline float horizontal_sum(Vec v) {
    return horizontal_sum(reinterpret_cast<const float *>(&v));
}

inline float horizontal_max(Vec v) {
    float best = v[0];
    for (int i = 1; i < kWidth; ++i) {
        best = v[i] > best ? v[i] : best;
    }
    return best;
}

}  // namespace ggtune::kernels::simd
