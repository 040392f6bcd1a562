#include "kernels/weight_product.h"

#include "kernels/blocked_product.h"
#include "kernels/dequantize.h"

namespace ggtune::kernels {
namespace {

using detail::kPanelCols;
using detail::kWidth;
using detail::panel_width;

// Dequantization of one element, in cycles; enough for the choice of a split.
constexpr double kDequantizeCycles = 1.5;

// Rows of W that weight_forward() turns into columns of a panel at a time.
constexpr int64_t kTransposedRows = 16;

struct Weight {
    ggml_type type;
    const void * data;
    size_t row_bytes;
    int64_t block;  // values per block
    size_t block_bytes;

    Weight(ggml_type type, const void * data, size_t row_bytes)
        : type(type),
          data(data),
          row_bytes(row_bytes),
          block(ggml_blck_size(type)),
          block_bytes(ggml_type_size(type)) {}

    // Storage of W[row, column], column a multiple of the block.
    const void * at(int64_t row, int64_t column) const {
        return static_cast<const char *>(data) + static_cast<size_t>(row) * row_bytes +
               static_cast<size_t>(column / block) * block_bytes;
    }
};

}  // namespace

void weight_input_gradient(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, int64_t n_out,
                           const float * dy, int64_t dy_row_stride, int64_t n_tokens, float * dx, int64_t dx_row_stride,
                           bool accumulate, int ith, int nth) {
    const Weight weight(type, w, w_row_bytes);
    const detail::Part part = detail::split_product(n_tokens, n_in, {weight.block, kDequantizeCycles}, ith, nth);
    thread_local std::vector<float> buffer;
    detail::blocked_product(
        {n_tokens, n_in, n_out, {dy, dy_row_stride, 1}, 1.0f, accumulate ? 1.0f : 0.0f, dx, dx_row_stride, 1}, part,
        [&weight](int64_t row0, int64_t rows, int64_t col0, int64_t cols, float * packed) {
            // a thread's columns may begin and end inside a block
            const int64_t first = col0 / weight.block * weight.block;
            const int64_t n = detail::round_up(col0 + cols, weight.block) - first;
            buffer.resize(static_cast<size_t>(n));
            const float * row = buffer.data() + (col0 - first);
            for (int64_t p = 0; p < rows; ++p) {
                dequantize_row(weight.type, weight.at(row0 + p, first), buffer.data(), n);
                for (int64_t j = 0; j < cols; j += kPanelCols) {
                    const int64_t width = panel_width(cols, j);
                    const int64_t filled = std::min(width, cols - j);
                    float * target = packed + j * rows + p * width;
                    std::memcpy(target, row + j, static_cast<size_t>(filled) * sizeof(float));
                    std::fill(target + filled, target + width, 0.0f);
                }
            }
        });
}

void weight_input_gradient_reference(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, int64_t n_out,
                                     const float * dy, int64_t dy_row_stride, int64_t n_tokens, float * dx,
                                     int64_t dx_row_stride, bool accumulate) {
    std::vector<float> row(static_cast<size_t>(n_in));
    for (int64_t t = 0; t < n_tokens && !accumulate; ++t) {
        std::fill(dx + t * dx_row_stride, dx + t * dx_row_stride + n_in, 0.0f);
    }
    for (int64_t o = 0; o < n_out; ++o) {
        dequantize_row(type, static_cast<const char *>(w) + static_cast<size_t>(o) * w_row_bytes, row.data(), n_in);
        for (int64_t t = 0; t < n_tokens; ++t) {
            const float factor = dy[t * dy_row_stride + o];
            for (int64_t i = 0; i < n_in; ++i) {
                dx[t * dx_row_stride + i] += factor * row[static_cast<size_t>(i)];
            }
        }
    }
}

void weight_forward(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, int64_t n_out, const float * x,
                    int64_t x_row_stride, int64_t n_tokens, float * y, int64_t y_row_stride, bool accumulate, int ith,
                    int nth) {
    const Weight weight(type, w, w_row_bytes);
    const detail::Part part = detail::split_product(n_tokens, n_out, {kWidth, 2.0 * kDequantizeCycles}, ith, nth);
    thread_local std::vector<float> buffer;
    detail::blocked_product(
        {n_tokens, n_out, n_in, {x, x_row_stride, 1}, 1.0f, accumulate ? 1.0f : 0.0f, y, y_row_stride, 1}, part,
        [&weight](int64_t k0, int64_t k, int64_t row0, int64_t rows, float * packed) {
            buffer.resize(static_cast<size_t>(kTransposedRows * k));
            for (int64_t j0 = 0; j0 < rows; j0 += kPanelCols) {
                const int64_t width = panel_width(rows, j0);
                const int64_t filled = std::min(width, rows - j0);
                float * panel = packed + j0 * k;
                for (int64_t j = 0; j < filled; j += kTransposedRows) {
                    const int64_t n_rows = std::min(kTransposedRows, filled - j);
                    for (int64_t i = 0; i < n_rows; ++i) {
                        dequantize_row(weight.type, weight.at(row0 + j0 + j + i, k0), buffer.data() + i * k, k);
                    }
                    detail::transpose_copy(buffer.data(), k, n_rows, k, panel + j, width);
                }
                for (int64_t p = 0; p < k; ++p) {
                    std::fill(panel + p * width + filled, panel + (p + 1) * width, 0.0f);
                }
            }
        });
}

void weight_forward_reference(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, int64_t n_out,
                              const float * x, int64_t x_row_stride, int64_t n_tokens, float * y, int64_t y_row_stride,
                              bool accumulate) {
    std::vector<float> row(static_cast<size_t>(n_in));
    for (int64_t o = 0; o < n_out; ++o) {
        dequantize_row(type, static_cast<const char *>(w) + static_cast<size_t>(o) * w_row_bytes, row.data(), n_in);
        for (int64_t t = 0; t < n_tokens; ++t) {
            double sum = 0.0;
            for (int64_t i = 0; i < n_in; ++i) {
                sum += static_cast<double>(x[t * x_row_stride + i]) * row[static_cast<size_t>(i)];
            }
            float & output = y[t * y_row_stride + o];
            output = static_cast<float>(accumulate ? output + sum : sum);
        }
    }
}

}  // namespace ggtune::kernels
