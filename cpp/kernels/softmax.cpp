#include "kernels/softmax.h"

#include <cmath>

#include "kernels/partition.h"
#include "kernels/reduce.h"
#include "kernels/vector_math.h"

namespace ggtune::kernels {
namespace {

float row_max(const float * x, int64_t n) {
    using simd::kWidth;
    simd::Vec best = simd::splat(-INFINITY);
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) {
        best = simd::max(best, simd::load(x + i));
    }
    if (i < n) {
        best = simd::max(best, simd::load_partial(x + i, n - i, -INFINITY));
    }
    return simd::horizontal_max(best);
}

double sum_exp(const float * x, int64_t n, float offset) {
    return detail::reduce_sum(n, [=](auto get) { return simd::exp(get(x, -INFINITY) - offset); });
}

// Softmax of a row with the target apart from the others: 1 - p(target) has no cancellation where p is close to 1.
struct Softmax {
    float maximum;
    double target;  // exp(logits[target] - maximum)
    double others;  // sum of the same over all other columns
    double log_p;

    Softmax(const float * logits, int64_t n_vocab, int64_t target_id)
        : maximum(row_max(logits, n_vocab)),
          target(std::exp(static_cast<double>(logits[target_id] - maximum))),
          others(sum_exp(logits, target_id, maximum) +
                 sum_exp(logits + target_id + 1, n_vocab - target_id - 1, maximum)),
          log_p(logits[target_id] == maximum
                    ? -std::log1p(others)
                    : static_cast<double>(logits[target_id] - maximum) - std::log(target + others)) {}
};

}  // namespace

void softmax_backward(int64_t n_rows, int64_t n_cols, const float * y, int64_t y_row_stride, const float * dy,
                      int64_t dy_row_stride, float * dx, int64_t dx_row_stride, float scale, int ith, int nth) {
    const Range rows = split_range(n_rows, ith, nth);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float * y_row = y + row * y_row_stride;
        const float * dy_row = dy + row * dy_row_stride;
        float * dx_row = dx + row * dx_row_stride;
        const auto mean = static_cast<float>(detail::dot(dy_row, y_row, n_cols));
        for (int64_t i = 0; i < n_cols; ++i) {
            dx_row[i] = scale * (dy_row[i] - mean) * y_row[i];
        }
    }
}

double log_probability(const float * logits, int64_t n_vocab, int64_t target) {
    return Softmax(logits, n_vocab, target).log_p;
}

double cross_entropy_gradient_inplace(float * logits, int64_t n_vocab, int64_t target, float weight) {
    using simd::kWidth;
    const Softmax softmax(logits, n_vocab, target);
    const double scale = static_cast<double>(weight) / (softmax.target + softmax.others);
    const auto scale_float = static_cast<float>(scale);
    int64_t i = 0;
    for (; i + kWidth <= n_vocab; i += kWidth) {
        simd::store(logits + i, scale_float * simd::exp(simd::load(logits + i) - softmax.maximum));
    }
    if (i < n_vocab) {
        const simd::Vec rest = simd::load_partial(logits + i, n_vocab - i);
        simd::store_partial(logits + i, scale_float * simd::exp(rest - softmax.maximum), n_vocab - i);
    }
    logits[target] = static_cast<float>(-scale * softmax.others);
    return softmax.log_p;
}

double divergence(const float * logits, const float * teacher, int64_t n_vocab) {
    const float maximum = row_max(logits, n_vocab), teacher_maximum = row_max(teacher, n_vocab);
    const double teacher_sum = sum_exp(teacher, n_vocab, teacher_maximum);
    // impossible tokens, of -inf in both, add nothing
    const simd::Vec lowest = simd::splat(-1e30f);
    const double difference = detail::reduce_sum(n_vocab, [=](auto get) {
        const simd::Vec taught = simd::max(get(teacher, -INFINITY) - teacher_maximum, lowest);
        const simd::Vec own = simd::max(get(logits, -INFINITY) - maximum, lowest);
        return simd::exp(taught) * (taught - own);
    });
    return difference / teacher_sum - std::log(teacher_sum) + std::log(sum_exp(logits, n_vocab, maximum));
}

void divergence_gradient_inplace(float * logits, const float * teacher, int64_t n_vocab, float weight) {
    using simd::kWidth;
    const float maximum = row_max(logits, n_vocab), teacher_maximum = row_max(teacher, n_vocab);
    const auto scale = static_cast<float>(static_cast<double>(weight) / sum_exp(logits, n_vocab, maximum));
    const auto teacher_scale =
        static_cast<float>(static_cast<double>(weight) / sum_exp(teacher, n_vocab, teacher_maximum));
    const auto difference = [&](simd::Vec own, simd::Vec taught) {
        return scale * simd::exp(own - maximum) - teacher_scale * simd::exp(taught - teacher_maximum);
    };
    int64_t i = 0;
    for (; i + kWidth <= n_vocab; i += kWidth) {
        simd::store(logits + i, difference(simd::load(logits + i), simd::load(teacher + i)));
    }
    if (i < n_vocab) {
        const int64_t rest = n_vocab - i;
        simd::store_partial(
            logits + i, difference(simd::load_partial(logits + i, rest), simd::load_partial(teacher + i, rest)), rest);
    }
}

}  // namespace ggtune::kernels
