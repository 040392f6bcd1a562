#include "kernels/scale_fit.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "kernels/block_factors.h"
#include "kernels/gemm.h"
#include "kernels/half.h"
#include "kernels/reduce.h"
#include "kernels/simd.h"

namespace ggtune::kernels {
namespace {

// Of the inputs' mean square: with less the outputs on other texts suffer, with more those on the sample are no nearer.
constexpr double kDamping = 0.03;
constexpr int kMostSteps = 10;
constexpr double kTolerance = 1e-4;  // of the squared residual
constexpr int64_t kBatchFloats = 2 << 20;
constexpr int64_t kMostRows = 64;

// to += the sum of factors[j] times row j: rows is [n_rows, n], to [n].
void add_rows(float * to, const float * factors, const float * rows, size_t n_rows, int64_t n) {
    size_t j = 0;
    for (; j + 4 <= n_rows; j += 4) {  // `to` is read and written once for four of them
        const float * row = rows + static_cast<int64_t>(j) * n;
        const float a = factors[j], b = factors[j + 1], c = factors[j + 2], d = factors[j + 3];
        for (int64_t i = 0; i < n; ++i) {
            to[i] += (a * row[i] + b * row[n + i]) + (c * row[2 * n + i] + d * row[3 * n + i]);
        }
    }
    for (; j < n_rows; ++j) {
        const float * row = rows + static_cast<int64_t>(j) * n;
        for (int64_t i = 0; i < n; ++i) {
            to[i] += factors[j] * row[i];
        }
    }
}

// products[j] = row j with `with`: rows is [n_rows, n], with [n].
void dot_rows(const float * rows, size_t n_rows, const float * with, int64_t n, double * products) {
    using simd::kWidth;
    size_t j = 0;
    for (; j + 4 <= n_rows; j += 4) {  // sums that do not wait for each other
        const float * row = rows + static_cast<int64_t>(j) * n;
        simd::Vec sums[4] = {};
        int64_t i = 0;
        for (; i + kWidth <= n; i += kWidth) {
            const simd::Vec factor = simd::load(with + i);
            for (int64_t k = 0; k < 4; ++k) {
                sums[k] += simd::load(row + k * n + i) * factor;
            }
        }
        for (size_t k = 0; k < 4; ++k) {
            products[j + k] = static_cast<double>(simd::horizontal_sum(sums[k]));
            for (int64_t rest = i; rest < n; ++rest) {
                products[j + k] += static_cast<double>(row[static_cast<int64_t>(k) * n + rest] * with[rest]);
            }
        }
    }
    for (; j < n_rows; ++j) {
        products[j] = detail::dot(rows + static_cast<int64_t>(j) * n, with, n);
    }
}

}  // namespace

bool has_half_scales(ggml_type type) {
    return block_factors(type) != nullptr;
}

// Factor j of a row is that of block j % n_blocks.
struct ScaleFit::Row {
    uint8_t * data;
    const float * error;       // [n_in]
    const float * directions;  // of the kinds of factors, each [n_in]: what a unit of the factor adds to the weights
    int64_t direction_stride;
    const float * seen;     // [n_tokens], the error in the outputs
    const float * columns;  // [n_factors, n_tokens], what a unit of each factor adds to the outputs
};

ScaleFit::ScaleFit(ggml_type type, const float * x, int64_t n_tokens, int64_t n_in)
    : type_(type),
      x_(x),
      n_tokens_(n_tokens),
      n_in_(n_in),
      n_blocks_(n_in / ggml_blck_size(type)),
      n_factors_(n_blocks_ * block_factors(type)->n),
      damping_(
          static_cast<float>(kDamping * detail::dot(x, x, n_tokens * n_in) / static_cast<double>(n_tokens * n_in))),
      batch_rows_(std::min(kMostRows, std::max<int64_t>(1, kBatchFloats / (n_factors_ * n_tokens)))) {}

void ScaleFit::fit(int64_t n_rows, const float * error, const uint8_t * unmoved, uint8_t * rows) const {
    const BlockFactors & factors = *block_factors(type_);
    const int64_t block = ggml_blck_size(type_);
    const auto block_bytes = static_cast<int64_t>(ggml_type_size(type_));
    const int64_t row_bytes = n_blocks_ * block_bytes;
    // the mean over the tokens is that of squares
    const auto unit = static_cast<float>(1.0 / std::sqrt(static_cast<double>(n_tokens_)));
    const Operand inputs{x_, n_in_, 1};

    std::vector<float> directions(static_cast<size_t>(factors.n * n_rows * n_in_));
    std::vector<uint8_t> one;
    std::vector<float> columns(static_cast<size_t>(n_rows * n_factors_ * n_tokens_));
    for (int kind = 0; kind < factors.n; ++kind) {
        float * of_kind = directions.data() + kind * n_rows * n_in_;
        for (int64_t row = 0; row < n_rows; ++row) {
            factor_directions(factors, kind, unmoved + row * row_bytes, n_in_, one, of_kind + row * n_in_);
        }
        for (int64_t i = 0; i < n_blocks_; ++i) {
            const Operand of_block{of_kind + i * block, n_in_, 1};
            const Operand inputs_of_block{x_ + i * block, n_in_, 1};
            gemm(n_rows, n_tokens_, block, of_block, inputs_of_block.transposed(), unit, 0.0f,
                 columns.data() + (kind * n_blocks_ + i) * n_tokens_, n_factors_ * n_tokens_, 1, 0, 1);
        }
    }
    std::vector<float> seen(static_cast<size_t>(n_rows * n_tokens_));
    gemm(n_rows, n_tokens_, n_in_, {error, n_in_, 1}, inputs.transposed(), unit, 0.0f, seen.data(), n_tokens_, 1, 0, 1);
    for (int64_t row = 0; row < n_rows; ++row) {
        fit_row({rows + row * row_bytes, error + row * n_in_, directions.data() + row * n_in_, n_rows * n_in_,
                 seen.data() + row * n_tokens_, columns.data() + row * n_factors_ * n_tokens_});
    }
}

void ScaleFit::fit_row(const Row & row) const {
    const BlockFactors & factors = *block_factors(type_);
    const int64_t block = ggml_blck_size(type_);
    const auto block_bytes = static_cast<int64_t>(ggml_type_size(type_));
    const auto n = static_cast<size_t>(n_factors_);
    const auto n_blocks = static_cast<size_t>(n_blocks_);
    const auto column = [&](size_t j) { return row.columns + static_cast<int64_t>(j) * n_tokens_; };

    // of the factors of one block: the products of their directions, and with the error
    std::vector<std::array<double, kMostFactors>> along(n);
    std::vector<double> along_error(n);
    for (size_t j = 0; j < n; ++j) {
        const int64_t begin = static_cast<int64_t>(j % n_blocks) * block;
        const float * own = row.directions + static_cast<int64_t>(j / n_blocks) * row.direction_stride + begin;
        for (int kind = 0; kind < factors.n; ++kind) {
            along[j][static_cast<size_t>(kind)] =
                detail::dot(own, row.directions + kind * row.direction_stride + begin, block);
        }
        along_error[j] = detail::dot(own, row.error + begin, block);
    }
    const auto with_own_block = [&](size_t j, const auto & values) {
        double sum = 0;
        for (size_t kind = 0; kind < static_cast<size_t>(factors.n); ++kind) {
            sum += along[j][kind] * static_cast<double>(values[kind * n_blocks + j % n_blocks]);
        }
        return sum;
    };

    // conjugate gradients (Hestenes and Stiefel 1952) for the normal equations with a diagonal of ones
    const auto damping = static_cast<double>(damping_);
    std::vector<float> scale(n), solution(n), residual(n), direction(n), scaled(n), product(n);
    std::vector<float> output(static_cast<size_t>(n_tokens_));
    std::vector<double> with_columns(n);
    dot_rows(row.columns, n, row.seen, n_tokens_, with_columns.data());
    double square = 0;
    for (size_t j = 0; j < n; ++j) {
        const double diagonal = detail::dot(column(j), column(j), n_tokens_) + damping * along[j][j / n_blocks];
        scale[j] = diagonal > 0 ? static_cast<float>(1.0 / std::sqrt(diagonal)) : 0.0f;
        const double slope = with_columns[j] + damping * along_error[j];
        residual[j] = static_cast<float>(-slope) * scale[j];
        square += static_cast<double>(residual[j]) * static_cast<double>(residual[j]);
    }
    direction = residual;
    const double enough = kTolerance * square;
    for (int step = 0; step < kMostSteps && square > enough; ++step) {
        std::fill(output.begin(), output.end(), 0.0f);
        for (size_t j = 0; j < n; ++j) {
            scaled[j] = scale[j] * direction[j];
        }
        add_rows(output.data(), scaled.data(), row.columns, n, n_tokens_);
        dot_rows(row.columns, n, output.data(), n_tokens_, with_columns.data());
        double curvature = 0;
        for (size_t j = 0; j < n; ++j) {
            const double sum = with_columns[j] + damping * with_own_block(j, scaled);
            product[j] = scale[j] * static_cast<float>(sum);
            curvature += static_cast<double>(product[j]) * static_cast<double>(direction[j]);
        }
        if (!(curvature > 0)) {
            break;
        }
        const auto length = static_cast<float>(square / curvature);
        double next = 0;
        for (size_t j = 0; j < n; ++j) {
            solution[j] += length * direction[j];
            residual[j] -= length * product[j];
            next += static_cast<double>(residual[j]) * static_cast<double>(residual[j]);
        }
        const auto kept = static_cast<float>(next / square);
        for (size_t j = 0; j < n; ++j) {
            direction[j] = residual[j] + kept * direction[j];
        }
        square = next;
    }

    // as halves, and only where they are better so
    std::vector<uint16_t> halves(n);
    std::vector<float> change(n);
    std::copy(row.seen, row.seen + n_tokens_, output.begin());
    double gain = -detail::dot(output.data(), output.data(), n_tokens_);
    for (size_t j = 0; j < n; ++j) {
        uint8_t * at = row.data + static_cast<int64_t>(j % n_blocks) * block_bytes + factors.at[j / n_blocks];
        const float before = detail::half_at(at);
        halves[j] = ggml_fp32_to_fp16(before + scale[j] * solution[j]);
        change[j] = detail::half_at(reinterpret_cast<const uint8_t *>(&halves[j])) - before;
    }
    add_rows(output.data(), change.data(), row.columns, n, n_tokens_);
    gain += detail::dot(output.data(), output.data(), n_tokens_);
    for (size_t j = 0; j < n; ++j) {
        gain += damping * static_cast<double>(change[j]) * (2 * along_error[j] + with_own_block(j, change));
    }
    if (gain < 0) {  // not for values that are not finite either
        for (size_t j = 0; j < n; ++j) {
            std::memcpy(row.data + static_cast<int64_t>(j % n_blocks) * block_bytes + factors.at[j / n_blocks],
                        &halves[j], sizeof halves[j]);
        }
    }
}

}  // namespace ggtune::kernels
