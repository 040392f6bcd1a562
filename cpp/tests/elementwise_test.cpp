// Checks activations, normalization, softmax, loss, dropout and AdamW against the loops or formulas that define them.

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/activations.h"
#include "kernels/adamw.h"
#include "kernels/dropout.h"
#include "kernels/norm.h"
#include "kernels/sinkhorn.h"
#include "kernels/softmax.h"

namespace {

using namespace ggtune::kernels;
using namespace ggtune::test;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

// Gradient of sum(dy * y(x)) by central differences in double.
Doubles finite_differences(const std::function<Doubles(const Doubles &)> & y, const Floats & x, const Floats & dy) {
    const auto loss = [&](const Doubles & at) {
        const Doubles value = y(at);
        double sum = 0.0;
        for (size_t i = 0; i < value.size(); ++i) {
            sum += value[i] * static_cast<double>(dy[i]);
        }
        return sum;
    };
    constexpr double kStep = 1e-5;
    Doubles at(x.begin(), x.end());
    Doubles gradient(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
        const double center = at[i];
        at[i] = center + kStep;
        const double above = loss(at);
        at[i] = center - kStep;
        gradient[i] = (above - loss(at)) / (2.0 * kStep);
        at[i] = center;
    }
    return gradient;
}

Doubles elementwise(const Doubles & x, const std::function<double(double)> & f) {
    Doubles y(x.size());
    std::transform(x.begin(), x.end(), y.begin(), f);
    return y;
}

void test_activations() {
    const std::pair<Activation, const char *> all[] = {{Activation::silu, "silu"},
                                                       {Activation::gelu, "gelu"},
                                                       {Activation::gelu_erf, "gelu_erf"},
                                                       {Activation::gelu_quick, "gelu_quick"},
                                                       {Activation::relu, "relu"},
                                                       {Activation::tanh, "tanh"},
                                                       {Activation::sigmoid, "sigmoid"},
                                                       {Activation::sqr, "sqr"},
                                                       {Activation::exp, "exp"}};
    for (const auto & [activation, name] : all) {
        const auto f = [activation = activation](double x) { return activation_reference(activation, x); };
        Floats x(4001);  // -10 to 10
        for (size_t i = 0; i < x.size(); ++i) {
            x[i] = (static_cast<float>(i) - 2000.0f) / 200.0f + 1e-3f;
        }
        const auto n = static_cast<int64_t>(x.size());
        const Doubles in_double(x.begin(), x.end());
        const Doubles expected = elementwise(in_double, f);
        Floats y(x.size());
        activation_forward(activation, x.data(), y.data(), n);
        double worst = 0.0;  // relative to values, absolute to 1e-2 of them near zeros
        for (size_t i = 0; i < y.size(); ++i) {
            worst = std::max(worst, std::abs(static_cast<double>(y[i]) - expected[i]) / (std::abs(expected[i]) + 1e-2));
        }
        check(std::string(name) + " forward", worst, 1e-6);

        const Floats dy = random_values(x.size(), 7);
        const Doubles slope = elementwise(in_double, [&f](double at) { return (f(at + 1e-5) - f(at - 1e-5)) / 2e-5; });
        Doubles dx_expected(x.size());
        for (size_t i = 0; i < x.size(); ++i) {
            dx_expected[i] = static_cast<double>(dy[i]) * slope[i];
        }
        Floats dx = dy;
        activation_backward(activation, x.data(), dx.data(), dx.data(), n);
        check(std::string(name) + " backward, in place", relative_difference(dx, dx_expected), 1e-6);

        const Floats up = random_values(x.size(), 8);
        Doubles glu(x.size()), d_gate_expected(x.size()), d_up_expected(x.size());
        for (size_t i = 0; i < x.size(); ++i) {
            glu[i] = expected[i] * static_cast<double>(up[i]);
            d_gate_expected[i] = dx_expected[i] * static_cast<double>(up[i]);
            d_up_expected[i] = expected[i] * static_cast<double>(dy[i]);
        }
        glu_forward(activation, x.data(), up.data(), y.data(), n);
        check(std::string(name) + " gated forward", relative_difference(y, glu), 1e-6);
        Floats d_up(x.size());
        glu_backward(activation, x.data(), up.data(), dy.data(), dx.data(), d_up.data(), n);
        check(std::string(name) + " gated backward, gate", relative_difference(dx, d_gate_expected), 1e-6);
        check(std::string(name) + " gated backward, up", relative_difference(d_up, d_up_expected), 1e-6);
    }
    const Floats extremes = {-INFINITY, -1000.0f, -90.0f, 0.0f, 90.0f, 1000.0f, INFINITY, NAN};
    Floats y(extremes.size());
    activation_forward(Activation::exp, extremes.data(), y.data(), static_cast<int64_t>(y.size()));
    const bool exp_ok = y[0] == 0.0f && y[1] == 0.0f && y[2] < 1e-38f && y[3] == 1.0f && y[4] == INFINITY &&
                        y[5] == INFINITY && y[6] == INFINITY && std::isnan(y[7]);
    check("exp at its limits", exp_ok ? 0.0 : 1.0, 0.0);
    const Activation finite[] = {Activation::silu,       Activation::gelu, Activation::gelu_erf,
                                 Activation::gelu_quick, Activation::tanh, Activation::sigmoid};
    const Floats large = {-1000.0f, -90.0f, 90.0f, 1000.0f};
    for (const Activation activation : finite) {
        Floats value(4), slope(4, 1.0f);
        activation_forward(activation, large.data(), value.data(), 4);
        activation_backward(activation, large.data(), slope.data(), slope.data(), 4);
        double worst = 0.0;
        for (size_t i = 0; i < large.size(); ++i) {
            const auto x = static_cast<double>(large[i]);
            const double expected = activation_reference(activation, x);
            const double expected_slope =
                activation == Activation::tanh || activation == Activation::sigmoid ? 0.0 : x > 0.0;
            worst = std::max({worst, std::abs(static_cast<double>(value[i]) - expected) / (1.0 + std::abs(expected)),
                              std::abs(static_cast<double>(slope[i]) - expected_slope),
                              std::isnan(value[i] + slope[i]) ? 1.0 : 0.0});
        }
        check("activation " + std::to_string(static_cast<int>(activation)) + " far from zero", worst, 1e-6);
    }
}

void test_limited_glu() {
    for (const LimitedGlu glu : {LimitedGlu{1.702f, 7.0f, 1.0f}, LimitedGlu{1.0f, 2.5f, 0.0f}}) {
        const size_t n = 4001;
        const auto count = static_cast<int64_t>(n);
        const Floats gate = random_values(n, 15, 2.0f * glu.limit), up = random_values(n, 16, glu.limit),
                     dy = random_values(n, 17);
        const auto limit = static_cast<double>(glu.limit);
        // value and gradients by the formula
        const auto sigmoid_of = [&](double g) { return 1.0 / (1.0 + std::exp(-static_cast<double>(glu.slope) * g)); };
        Doubles y_expected(n), d_gate_expected(n), d_up_expected(n);
        for (size_t i = 0; i < n; ++i) {
            const double g = std::min<double>(gate[i], limit), u = std::clamp<double>(up[i], -limit, limit);
            const double s = sigmoid_of(g);
            y_expected[i] = g * s * (u + glu.offset);
            d_up_expected[i] = std::abs(static_cast<double>(up[i])) > limit ? 0.0 : dy[i] * g * s;
            d_gate_expected[i] =
                gate[i] > limit ? 0.0 : dy[i] * (u + glu.offset) * s * (1.0 + glu.slope * g * (1.0 - s));
        }
        const std::string name = "unit with limits, slope " + std::to_string(glu.slope);
        Floats y(n), d_gate = dy, d_up(n);
        limited_glu_forward(glu, gate.data(), up.data(), y.data(), count);
        limited_glu_backward(glu, gate.data(), up.data(), d_gate.data(), d_gate.data(), d_up.data(), count);
        check(name + ", forward", relative_difference(y, y_expected), 1e-6);
        check(name + ", gate", relative_difference(d_gate, d_gate_expected), 1e-6);
        check(name + ", up", relative_difference(d_up, d_up_expected), 1e-6);

        Floats odd = {NAN, -1e30f, 1e30f, glu.limit}, ones(4, 1.0f), value(4), d_odd(4), d_ones(4);
        limited_glu_forward(glu, odd.data(), ones.data(), value.data(), 4);
        limited_glu_backward(glu, odd.data(), ones.data(), ones.data(), d_odd.data(), d_ones.data(), 4);
        const bool as_expected = std::isnan(value[0]) && std::isnan(d_odd[0]) && value[1] == 0.0f && d_odd[1] == 0.0f &&
                                 d_odd[2] == 0.0f && value[2] == value[3] && d_odd[3] > 0.5f;
        check(name + ", far out and at the limit", as_expected ? 0.0 : 1.0, 0.0);
        limited_glu_forward(glu, ones.data(), odd.data(), value.data(), 4);
        limited_glu_backward(glu, ones.data(), odd.data(), ones.data(), d_ones.data(), d_odd.data(), 4);
        const bool up_as_expected = std::isnan(value[0]) && std::isnan(d_ones[0]) && value[2] == value[3] &&
                                    d_odd[1] == 0.0f && d_odd[2] == 0.0f && d_odd[3] > 0.5f;
        check(name + ", up far out and at the limit", up_as_expected ? 0.0 : 1.0, 0.0);
    }
}

// One row kernel on two padded rows, split over threads, against finite differences of the row function.
void test_row_backward(const std::string & name, int64_t n_cols, float offset,
                       const std::function<Doubles(const Doubles &)> & forward,
                       const std::function<void(const float * x, const float * dy, float * dx, int64_t stride, int ith,
                                                int nth)> & backward) {
    const int64_t n_rows = 2;
    const int64_t stride = n_cols + 3;
    Floats x = random_values(static_cast<size_t>(n_rows * stride), 9);
    for (float & value : x) {
        value += offset;
    }
    const Floats dy = random_values(x.size(), 10);
    Floats dx = dy;
    run_parts(2, [&](int ith, int nth) { backward(x.data(), dx.data(), dx.data(), stride, ith, nth); });
    double worst = 0.0;
    for (int64_t row = 0; row < n_rows; ++row) {
        const auto slice = [&](const Floats & v) {
            return Floats(v.begin() + row * stride, v.begin() + row * stride + n_cols);
        };
        worst = std::max(worst, relative_difference(slice(dx), finite_differences(forward, slice(x), slice(dy))));
    }
    check(name + ", " + std::to_string(n_cols) + " columns", worst, 1e-6);
}

void test_rows() {
    constexpr float kEps = 1e-3f;
    for (const int64_t n : {5, 16, 67, 300}) {
        const auto mean = [](const Doubles & v) {
            double sum = 0.0;
            for (const double value : v) {
                sum += value;
            }
            return sum / static_cast<double>(v.size());
        };
        const auto rms_norm = [&](const Doubles & x) {
            const double r = 1.0 / std::sqrt(mean(elementwise(x, [](double v) { return v * v; })) + kEps);
            return elementwise(x, [r](double v) { return v * r; });
        };
        const auto layer_norm = [&](const Doubles & x) {
            const double center = mean(x);
            return rms_norm(elementwise(x, [center](double v) { return v - center; }));
        };
        const auto softmax = [&](const Doubles & x) {
            const double top = *std::max_element(x.begin(), x.end());
            const Doubles e = elementwise(x, [top](double v) { return std::exp(0.3 * (v - top)); });
            const double sum = mean(e) * static_cast<double>(e.size());
            return elementwise(e, [sum](double v) { return v / sum; });
        };
        test_row_backward("rms_norm_backward", n, 0.5f, rms_norm,
                          [&](const float * x, const float * dy, float * dx, int64_t stride, int ith, int nth) {
                              rms_norm_backward(2, n, x, stride, dy, stride, dx, stride, kEps, ith, nth);
                          });
        test_row_backward("layer_norm_backward", n, 0.5f, layer_norm,
                          [&](const float * x, const float * dy, float * dx, int64_t stride, int ith, int nth) {
                              layer_norm_backward(2, n, x, stride, dy, stride, dx, stride, kEps, ith, nth);
                          });
        for (const float eps : {1e-3f, 1e3f}) {  // below and above the norm
            const auto l2_norm = [eps](const Doubles & x) {
                double square = 0.0;
                for (const double v : x) {
                    square += v * v;
                }
                const double size = std::max<double>(std::sqrt(square), eps);
                return elementwise(x, [size](double v) { return v / size; });
            };
            test_row_backward("l2_norm_backward, epsilon " + std::to_string(eps), n, 0.5f, l2_norm,
                              [&](const float * x, const float * dy, float * dx, int64_t stride, int ith, int nth) {
                                  l2_norm_backward(2, n, x, stride, dy, stride, dx, stride, eps, ith, nth);
                              });
        }
        test_row_backward("softmax_backward", n, 0.0f, softmax,
                          [&](const float * x, const float * dy, float * dx, int64_t stride, int ith, int nth) {
                              Floats y(static_cast<size_t>(2 * stride));
                              for (int64_t row = 0; row < 2; ++row) {
                                  const Doubles value = softmax(Doubles(x + row * stride, x + row * stride + n));
                                  std::copy(value.begin(), value.end(), y.begin() + row * stride);
                              }
                              softmax_backward(2, n, y.data(), stride, dy, stride, dx, stride, 0.3f, ith, nth);
                          });
    }
}

// Rows and columns of the mixing matrix divided in turns, against finite differences.
void test_sinkhorn() {
    constexpr size_t kSize = kMixes, kTokens = 5, kMatrix = kStreams * kStreams;
    const Floats base = random_values(kSize, 20), mixes = random_values(kTokens * kSize, 21),
                 dy = random_values(kTokens * kMatrix, 22);
    for (const int64_t n_iterations : {1, 2, 20}) {
        const Sinkhorn sinkhorn = {1e-2f, n_iterations};
        const float scale = 1.3f;
        const auto eps = static_cast<double>(sinkhorn.eps);
        const auto forward = [&](const Doubles & row) {
            Doubles x(kMatrix);
            const auto divide = [&](size_t first, size_t step, double more) {
                double sum = more;
                for (size_t i = 0; i < kStreams; ++i) {
                    sum += x[first + i * step];
                }
                for (size_t i = 0; i < kStreams; ++i) {
                    x[first + i * step] /= sum;
                }
            };
            const auto by_source = [&](double more) {
                for (size_t source = 0; source < kStreams; ++source) {
                    divide(source * kStreams, 1, more);
                }
            };
            for (size_t i = 0; i < kMatrix; ++i) {
                const double mix = row[kMixOffset + i];
                x[i] = std::exp(mix * static_cast<double>(scale) + static_cast<double>(base[kMixOffset + i]));
            }
            by_source(0.0);
            for (double & value : x) {
                value += eps;
            }
            for (int64_t i = 0; i < n_iterations; ++i) {
                if (i > 0) {
                    by_source(eps);
                }
                for (size_t target = 0; target < kStreams; ++target) {
                    divide(target, kStreams, eps);
                }
            }
            return x;
        };
        Floats found(mixes.size()), other(mixes.size());
        run_parts(1, [&](int ith, int nth) {
            sinkhorn_backward(sinkhorn, kTokens, mixes.data(), kMixes, scale, base.data(), dy.data(), found.data(), ith,
                              nth);
        });
        run_parts(3, [&](int ith, int nth) {
            sinkhorn_backward(sinkhorn, kTokens, mixes.data(), kMixes, scale, base.data(), dy.data(), other.data(), ith,
                              nth);
        });
        Doubles expected;
        for (size_t t = 0; t < kTokens; ++t) {
            const Floats row(mixes.begin() + t * kSize, mixes.begin() + (t + 1) * kSize);
            const Floats d_row(dy.begin() + t * kMatrix, dy.begin() + (t + 1) * kMatrix);
            const Doubles slopes = finite_differences(forward, row, d_row);
            expected.insert(expected.end(), slopes.begin(), slopes.end());
        }
        const std::string name = "Sinkhorn, " + std::to_string(n_iterations) + " times";
        check(name, relative_difference(found, expected), 1e-6);
        check(name + ", same bits for 1 and 3 threads", same_bits(found, other) ? 0.0 : 1.0, 0.0);
    }
}

void test_cross_entropy() {
    for (const int64_t n_vocab : {2, 5, 64, 1000, 4099}) {
        const Floats logits = random_values(static_cast<size_t>(n_vocab), 11, 5.0f);
        const int64_t target = n_vocab / 2;
        const auto top = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
        double sum = 0.0;
        for (const float logit : logits) {
            sum += std::exp(static_cast<double>(logit) - top);
        }
        const double log_p = static_cast<double>(logits[static_cast<size_t>(target)]) - top - std::log(sum);
        Doubles expected(logits.size());
        for (size_t i = 0; i < logits.size(); ++i) {
            const double p = std::exp(static_cast<double>(logits[i]) - top) / sum;
            expected[i] = -0.75 * (p - (static_cast<int64_t>(i) == target ? 1.0 : 0.0));
        }
        Floats gradient = logits;
        const double from_gradient = cross_entropy_gradient_inplace(gradient.data(), n_vocab, target, -0.75f);
        const std::string name = "cross entropy of " + std::to_string(n_vocab);
        check(name + ", log p", std::abs(log_probability(logits.data(), n_vocab, target) - log_p), 1e-6 * (1 - log_p));
        check(name + ", log p with gradient", std::abs(from_gradient - log_p), 1e-6 * (1 - log_p));
        check(name + ", gradient", relative_difference(gradient, expected), 1e-6);
    }
    // -inf marks impossible tokens; a sure target has an exact, tiny gradient
    Floats sure = {30.0f, 0.0f, -INFINITY};
    const double log_p = cross_entropy_gradient_inplace(sure.data(), 3, 0, 1.0f);
    const double tail = std::exp(-30.0);
    check("cross entropy of a sure target",
          relative_difference(Doubles(sure.begin(), sure.end()), Doubles{-tail, tail, 0.0}), 1e-5);
    check("cross entropy of a sure target, log p", std::abs(log_p + tail), 1e-12);
}

void test_divergence() {
    for (const int64_t n_vocab : {2, 5, 64, 1000, 4099}) {
        const auto n = static_cast<size_t>(n_vocab);
        Floats logits = random_values(n, 12, 3.0f);
        Floats teacher = random_values(n, 13, 0.1f);
        for (size_t i = 0; i < n; ++i) {
            teacher[i] += logits[i] - 7.0f;  // what is added to all of them makes no difference
        }
        if (n > 5) {
            logits[3] = teacher[3] = -INFINITY;  // an impossible token
        }
        const auto probabilities = [](const Floats & x) {
            const auto top = static_cast<double>(*std::max_element(x.begin(), x.end()));
            Doubles p(x.size());
            double sum = 0.0;
            for (size_t i = 0; i < x.size(); ++i) {
                sum += p[i] = std::exp(static_cast<double>(x[i]) - top);
            }
            for (double & each : p) {
                each /= sum;
            }
            return p;
        };
        const Doubles p = probabilities(teacher), q = probabilities(logits);
        double expected = 0.0;
        Doubles slopes(n);
        for (size_t i = 0; i < n; ++i) {
            expected += p[i] > 0 ? p[i] * std::log(p[i] / q[i]) : 0.0;
            slopes[i] = 0.75 * (q[i] - p[i]);
        }
        const std::string name = "divergence of " + std::to_string(n_vocab);
        check(name, std::abs(divergence(logits.data(), teacher.data(), n_vocab) - expected), 1e-6);
        divergence_gradient_inplace(logits.data(), teacher.data(), n_vocab, 0.75f);
        check(name + ", gradient", relative_difference(logits, slopes), 1e-5);
    }
}

void test_dropout() {
    constexpr int64_t kN = 200000;
    const DropoutMask mask = {42, 7, 0.1f};
    const Floats x(kN, 1.0f);
    Floats y(kN);
    dropout(mask, 0, x.data(), y.data(), kN);
    const auto kept = static_cast<double>(kN - std::count(y.begin(), y.end(), 0.0f)) / kN;
    check("dropout keeps 1 - p", std::abs(kept - 0.9), 5.0 * std::sqrt(0.1 * 0.9 / kN));
    check("dropout scales by 1 / (1 - p)",
          std::abs(static_cast<double>(*std::max_element(y.begin(), y.end())) - 1.0 / 0.9), 1e-6);
    Floats parts(kN);
    for (int64_t begin = 0; begin < kN; begin += 777) {
        dropout(mask, begin, x.data() + begin, parts.data() + begin, std::min<int64_t>(777, kN - begin));
    }
    check("dropout in parts", same_bits(parts, y) ? 0.0 : 1.0, 0.0);
    constexpr int64_t kBorder = int64_t{1} << 32;
    dropout(mask, kBorder - kN / 2, x.data(), y.data(), kN);
    dropout(mask, kBorder, x.data(), parts.data(), kN / 2);
    check("dropout across 2^32",
          same_bits(Floats(y.begin() + kN / 2, y.end()), Floats(parts.begin(), parts.begin() + kN / 2)) ? 0.0 : 1.0,
          0.0);
    const auto both_dropped = [&](const DropoutMask & other, int64_t shift) {
        Floats a(kN), b(kN);
        dropout(mask, 0, x.data(), a.data(), kN);
        dropout(other, shift, x.data(), b.data(), kN);
        int64_t n = 0;
        for (int64_t i = 0; i < kN; ++i) {
            n += a[static_cast<size_t>(i)] == 0.0f && b[static_cast<size_t>(i)] == 0.0f;
        }
        return std::abs(static_cast<double>(n) / kN - 0.01);
    };
    const double limit = 5.0 * std::sqrt(0.01 / kN);
    check("dropout of neighbouring elements is independent", both_dropped(mask, 1), limit);
    check("dropout of streams is independent", both_dropped({42, 8, 0.1f}, 0), limit);
    check("dropout of seeds is independent", both_dropped({43, 7, 0.1f}, 0), limit);
    dropout({1, 2, 0.0f}, 0, x.data(), y.data(), kN);
    check("dropout with p = 0 is the identity", same_bits(y, x) ? 0.0 : 1.0, 0.0);
}

// Three steps in uneven pieces against the paper's algorithm in long double.
void test_adamw() {
    constexpr size_t kN = 1003;
    Floats p = random_values(kN, 12), m(kN), v(kN);
    std::vector<long double> expected(p.begin(), p.end()), expected_m(kN), expected_v(kN);
    double lr = 0.01, beta1 = 0.9, beta2 = 0.99, epsilon = 1e-8, decay = 0.1, scale = 0.25;
    for (int step = 1; step <= 3; ++step) {
        Floats g = random_values(kN, 100 + step);
        g[7] = 0.0f;
        const double correction1 = 1.0 - std::pow(beta1, step), correction2 = 1.0 - std::pow(beta2, step);
        for (size_t begin = 0; begin < kN; begin += 77) {
            const size_t n = std::min<size_t>(77, kN - begin);
            adamw_update(static_cast<int64_t>(n), &p[begin], &g[begin], &m[begin], &v[begin],
                         {scale, lr, beta1, beta2, correction1, correction2, epsilon, decay});
        }
        for (size_t i = 0; i < kN; ++i) {
            const long double gradient = static_cast<long double>(scale) * g[i];
            expected_m[i] = beta1 * expected_m[i] + (1 - beta1) * gradient;
            expected_v[i] = beta2 * expected_v[i] + (1 - beta2) * gradient * gradient;
            expected[i] -= lr * (decay * expected[i] +
                                 expected_m[i] / correction1 / (std::sqrt(expected_v[i] / correction2) + epsilon));
        }
    }
    check("AdamW, parameters", relative_difference(p, Doubles(expected.begin(), expected.end())), 1e-7);
    check("AdamW, first moments", relative_difference(m, Doubles(expected_m.begin(), expected_m.end())), 1e-7);
    check("AdamW, second moments", relative_difference(v, Doubles(expected_v.begin(), expected_v.end())), 1e-7);
    double sum = 0.0;
    for (const float x : p) {
        sum += static_cast<double>(x) * x;
    }
    check("sum of squares", std::abs(square_sum(kN, p.data()) / sum - 1.0), 1e-14);
    check("sum of squares of large values", std::abs(square_sum(2, Floats{1e30f, 1e30f}.data()) / 2e60 - 1.0), 1e-6);
}

}  // namespace

int main() {
    test_activations();
    test_limited_glu();
    test_rows();
    test_sinkhorn();
    test_cross_entropy();
    test_divergence();
    test_dropout();
    test_adamw();
    return finish();
}
