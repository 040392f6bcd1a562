#include "kernels/skinny_product.h"

#include <algorithm>
#include <vector>

#include "kernels/microkernel.h"
#include "kernels/partition.h"
#include "kernels/simd.h"

namespace ggtune::kernels::detail {
namespace {

using simd::kWidth;
using simd::Vec;

// Measured: with more rows of A the blocked product is as fast, with less of B packing it costs little.
constexpr int64_t kMostDotRows = 8;
constexpr int64_t kMostRows = 16;
constexpr int64_t kLeast = 32;

// --- B with contiguous columns: dot products

// A register block: so many rows of A times so many columns of B.
constexpr int kDotRows = 4;
constexpr int kDotCols = simd::kPanelVectors == 2 ? 2 : 4;

// Of a dot product so much at a time: the columns of B stay in the L1 cache for all rows of A.
constexpr int64_t kDotK = 512;

// Lane by lane sums of rows of A times columns of B.
using Sums = Vec[kMostDotRows][kDotCols];

template <int n_rows, int n_cols>
void add_dots(int64_t k, const float * a, int64_t a_row_stride, const float * b, int64_t b_col_stride,
              Vec (*sums)[kDotCols]) {
    Vec sum[n_rows][n_cols];
    for (int i = 0; i < n_rows; ++i) {
        for (int j = 0; j < n_cols; ++j) {
            sum[i][j] = sums[i][j];
        }
    }
    const auto add = [&](auto load) {
        Vec column[n_cols];
#pragma GCC unroll 4
        for (int j = 0; j < n_cols; ++j) {
            column[j] = load(b + j * b_col_stride);
        }
#pragma GCC unroll 4
        for (int i = 0; i < n_rows; ++i) {
            const Vec row = load(a + i * a_row_stride);
#pragma GCC unroll 4
            for (int j = 0; j < n_cols; ++j) {
                sum[i][j] += row * column[j];
            }
        }
    };
    int64_t p = 0;
    for (; p + kWidth <= k; p += kWidth) {
        add([p](const float * x) { return simd::load(x + p); });
    }
    if (p < k) {
        add([p, k](const float * x) { return simd::load_partial(x + p, k - p); });
    }
    for (int i = 0; i < n_rows; ++i) {
        for (int j = 0; j < n_cols; ++j) {
            sums[i][j] = sum[i][j];
        }
    }
}

template <int n_cols>
void add_dots(int64_t m, int64_t k, const float * a, int64_t a_row_stride, const float * b, int64_t b_col_stride,
              Sums & sums) {
    for (int64_t i = 0; i < m; i += kDotRows) {
        const float * rows = a + i * a_row_stride;
        switch (m - i) {
            case 1:
                add_dots<1, n_cols>(k, rows, a_row_stride, b, b_col_stride, sums + i);
                break;
            case 2:
                add_dots<2, n_cols>(k, rows, a_row_stride, b, b_col_stride, sums + i);
                break;
            case 3:
                add_dots<3, n_cols>(k, rows, a_row_stride, b, b_col_stride, sums + i);
                break;
            default:
                add_dots<kDotRows, n_cols>(k, rows, a_row_stride, b, b_col_stride, sums + i);
        }
    }
}

void dot_product(int64_t m, int64_t k, const Operand & a, const Operand & b, float alpha, float beta, float * c,
                 int64_t c_row_stride, int64_t c_col_stride, const Range & cols) {
    // A [m, k], each row at the beginning of a vector
    struct alignas(64) Aligned {
        float values[16];
    };
    thread_local std::vector<Aligned> buffer;
    const int64_t row_stride = (k + 15) / 16 * 16;
    buffer.resize(static_cast<size_t>(m * row_stride / 16));
    auto * rows = reinterpret_cast<float *>(buffer.data());
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t p = 0; p < k; ++p) {
            rows[i * row_stride + p] = a.data[i * a.row_stride + p * a.col_stride];
        }
    }
    for (int64_t col = cols.begin; col < cols.end; col += kDotCols) {
        const int64_t n_cols = std::min<int64_t>(kDotCols, cols.end - col);
        Sums sums = {};
        for (int64_t k0 = 0; k0 < k; k0 += kDotK) {
            const int64_t n = std::min(kDotK, k - k0);
            if (n_cols == kDotCols) {
                add_dots<kDotCols>(m, n, rows + k0, row_stride, b.data + col * b.col_stride + k0, b.col_stride, sums);
                continue;
            }
            for (int64_t j = 0; j < n_cols; ++j) {
                Sums one;
                for (int64_t i = 0; i < m; ++i) {
                    one[i][0] = sums[i][j];
                }
                add_dots<1>(m, n, rows + k0, row_stride, b.data + (col + j) * b.col_stride + k0, b.col_stride, one);
                for (int64_t i = 0; i < m; ++i) {
                    sums[i][j] = one[i][0];
                }
            }
        }
        for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < n_cols; ++j) {
                float & element = c[i * c_row_stride + (col + j) * c_col_stride];
                const float product = alpha * simd::horizontal_sum(sums[i][j]);
                element = beta == 0.0f ? product : product + beta * element;
            }
        }
    }
}

