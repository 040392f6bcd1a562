#include "kernels/gemm.h"

#include <utility>

#include "kernels/blocked_product.h"
#include "kernels/skinny_product.h"
#include "kernels/transpose.h"

namespace ggtune::kernels {
namespace {

using detail::kPanelCols;
using detail::kWidth;
using detail::panel_width;
using detail::round_up;

// The tile B[0 .. k, 0 .. cols] into panels (see blocked_product.h).
void pack_panels(const Operand & b, int64_t k, int64_t cols, float * packed) {
    for (int64_t j0 = 0; j0 < cols; j0 += kPanelCols) {
        const int64_t width = panel_width(cols, j0);
        const int64_t filled = std::min(width, cols - j0);
        const float * source = b.data + j0 * b.col_stride;
        if (b.col_stride == 1) {
            for (int64_t p = 0; p < k; ++p) {
                std::memcpy(packed + p * width, source + p * b.row_stride, static_cast<size_t>(filled) * sizeof(float));
            }
        } else if (b.row_stride == 1) {
            detail::transpose_copy(source, b.col_stride, filled, k, packed, width);
        } else {
            for (int64_t j = 0; j < filled; ++j) {
                for (int64_t p = 0; p < k; ++p) {
                    packed[p * width + j] = source[p * b.row_stride + j * b.col_stride];
                }
            }
        }
        for (int64_t p = 0; p < k; ++p) {
            std::fill(packed + p * width + filled, packed + (p + 1) * width, 0.0f);
        }
        packed += k * width;
    }
}

double packing_cycles(const Operand & b) {
    return b.col_stride == 1 ? 0.25 : b.row_stride == 1 ? 0.4 : 1.0;
}

// Estimated cycles per unit of k with the n columns of B as the vector dimension; the factors are measured ones.
double estimated_cycles(int64_t m, int64_t n, int64_t k, const Operand & a, const Operand & b, int64_t c_col_stride) {
    const auto columns = static_cast<double>(round_up(n, kWidth));
    const double compute = static_cast<double>(m) * columns / kWidth;
    const double pack = packing_cycles(b) * columns + (a.col_stride == 1 ? 0.1 : 0.5) * static_cast<double>(m);
    const double store = (c_col_stride == 1 ? 0.2 : 2.0) * static_cast<double>(m) * columns / static_cast<double>(k);
    return compute + pack + store;
}

void scale(int64_t m, int64_t n, float beta, float * c, int64_t c_row_stride, int64_t c_col_stride, int ith, int nth) {
    const Range rows = split_range(m, ith, nth);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            float & element = c[i * c_row_stride + j * c_col_stride];
            element = beta == 0.0f ? 0.0f : beta * element;
        }
    }
}

}  // namespace

void gemm(int64_t m, int64_t n, int64_t k, Operand a, Operand b, float alpha, float beta, float * c,
          int64_t c_row_stride, int64_t c_col_stride, int ith, int nth) {
    if (k == 0) {
        scale(m, n, beta, c, c_row_stride, c_col_stride, ith, nth);
        return;
    }
    if (detail::is_skinny(n, m, k, a.transposed())) {
        detail::skinny_product(n, m, k, b.transposed(), a.transposed(), alpha, beta, c, c_col_stride, c_row_stride, ith,
                               nth);
        return;
    }
    if (detail::is_skinny(m, n, k, b)) {
        detail::skinny_product(m, n, k, a, b, alpha, beta, c, c_row_stride, c_col_stride, ith, nth);
        return;
    }
    // C^T = B^T A^T where that leaves less padding, packing or scattered stores
    if (estimated_cycles(n, m, k, b.transposed(), a.transposed(), c_row_stride) <
        estimated_cycles(m, n, k, a, b, c_col_stride)) {
        std::swap(m, n);
        std::swap(a, b);
        a = a.transposed();
        b = b.transposed();
        std::swap(c_row_stride, c_col_stride);
    }
    const detail::Part part = detail::split_product(m, n, {kWidth, packing_cycles(b)}, ith, nth);
    detail::blocked_product({m, n, k, a, alpha, beta, c, c_row_stride, c_col_stride}, part,
                            [&b](int64_t k0, int64_t k_size, int64_t col0, int64_t cols, float * packed) {
                                const float * tile = b.data + k0 * b.row_stride + col0 * b.col_stride;
                                pack_panels({tile, b.row_stride, b.col_stride}, k_size, cols, packed);
                            });
}

void gemm_reference(int64_t m, int64_t n, int64_t k, Operand a, Operand b, float alpha, float beta, float * c,
                    int64_t c_row_stride, int64_t c_col_stride) {
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            double sum = 0.0;
            for (int64_t p = 0; p < k; ++p) {
                sum += static_cast<double>(a.data[i * a.row_stride + p * a.col_stride]) *
                       b.data[p * b.row_stride + j * b.col_stride];
            }
            float & element = c[i * c_row_stride + j * c_col_stride];
            const double kept = beta == 0.0f ? 0.0 : static_cast<double>(beta) * element;
            element = static_cast<float>(alpha * sum + kept);
        }
    }
}

}  // namespace ggtune::kernels
