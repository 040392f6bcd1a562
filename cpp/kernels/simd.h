// Portable SIMD on GCC/Clang vector extensions: the width follows the instruction set the file is compiled for.
// Private to cpp/kernels.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

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
    return x - Vec{};  // x + 0 would not be x where x is -0, and so costs an addition
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

namespace detail {

#if defined(__clang__)
template <int... lanes>
inline Vec shuffle(Vec a, Vec b, std::integer_sequence<int, lanes...>) {
    return __builtin_shufflevector(a, b, lanes...);
}
#else
template <int... lanes>
inline Vec shuffle(Vec a, Vec b, std::integer_sequence<int, lanes...>) {
    return __builtin_shuffle(a, b, IntVec{lanes...});
}
#endif

// Lane i of what halves_added() adds up. Lanes of its second operand are numbered from kWidth on.
template <int size, bool upper, int... i>
constexpr auto half_lanes(std::integer_sequence<int, i...>) {
    return std::integer_sequence<int, (i / size % 2 * kWidth + i / (2 * size) * 2 * size + (upper ? size : 0) +
                                       i % size)...>();
}

// Groups of 2 * size lanes become groups of `size` lanes with the same sums: those of a at even, those of b at odd
// places.
template <int size>
inline Vec halves_added(Vec a, Vec b) {
    constexpr auto kLanes = std::make_integer_sequence<int, kWidth>();
    return shuffle(a, b, half_lanes<size, false>(kLanes)) + shuffle(a, b, half_lanes<size, true>(kLanes));
}

template <int stride, int... i>
constexpr auto every_lane(std::integer_sequence<int, i...>) {
    return std::integer_sequence<int, (i * stride % kWidth)...>();
}

// The sums of n groups of lanes, of which `size` lanes at the start of each are to be added.
template <int n, int size = kWidth / n>
inline void store_group_sums(Vec v, float * sums) {
    if constexpr (size > 1) {
        store_group_sums<n, size / 2>(halves_added<size / 2>(v, v), sums);
    } else {
        constexpr auto kStarts = every_lane<kWidth / n>(std::make_integer_sequence<int, kWidth>());
        const Vec first = shuffle(v, v, kStarts);
        std::memcpy(sums, &first, n * sizeof(float));
    }
}

}  // namespace detail

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

// Of n vectors, 1, 2, 4 or 8, which stay in registers.
template <int n>
inline void horizontal_sums(const Vec (&v)[n], float * sums) {
    static_assert(n == 1 || n == 2 || n == 4 || n == 8);
    using detail::halves_added;
    constexpr int kHalf = kWidth / 2;
    if constexpr (n == 1) {
        detail::store_group_sums<1>(v[0], sums);
    } else if constexpr (n == 2) {
        detail::store_group_sums<2>(halves_added<kHalf>(v[0], v[1]), sums);
    } else if constexpr (n == 8) {
        horizontal_sums<4>({v[0], v[1], v[2], v[3]}, sums);
        horizontal_sums<4>({v[4], v[5], v[6], v[7]}, sums + 4);
    } else {
        const Vec even = halves_added<kHalf>(v[0], v[2]), odd = halves_added<kHalf>(v[1], v[3]);
        detail::store_group_sums<4>(halves_added<kHalf / 2>(even, odd), sums);
    }
}

inline float horizontal_max(Vec v) {
    float best = v[0];
    for (int i = 1; i < kWidth; ++i) {
        best = v[i] > best ? v[i] : best;
    }
    return best;
}

}  // namespace ggtune::kernels::simd