// --- B with contiguous rows: multiples of rows

constexpr int64_t kPanelCols = simd::kPanelVectors * kWidth;
// The blocks of gemm(): the partial sums are the same ones.
constexpr int64_t kRowsK = 256;

void row_product(int64_t m, int64_t k, const Operand & a, const Operand & b, float alpha, float beta, float * c,
                 int64_t c_row_stride, int64_t c_col_stride, const Range & cols) {
    for (int64_t col = cols.begin; col < cols.end; col += kPanelCols) {
        const int64_t n_cols = std::min(kPanelCols, cols.end - col);
        const int64_t n_vectors = (n_cols + kWidth - 1) / kWidth;
        const int64_t block_rows = max_block_rows(simd::kPanelVectors);
        thread_local std::vector<float> panel;  // of columns that do not fill a vector
        for (int64_t k0 = 0; k0 < k; k0 += kRowsK) {
            const int64_t n = std::min(kRowsK, k - k0);
            const float * rows = b.data + k0 * b.row_stride + col;
            int64_t row_stride = b.row_stride;
            if (n_cols % kWidth != 0) {
                panel.assign(static_cast<size_t>(n * n_vectors * kWidth), 0.0f);
                for (int64_t p = 0; p < n; ++p) {
                    std::copy_n(rows + p * row_stride, n_cols, panel.data() + p * n_vectors * kWidth);
                }
                rows = panel.data();
                row_stride = n_vectors * kWidth;
            }
            for (int64_t i = 0; i < m; i += block_rows) {
                const int64_t n_rows = std::min(block_rows, m - i);
                block_kernel(static_cast<int>(n_vectors), static_cast<int>(n_rows), false)(
                    n, a.data + i * a.row_stride + k0 * a.col_stride, a.row_stride, a.col_stride, rows, row_stride,
                    {c + i * c_row_stride + col * c_col_stride, c_row_stride, c_col_stride, n_cols, alpha,
                     k0 == 0 ? beta : 1.0f});
            }
        }
    }
}

}  // namespace

bool is_skinny(int64_t m, int64_t n, int64_t k, const Operand & b) {
    const int64_t most = b.row_stride == 1 ? kMostDotRows : b.col_stride == 1 ? kMostRows : 0;
    return m > 0 && m <= most && n >= kLeast && k >= kLeast;
}

void skinny_product(int64_t m, int64_t n, int64_t k, const Operand & a, const Operand & b, float alpha, float beta,
                    float * c, int64_t c_row_stride, int64_t c_col_stride, int ith, int nth) {
    const bool dots = b.row_stride == 1;
    const Range cols = split_range(n, ith, nth, dots ? kDotCols : kWidth);
    if (cols.size() > 0) {
        (dots ? dot_product : row_product)(m, k, a, b, alpha, beta, c, c_row_stride, c_col_stride, cols);
    }
}

}  // namespace ggtune::kernels::detail
