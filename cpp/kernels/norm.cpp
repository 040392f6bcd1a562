#include "kernels/norm.h"

#include <cmath>

#include "kernels/partition.h"
#include "kernels/reduce.h"

namespace ggtune::kernels {

void rms_norm_backward(int64_t n_rows, int64_t n_cols, const float * x, int64_t x_row_stride, const float * dy,
                       int64_t dy_row_stride, float * dx, int64_t dx_row_stride, float eps, int ith, int nth) {
    const Range rows = split_range(n_rows, ith, nth);
    const auto n = static_cast<double>(n_cols);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float * x_row = x + row * x_row_stride;
        const float * dy_row = dy + row * dy_row_stride;
        float * dx_row = dx + row * dx_row_stride;
        const double mean_square = detail::dot(x_row, x_row, n_cols) / n + static_cast<double>(eps);
        const auto scale = static_cast<float>(1.0 / std::sqrt(mean_square));
        const auto along_x = static_cast<float>(detail::dot(dy_row, x_row, n_cols) / (n * mean_square));
        for (int64_t i = 0; i < n_cols; ++i) {
            dx_row[i] = scale * (dy_row[i] - along_x * x_row[i]);
        }
    }
}

void layer_norm_backward(int64_t n_rows, int64_t n_cols, const float * x, int64_t x_row_stride, const float * dy,
                         int64_t dy_row_stride, float * dx, int64_t dx_row_stride, float eps, int ith, int nth) {
    const Range rows = split_range(n_rows, ith, nth);
    const auto n = static_cast<double>(n_cols);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float * x_row = x + row * x_row_stride;
        const float * dy_row = dy + row * dy_row_stride;
        float * dx_row = dx + row * dx_row_stride;
        const auto mean = static_cast<float>(detail::sum(x_row, n_cols) / n);
        const auto dy_mean = static_cast<float>(detail::sum(dy_row, n_cols) / n);
        const double variance = detail::centered_dot(x_row, mean, x_row, mean, n_cols) / n + static_cast<double>(eps);
        const auto scale = static_cast<float>(1.0 / std::sqrt(variance));
        const auto along_x =
            static_cast<float>(detail::centered_dot(dy_row, dy_mean, x_row, mean, n_cols) / (n * variance));
        for (int64_t i = 0; i < n_cols; ++i) {
            dx_row[i] = scale * ((dy_row[i] - dy_mean) - along_x * (x_row[i] - mean));
        }
    }
}

void l2_norm_backward(int64_t n_rows, int64_t n_cols, const float * x, int64_t x_row_stride, const float * dy,
                      int64_t dy_row_stride, float * dx, int64_t dx_row_stride, float eps, int ith, int nth) {
    const Range rows = split_range(n_rows, ith, nth);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float * x_row = x + row * x_row_stride;
        const float * dy_row = dy + row * dy_row_stride;
        float * dx_row = dx + row * dx_row_stride;
        const double square = detail::dot(x_row, x_row, n_cols);
        const double size = std::sqrt(square);
        const bool normal = size > static_cast<double>(eps);
        const auto scale = static_cast<float>(1.0 / (normal ? size : static_cast<double>(eps)));
        const auto multiple = normal ? static_cast<float>(detail::dot(dy_row, x_row, n_cols) / square) : 0.0f;
        for (int64_t i = 0; i < n_cols; ++i) {
            dx_row[i] = scale * (dy_row[i] - multiple * x_row[i]);
        }
    }
}

}  // namespace ggtune::kernels
