// Checks every CPU kernel against the loop or the formula that defines it. Prints a line per check; exit status 1 if
// one fails.

#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/activations.h"
#include "kernels/dequantize.h"
#include "kernels/dropout.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "kernels/softmax.h"
#include "kernels/weight_product.h"

namespace {

using namespace ggtune::kernels;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

int n_passed = 0;
int n_failed = 0;

void check(const std::string & name, double error, double tolerance) {
    const bool ok = error <= tolerance;  // false for NaN
    (ok ? n_passed : n_failed) += 1;
    std::printf("%s  %-58s error %.2e  (at most %.0e)\n", ok ? "ok  " : "FAIL", name.c_str(), error, tolerance);
}

void check_same_bits(const std::string & name, const Floats & a, const Floats & b) {
    const bool same = a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    check(name, same ? 0.0 : 1.0, 0.0);
}

Floats random_values(size_t n, uint32_t seed, float scale = 1.0f) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal(0.0f, scale);
    Floats values(n);
    std::generate(values.begin(), values.end(), [&] { return normal(engine); });
    return values;
}

// |a - b| / |b| in the Euclidean norm
template <class A, class B>
double relative_error(const A & a, const B & b) {
    double difference = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < b.size(); ++i) {
        const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
        difference += d * d;
        norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
    }
    return std::sqrt(difference / (norm > 0.0 ? norm : 1.0));
}

// Runs all parts one after another, as nth threads of ggml would.
template <class F>
void run_parts(int nth, F && f) {
    for (int ith = 0; ith < nth; ++ith) {
        f(ith, nth);
    }
}

struct GemmCase {
    int64_t m, n, k;
    bool a_transposed, b_transposed, c_transposed;
    float alpha, beta;
    int64_t padding;  // of rows, in floats
};

void test_gemm(const GemmCase & g) {
    const auto matrix = [&](int64_t rows, int64_t cols, bool transposed, const Floats & data) {
        return transposed ? Operand{data.data(), 1, rows + g.padding} : Operand{data.data(), cols + g.padding, 1};
    };
    const auto size = [&](int64_t rows, int64_t cols) {
        return static_cast<size_t>((rows + g.padding) * (cols + g.padding));
    };
    const Floats a = random_values(size(g.m, g.k), 1);
    const Floats b = random_values(size(g.k, g.n), 2);
    const Operand a_matrix = matrix(g.m, g.k, g.a_transposed, a);
    const Operand b_matrix = matrix(g.k, g.n, g.b_transposed, b);
    Floats c0 = random_values(size(g.m, g.n), 3);
    if (g.beta == 0.0f) {
        c0[0] = NAN;
    }
    const int64_t c_row_stride = g.c_transposed ? 1 : g.n + g.padding;
    const int64_t c_col_stride = g.c_transposed ? g.m + g.padding : 1;
    Floats expected = c0;
    gemm_reference(g.m, g.n, g.k, a_matrix, b_matrix, g.alpha, g.beta, expected.data(), c_row_stride, c_col_stride);
    Floats first;
    const std::string name = "gemm " + std::to_string(g.m) + "x" + std::to_string(g.n) + "x" + std::to_string(g.k) +
                             (g.a_transposed ? " A^T" : "") + (g.b_transposed ? " B^T" : "") +
                             (g.c_transposed ? " C^T" : "");
    for (const int nth : {1, 2, 3, 8}) {
        Floats c = c0;
        run_parts(nth, [&](int ith, int n) {
            gemm(g.m, g.n, g.k, a_matrix, b_matrix, g.alpha, g.beta, c.data(), c_row_stride, c_col_stride, ith, n);
        });
        if (nth == 1) {
            first = c;
            check(name, relative_error(c, expected), 1e-6);
        } else {
            check_same_bits(name + ", " + std::to_string(nth) + " threads", c, first);
        }
    }
}

