// Elementary functions on vectors, relative error about 1e-7. Polynomials: minimax fits made for these intervals.
// Private to cpp/kernels.
#pragma once

#include "kernels/simd.h"

namespace ggtune::kernels::simd {

template <int n>
inline Vec polynomial(const float (&coefficients)[n], Vec x) {
    Vec sum = splat(coefficients[n - 1]);
    for (int i = n - 2; i >= 0; --i) {
        sum = sum * x + coefficients[i];
    }
    return sum;
}

inline Vec abs(Vec x) {
    return (Vec)((IntVec)x & 0x7fffffff);
}

inline Vec with_sign_of(Vec magnitude, Vec sign) {
    return (Vec)(((IntVec)magnitude & 0x7fffffff) | ((IntVec)sign & static_cast<int32_t>(0x80000000)));
}

// 2^n for -126 <= n <= 127
inline Vec exp2_integer(IntVec n) {
    return (Vec)((n + 127) << 23);
}

// x * 2^n for the n in the low bits of `shifted`, n + 1.5 * 2^23. Unsigned: in lanes that are discarded, n is anything.
inline Vec times_exp2(Vec x, Vec shifted) {
    return (Vec)((UintVec)x + ((UintVec)shifted << 23));
}

// Overflows to infinity, underflows to zero, NaN stays NaN.
inline Vec exp(Vec x) {
    // Comparisons with NaN are false: it passes through both limits.
    x = select(x > splat(89.0f), splat(89.0f), x);
    x = select(x < splat(-104.0f), splat(-104.0f), x);
    // Adding 1.5 * 2^23 rounds to an integer.
    constexpr float kRound = 12582912.0f;
    const Vec n = (x * 1.44269504088896341f + kRound) - kRound;
    // ln 2 = high + low, n * high exact
    const Vec r = (x - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;
    static constexpr float kExp[] = {1.000000001f,   1.000000036f,    0.4999999207f,  0.1666642007f,
                                     0.04166822626f, 0.008374824035f, 0.001383683151f};
    const IntVec exponent = __builtin_convertvector(n, IntVec);
    const IntVec half = exponent >> 1;
    return polynomial(kExp, r) * exp2_integer(half) * exp2_integer(exponent - half);
}

inline Vec sigmoid(Vec x) {
    return 1.0f / (1.0f + exp(-x));
}

// log(1 + exp(x))
inline Vec softplus(Vec x) {
    // log(1 + u) = 2 artanh(u / (2 + u)) for u = exp(-|x|)
    static constexpr float kTwoArtanh[] = {2.000000008f, 0.6666631468f, 0.4002491028f, 0.2796060276f, 0.2817833488f};
    const Vec u = exp(-abs(x));
    const Vec z = u / (2.0f + u);
    return max(x, splat(0.0f)) + z * polynomial(kTwoArtanh, z * z);
}

inline Vec tanh(Vec x) {
    const Vec a = abs(x);
    static constexpr float kTanh[] = {-0.333333291f, 0.1333277508f, -0.05385140995f, 0.02099890686f, -0.006098696896f};
    const Vec square = x * x;
    const Vec small = x + x * square * polynomial(kTanh, square);
    const Vec large = with_sign_of(1.0f - 2.0f / (exp(a + a) + 1.0f), x);
    return select(a < splat(0.625f), small, large);
}

// Distribution function and density of the standard normal distribution.
struct Normal {
    Vec cdf;
    Vec pdf;
};

inline Normal normal(Vec x) {
    // erfc(z) = t P(t) exp(-z^2) with t = 1 / (1 + 0.4 z), z >= 0
    static constexpr float kErfc[] = {0.2256758348f,  0.2256758602f,  0.207613728f,    0.1717392966f,
                                      0.1190082317f,  0.08391663615f, -0.04689567074f, 0.1375620842f,
                                      -0.2355278135f, 0.1404469749f,  -0.02921516853f};
    const Vec z = abs(x) * 0.707106781186547524f;
    const Vec gauss = exp(x * x * -0.5f);
    const Vec t = 1.0f / (1.0f + 0.4f * z);
    const Vec tail = 0.5f * gauss * t * polynomial(kErfc, t);
    return {select(x < splat(0.0f), tail, 1.0f - tail), gauss * 0.398942280401432678f};
}

}  // namespace ggtune::kernels::simd
