// Sums over a row: single precision within a chunk, double across chunks. Private to cpp/kernels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/simd.h"

namespace ggtune::kernels::detail {

inline constexpr int64_t kChunk = 1024;

// Sum over i < n of f(get), where get(p, fill) is the vector of p at i. Lanes past n hold `fill`: f must be 0 there.
template <class F>
inline double reduce_sum(int64_t n, F && f) {
    using simd::kWidth;
    double total = 0.0;
    for (int64_t begin = 0; begin < n; begin += kChunk) {
        const int64_t end = std::min(n, begin + kChunk);
        simd::Vec sum[2] = {};
        int64_t i = begin;
        for (; i + 2 * kWidth <= end; i += 2 * kWidth) {
            sum[0] += f([i](const float * p, float) { return simd::load(p + i); });
            sum[1] += f([i](const float * p, float) { return simd::load(p + i + kWidth); });
        }
        for (; i < end; i += kWidth) {
            const int64_t lanes = std::min<int64_t>(kWidth, end - i);
            sum[0] += f([i, lanes](const float * p, float fill) { return simd::load_partial(p + i, lanes, fill); });
        }
        total += static_cast<double>(simd::horizontal_sum(sum[0] + sum[1]));
    }
    return total;
}

inline double sum(const float * a, int64_t n) {
    return reduce_sum(n, [a](auto get) { return get(a, 0.0f); });
}

inline double dot(const float * a, const float * b, int64_t n) {
    return reduce_sum(n, [a, b](auto get) { return get(a, 0.0f) * get(b, 0.0f); });
}

// sum((a - a_mean) * (b - b_mean))
inline double centered_dot(const float * a, float a_mean, const float * b, float b_mean, int64_t n) {
    return reduce_sum(n, [=](auto get) { return (get(a, a_mean) - a_mean) * (get(b, b_mean) - b_mean); });
}

}  // namespace ggtune::kernels::detail
