#include "kernels/sinkhorn.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "kernels/partition.h"

namespace ggtune::kernels {
namespace {

using Matrix = std::array<double, kStreams * kStreams>;  // [source][target]

// The numbers that are summed up together: `group` is a source or a target.
int64_t element(bool by_source, int64_t group, int64_t i) {
    return by_source ? group * kStreams + i : i * kStreams + group;
}

// A division by sums and what its gradient needs.
struct Division {
    bool by_source;
    Matrix quotients;
    std::array<double, kStreams> divisors;

    Division(bool by_source, const Matrix & x, double eps) : by_source(by_source), quotients(), divisors() {
        for (int64_t group = 0; group < kStreams; ++group) {
            double sum = eps;
            for (int64_t i = 0; i < kStreams; ++i) {
                sum += x[element(by_source, group, i)];
            }
            divisors[group] = sum;
            for (int64_t i = 0; i < kStreams; ++i) {
                const int64_t at = element(by_source, group, i);
                quotients[at] = x[at] / sum;
            }
        }
    }

    // The gradient of the quotients becomes that of x.
    void backward(Matrix & d) const {
        for (int64_t group = 0; group < kStreams; ++group) {
            double along = 0.0;
            for (int64_t i = 0; i < kStreams; ++i) {
                const int64_t at = element(by_source, group, i);
                along += d[at] * quotients[at];
            }
            for (int64_t i = 0; i < kStreams; ++i) {
                double & value = d[element(by_source, group, i)];
                value = (value - along) / divisors[group];
            }
        }
    }
};

// exp(logit - the largest of its source), of which the softmax is the division by their sums
Matrix exponentials(const float * mixes, float scale, const float * base) {
    Matrix x;
    for (int64_t source = 0; source < kStreams; ++source) {
        double largest = -INFINITY;
        for (int64_t target = 0; target < kStreams; ++target) {
            const int64_t at = source * kStreams + target;
            x[at] = static_cast<double>(mixes[at]) * scale + base[at];
            largest = std::max(largest, x[at]);
        }
        for (int64_t target = 0; target < kStreams; ++target) {
            double & value = x[source * kStreams + target];
            value = std::exp(value - largest);
        }
    }
    return x;
}

}  // namespace

void sinkhorn_backward(const Sinkhorn & sinkhorn, int64_t n_tokens, const float * mixes, int64_t mix_stride,
                       float scale, const float * base, const float * dy, float * d_mixes, int ith, int nth) {
    const Range tokens = split_range(n_tokens, ith, nth);
    std::vector<Division> divisions;
    for (int64_t t = tokens.begin; t < tokens.end; ++t) {
        const Matrix x = exponentials(mixes + t * mix_stride + kMixOffset, scale, base + kMixOffset);
        const Division softmax(true, x, 0.0);
        Matrix shifted = softmax.quotients;
        for (double & value : shifted) {
            value += sinkhorn.eps;
        }
        divisions.clear();
        divisions.emplace_back(false, shifted, sinkhorn.eps);
        for (int64_t i = 1; i < sinkhorn.n_iterations; ++i) {
            divisions.emplace_back(true, divisions.back().quotients, sinkhorn.eps);
            divisions.emplace_back(false, divisions.back().quotients, sinkhorn.eps);
        }
        Matrix d;
        std::copy_n(dy + t * kStreams * kStreams, d.size(), d.begin());
        for (auto division = divisions.rbegin(); division != divisions.rend(); ++division) {
            division->backward(d);
        }
        softmax.backward(d);
        float * row = d_mixes + t * kMixes;
        std::fill_n(row, kMixOffset, 0.0f);
        for (size_t i = 0; i < d.size(); ++i) {
            row[kMixOffset + i] = static_cast<float>(scale * d[i] * x[i]);
        }
    }
}

}  // namespace ggtune::kernels
