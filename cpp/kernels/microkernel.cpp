#include "kernels/microkernel.h"

#include <array>
#include <utility>

namespace ggtune::kernels::detail {
namespace {

using simd::kPanelVectors;
using simd::kWidth;
using simd::Vec;

// Blocks at the right edge of C, or whose columns are not contiguous in it; product [n_rows][row_width].
void write_scattered(const BlockOutput & out, const float * product, int n_rows, int row_width) {
    for (int i = 0; i < n_rows; ++i) {
        for (int64_t j = 0; j < out.n_cols; ++j) {
            float & element = out.c[i * out.row_stride + j * out.col_stride];
            const float scaled = out.alpha * product[i * row_width + j];
            element = out.beta == 0.0f ? scaled : scaled + out.beta * element;
        }
    }
}

constexpr int64_t kRowsAhead = 8;

template <int n_vectors, int n_rows, bool packed>
void block(int64_t k, const float * a, int64_t a_row_stride, int64_t a_col_stride, const float * b,
           int64_t b_row_stride, const BlockOutput & out) {
    if constexpr (packed) {
        a_row_stride = 1;
        a_col_stride = n_rows;
    }
    Vec sum[n_rows][n_vectors] = {};
    for (int64_t p = 0; p < k; ++p) {
        Vec panel[n_vectors];
#pragma GCC unroll 4
        for (int v = 0; v < n_vectors; ++v) {
            panel[v] = simd::load(b + v * kWidth);
            if constexpr (!packed) {  // skinny_product() leaves B as it came, with rows too far apart to be foreseen
                __builtin_prefetch(b + v * kWidth + kRowsAhead * b_row_stride);
            }
        }
#pragma GCC unroll 12
        for (int i = 0; i < n_rows; ++i) {
            const Vec element = simd::splat(a[i * a_row_stride]);
#pragma GCC unroll 4
            for (int v = 0; v < n_vectors; ++v) {
                sum[i][v] += element * panel[v];
            }
        }
        a += a_col_stride;
        b += b_row_stride;
    }
    constexpr int kRowWidth = n_vectors * kWidth;
    if (out.col_stride != 1 || out.n_cols < kRowWidth) {
        float product[n_rows * kRowWidth];
        std::memcpy(product, sum, sizeof product);
        write_scattered(out, product, n_rows, kRowWidth);
        return;
    }
#pragma GCC unroll 12
    for (int i = 0; i < n_rows; ++i) {
        float * c = out.c + i * out.row_stride;
#pragma GCC unroll 4
        for (int v = 0; v < n_vectors; ++v) {
            const Vec scaled = out.alpha * sum[i][v];
            simd::store(c + v * kWidth, out.beta == 0.0f ? scaled : scaled + out.beta * simd::load(c + v * kWidth));
        }
    }
}

constexpr int kMaxRows = max_block_rows(1);
using KernelTable = std::array<std::array<BlockKernel, kMaxRows>, kPanelVectors>;

template <int n_vectors, bool packed, int... rows_minus_one>
constexpr std::array<BlockKernel, kMaxRows> kernels_by_rows(std::integer_sequence<int, rows_minus_one...>) {
    return {block<n_vectors, rows_minus_one + 1, packed>...};
}

template <bool packed, int... vectors_minus_one>
constexpr KernelTable kernel_table(std::integer_sequence<int, vectors_minus_one...>) {
    return {kernels_by_rows<vectors_minus_one + 1, packed>(
        std::make_integer_sequence<int, max_block_rows(vectors_minus_one + 1)>{})...};
}

constexpr KernelTable kPackedKernels = kernel_table<true>(std::make_integer_sequence<int, kPanelVectors>{});
constexpr KernelTable kStridedKernels = kernel_table<false>(std::make_integer_sequence<int, kPanelVectors>{});

}  // namespace

BlockKernel block_kernel(int n_vectors, int n_rows, bool packed) {
    return (packed ? kPackedKernels : kStridedKernels)[n_vectors - 1][n_rows - 1];
}

}  // namespace ggtune::kernels::detail