void test_gemm() {
    const int64_t shapes[][3] = {{1, 1, 1},      {5, 7, 3},     {6, 64, 256},  {13, 65, 257},
                                 {64, 100, 100}, {100, 64, 33}, {33, 16, 300}, {16, 129, 40},
                                 {4, 200, 1},    {200, 4, 77},  {97, 530, 20}, {1030, 70, 9},
                                 {48, 48, 520},  {3, 1000, 10}, {1, 70, 300},  {70, 1, 300}};
    int variant = 0;
    for (const auto & s : shapes) {
        for (int transposes = 0; transposes < 4; ++transposes) {
            const float beta = variant % 3 == 0 ? 0.0f : variant % 3 == 1 ? 1.0f : -0.5f;
            test_gemm({s[0], s[1], s[2], (transposes & 1) != 0, (transposes & 2) != 0, variant % 5 == 0,
                       variant % 2 == 0 ? 1.0f : 0.25f, beta, variant % 4 == 0 ? 3 : 0});
            ++variant;
        }
    }
    Floats c = {1.0f, 2.0f, 3.0f, 4.0f};
    gemm(2, 2, 0, {nullptr, 0, 1}, {nullptr, 2, 1}, 1.0f, 0.5f, c.data(), 2, 1, 0, 1);
    check("gemm 2x2x0 scales C", relative_error(c, Floats{0.5f, 1.0f, 1.5f, 2.0f}), 0.0);
}

struct QuantizedWeight {
    std::vector<char> data;
    size_t row_bytes;
};

QuantizedWeight quantized(ggml_type type, int64_t n_in, int64_t n_out) {
    const Floats values = random_values(static_cast<size_t>(n_in * n_out), 4, 0.05f);
    const Floats importance(static_cast<size_t>(n_in), 1.0f);
    const size_t row_bytes = ggml_row_size(type, n_in);
    QuantizedWeight weight{std::vector<char>(row_bytes * static_cast<size_t>(n_out)), row_bytes};
    ggml_quantize_chunk(type, values.data(), weight.data.data(), 0, n_out, n_in, importance.data());
    return weight;
}

using WeightProduct = decltype(&weight_input_gradient);
using WeightProductReference = decltype(&weight_input_gradient_reference);

// Fast against reference over token counts, and equal bits over thread counts. x_cols and y_cols: columns of input and
// result.
void test_weight_product(const std::string & name, WeightProduct product, WeightProductReference reference,
                         ggml_type type, const QuantizedWeight & w, int64_t n_in, int64_t n_out, int64_t x_cols,
                         int64_t y_cols) {
    constexpr int64_t kPadding = 5;
    double worst = 0.0;
    bool same = true;
    for (const int64_t n_tokens : {1, 2, 7, 33, 256}) {
        for (const bool accumulate : {false, true}) {
            const int64_t x_stride = x_cols + kPadding;
            const int64_t y_stride = y_cols + kPadding;
            const Floats x = random_values(static_cast<size_t>(n_tokens * x_stride), 5);
            Floats y0 = random_values(static_cast<size_t>(n_tokens * y_stride), 6);
            Floats expected = y0;
            if (!accumulate) {
                y0[0] = NAN;
            }
            reference(type, w.data.data(), w.row_bytes, n_in, n_out, x.data(), x_stride, n_tokens, expected.data(),
                      y_stride, accumulate);
            Floats first;
            for (const int nth : {1, 2, 3}) {
                Floats y = y0;
                run_parts(nth, [&](int ith, int n) {
                    product(type, w.data.data(), w.row_bytes, n_in, n_out, x.data(), x_stride, n_tokens, y.data(),
                            y_stride, accumulate, ith, n);
                });
                if (nth == 1) {
                    first = y;
                    const double error = relative_error(y, expected);
                    worst = std::isnan(error) ? error : std::max(worst, error);
                }
                same = same && std::memcmp(y.data(), first.data(), y.size() * sizeof(float)) == 0;
            }
        }
    }
    const std::string label =
        name + " " + ggml_type_name(type) + " [" + std::to_string(n_out) + ", " + std::to_string(n_in) + "]";
    check(label, worst, 1e-5);
    check(label + ", 1 to 3 threads", same ? 0.0 : 1.0, 0.0);
}

