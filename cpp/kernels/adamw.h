// The optimizer's update of a run of parameters. Any part of them can be updated by any thread.
#pragma once

#include <cstdint>

namespace ggtune::kernels {

struct AdamWFactors {
    double gradient_scale;  // what the accumulated gradients are multiplied by
    double lr;
    double beta1, beta2;
    double correction1, correction2;  // 1 - beta^t at step t
    double epsilon;
    double weight_decay;
};

// Loshchilov & Hutter, arXiv:1711.05101, algorithm 2, in double; the moments are kept in float.
void adamw_update(int64_t n, float * parameters, const float * gradients, float * first_moments, float * second_moments,
                  const AdamWFactors & factors);

// Sum of x^2, in double.
double square_sum(int64_t n, const float * x);

}  // namespace ggtune::kernels
