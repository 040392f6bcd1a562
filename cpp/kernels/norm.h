// Backward passes of row normalizations without weights (a norm's weight is a multiplication of its own in ggml
// graphs).
//
// x, dy, dx  [n_rows, n_cols], row strides in floats, rows contiguous. Thread ith of nth takes its own rows.
// dx may be the same array as dy or x.
#pragma once

#include <cstdint>

namespace ggtune::kernels {

// y = x / sqrt(mean(x^2) + eps);  dx = r (dy - x r^2 mean(dy x)) with r = 1 / sqrt(mean(x^2) + eps)
void rms_norm_backward(int64_t n_rows, int64_t n_cols, const float * x, int64_t x_row_stride, const float * dy,
                       int64_t dy_row_stride, float * dx, int64_t dx_row_stride, float eps, int ith, int nth);

// y = (x - mean(x)) / sqrt(var(x) + eps), var the mean of squares;  dx = r (dy - mean(dy) - y mean(dy y))
void layer_norm_backward(int64_t n_rows, int64_t n_cols, const float * x, int64_t x_row_stride, const float * dy,
                         int64_t dy_row_stride, float * dx, int64_t dx_row_stride, float eps, int ith, int nth);

// y = x / max(|x|, eps);  dx = (dy - y sum(dy y)) / |x| where |x| > eps, else dy / eps
void l2_norm_backward(int64_t n_rows, int64_t n_cols, const float * x, int64_t x_row_stride, const float * dy,
                      int64_t dy_row_stride, float * dx, int64_t dx_row_stride, float eps, int ith, int nth);

}  // namespace ggtune::kernels