void test_weight_products() {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        if (!can_dequantize(type)) {
            continue;
        }
        std::vector<int64_t> widths = {ggml_blck_size(type), 3 * ggml_blck_size(type), 256, 768};
        if (ggml_blck_size(type) == 1) {
            widths.insert(widths.end(), {57, 131});
        }
        std::sort(widths.begin(), widths.end());
        widths.erase(std::unique(widths.begin(), widths.end()), widths.end());
        for (const int64_t n_in : widths) {
            const int64_t n_out = n_in == 256 ? 301 : 37;
            const QuantizedWeight w = quantized(type, n_in, n_out);
            test_weight_product("input gradient", weight_input_gradient, weight_input_gradient_reference, type, w, n_in,
                                n_out, n_out, n_in);
            test_weight_product("forward", weight_forward, weight_forward_reference, type, w, n_in, n_out, n_in, n_out);
        }
    }
    check("integers are no weights", can_dequantize(GGML_TYPE_I32) || can_dequantize(GGML_TYPE_Q8_K) ? 1.0 : 0.0, 0.0);
}

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
        check(std::string(name) + " backward, in place", relative_error(dx, dx_expected), 1e-6);

        const Floats up = random_values(x.size(), 8);
        Doubles glu(x.size()), d_gate_expected(x.size()), d_up_expected(x.size());
        for (size_t i = 0; i < x.size(); ++i) {
            glu[i] = expected[i] * static_cast<double>(up[i]);
            d_gate_expected[i] = dx_expected[i] * static_cast<double>(up[i]);
            d_up_expected[i] = expected[i] * static_cast<double>(dy[i]);
        }
        glu_forward(activation, x.data(), up.data(), y.data(), n);
        check(std::string(name) + " gated forward", relative_error(y, glu), 1e-6);
        Floats d_up(x.size());
        glu_backward(activation, x.data(), up.data(), dy.data(), dx.data(), d_up.data(), n);
        check(std::string(name) + " gated backward, gate", relative_error(dx, d_gate_expected), 1e-6);
        check(std::string(name) + " gated backward, up", relative_error(d_up, d_up_expected), 1e-6);
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
        worst = std::max(worst, relative_error(slice(dx), finite_differences(forward, slice(x), slice(dy))));
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
        check(name + ", gradient", relative_error(gradient, expected), 1e-6);
    }
    // -inf marks impossible tokens; a sure target has an exact, tiny gradient
    Floats sure = {30.0f, 0.0f, -INFINITY};
    const double log_p = cross_entropy_gradient_inplace(sure.data(), 3, 0, 1.0f);
    const double tail = std::exp(-30.0);
    check("cross entropy of a sure target",
          relative_error(Doubles(sure.begin(), sure.end()), Doubles{-tail, tail, 0.0}), 1e-5);
    check("cross entropy of a sure target, log p", std::abs(log_p + tail), 1e-12);
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
    check_same_bits("dropout in parts", parts, y);
    constexpr int64_t kBorder = int64_t{1} << 32;
    dropout(mask, kBorder - kN / 2, x.data(), y.data(), kN);
    dropout(mask, kBorder, x.data(), parts.data(), kN / 2);
    check_same_bits("dropout across 2^32", Floats(y.begin() + kN / 2, y.end()),
                    Floats(parts.begin(), parts.begin() + kN / 2));
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
    check_same_bits("dropout with p = 0 is the identity", y, x);
}

}  // namespace

int main() {
    ggml_cpu_init();
    test_gemm();
    test_weight_products();
    test_activations();
    test_rows();
    test_cross_entropy();
    test_dropout();
    ggml_quantize_free();
    std::printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed == 0 ? 0 : 1;
}
