#include "kernels/adamw.h"

#include <cmath>

namespace ggtune::kernels {

// A plain loop, which the compiler turns into vector instructions.
void adamw_update(int64_t n, float * __restrict parameters, const float * __restrict gradients,
                  float * __restrict first_moments, float * __restrict second_moments, const AdamWFactors & factors) {
    const AdamWFactors f = factors;
    const double kept1 = f.beta1, gained1 = (1.0 - f.beta1) * f.gradient_scale;
    const double kept2 = f.beta2, gained2 = (1.0 - f.beta2) * f.gradient_scale * f.gradient_scale;
    const double decay = 1.0 - f.lr * f.weight_decay;
    const double rate = f.lr / f.correction1;
    const double inverse2 = 1.0 / f.correction2;
    for (int64_t i = 0; i < n; ++i) {
        const double gradient = gradients[i];
        const double m = kept1 * first_moments[i] + gained1 * gradient;
        const double v = kept2 * second_moments[i] + gained2 * gradient * gradient;
        first_moments[i] = static_cast<float>(m);
        second_moments[i] = static_cast<float>(v);
        parameters[i] = static_cast<float>(decay * parameters[i] - rate * m / (std::sqrt(inverse2 * v) + f.epsilon));
    }
}

double square_sum(int64_t n, const float * x) {
    constexpr int64_t kLanes = 8;
    double sums[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
            const double value = x[i + lane];
            sums[lane] += value * value;
        }
    }
    double total = 0.0;
    for (; i < n; ++i) {
        total += static_cast<double>(x[i]) * x[i];
    }
    for (const double sum : sums) {
        total += sum;
    }
    return total;
}

}  // namespace ggtune::kernels
