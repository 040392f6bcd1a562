// The few lines that the C++ tests need: a line per check, a count at the end, a status.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

namespace ggtune::test {

inline int n_passed = 0;
inline int n_failed = 0;

// Passes where value <= limit; NaN fails.
inline void check(const std::string & what, double value, double limit) {
    const bool passed = value <= limit;
    (passed ? n_passed : n_failed)++;
    std::printf("%s %-48s %.3g (limit %.3g)\n", passed ? "ok  " : "FAIL", what.c_str(), value, limit);
}

inline double norm(const std::vector<double> & values) {
    double sum = 0;
    for (const double v : values) {
        sum += v * v;
    }
    return std::sqrt(sum);
}

// |a - b| / |b|
template <typename A, typename B>
double relative_difference(const A & a, const B & b) {
    std::vector<double> difference(b.size()), reference(b.begin(), b.end());
    for (size_t i = 0; i < b.size(); i++) {
        difference[i] = static_cast<double>(a[i]) - b[i];
    }
    const double size = norm(reference);
    return size > 0 ? norm(difference) / size : HUGE_VAL;
}

inline int finish() {
    std::printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed == 0 ? 0 : 1;
}

}  // namespace ggtune::test
