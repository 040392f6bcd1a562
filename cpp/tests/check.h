// The few lines that the C++ tests need: a line per check, a count at the end, a status.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
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
    const double distance = norm(difference);
    if (std::isnan(size) || std::isnan(distance)) {
        return NAN;
    }
    return size > 0 ? distance / size : distance > 0 ? HUGE_VAL : 0.0;
}

inline std::vector<float> random_values(int64_t n, uint32_t seed, float scale = 1.0f) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal(0.0f, scale);
    std::vector<float> values(static_cast<size_t>(n));
    std::generate(values.begin(), values.end(), [&] { return normal(engine); });
    return values;
}

inline bool same_bits(const std::vector<float> & a, const std::vector<float> & b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Runs all parts one after another, as nth threads of ggml would.
template <class F>
void run_parts(int nth, F && f) {
    for (int ith = 0; ith < nth; ++ith) {
        f(ith, nth);
    }
}

inline int finish() {
    std::printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed == 0 ? 0 : 1;
}

}  // namespace ggtune::test
