// Products of matrices that fit into the caches of one thread. Private to cpp/kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/gemm.h"
#include "kernels/simd.h"

namespace ggtune::kernels::detail {

// Which elements of A are not zero: all, or those with k <= i, or those with k >= i.
enum class Filled { all, lower, upper };

inline constexpr int kSmallRows = 4;

template <int vectors>
inline void small_product_tile(int64_t k_begin, int64_t k_end, const Operand & a, const float * b, int64_t b_stride,
                               bool add, float * c, int64_t c_stride) {
    using simd::Vec;
    Vec sums[kSmallRows][vectors] = {};
    for (int64_t k = k_begin; k < k_end; ++k) {
        Vec row[vectors];
        for (int v = 0; v < vectors; ++v) {
            row[v] = simd::load(b + k * b_stride + v * simd::kWidth);
        }
        for (int r = 0; r < kSmallRows; ++r) {
            const Vec factor = simd::splat(a.data[r * a.row_stride + k * a.col_stride]);
            for (int v = 0; v < vectors; ++v) {
                sums[r][v] += factor * row[v];
            }
        }
    }
    for (int r = 0; r < kSmallRows; ++r) {
        for (int v = 0; v < vectors; ++v) {
            float * to = c + r * c_stride + v * simd::kWidth;
            simd::store(to, add ? simd::load(to) + sums[r][v] : sums[r][v]);
        }
    }
}

// C = A B, or C += A B. a [m, k], m a multiple of kSmallRows; b [k, n] and c [m, n] by rows, n a multiple of
// simd::kWidth. C must not overlap A or B.
inline void small_product(int64_t m, int64_t n, int64_t k, Operand a, const float * b, int64_t b_stride, bool add,
                          float * c, int64_t c_stride, Filled filled = Filled::all) {
    const auto columns = [&](auto vectors, int64_t j) {
        for (int64_t i = 0; i < m; i += kSmallRows) {
            const int64_t begin = filled == Filled::upper ? std::min(i, k) : 0;
            const int64_t end = filled == Filled::lower ? std::min(i + kSmallRows, k) : k;
            const Operand rows = {a.data + i * a.row_stride, a.row_stride, a.col_stride};
            small_product_tile<decltype(vectors)::value>(begin, end, rows, b + j, b_stride, add, c + i * c_stride + j,
                                                         c_stride);
        }
        return j + decltype(vectors)::value * simd::kWidth;
    };
    int64_t j = 0;
    while (n - j >= 4 * simd::kWidth) {
        j = columns(std::integral_constant<int, 4>(), j);
    }
    while (n - j >= 2 * simd::kWidth) {
        j = columns(std::integral_constant<int, 2>(), j);
    }
    if (j < n) {
        columns(std::integral_constant<int, 1>(), j);
    }
}

}  // namespace ggtune::kernels::detail
