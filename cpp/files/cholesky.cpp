#include "files/cholesky.h"

#include <algorithm>
#include <cmath>

namespace ggtune {

namespace {

constexpr double kRidge = 1e-6;

}  // namespace

void cholesky(std::vector<double> & m, size_t n) {
    double trace = 0;
    for (size_t i = 0; i < n; ++i) {
        trace += m[i * n + i];
    }
    const double least = std::max(kRidge * trace / static_cast<double>(n), 1e-300);
    for (size_t j = 0; j < n; ++j) {
        for (size_t i = j; i < n; ++i) {
            double sum = m[i * n + j] + (i == j ? least : 0.0);
            for (size_t k = 0; k < j; ++k) {
                sum -= m[i * n + k] * m[j * n + k];
            }
            m[i * n + j] = i == j ? std::sqrt(std::max(sum, least)) : sum / m[j * n + j];
        }
    }
}

}  // namespace ggtune
