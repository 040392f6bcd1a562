// Checks the matrix products, and those with a quantized weight, against the loops that define them.

#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/bf16.h"
#include "kernels/bf16_unpack.h"
#include "kernels/dequantize.h"
#include "kernels/gemm.h"
#include "kernels/int16_gradient.h"
#include "kernels/int8_unpack.h"
#include "kernels/weight_product.h"

namespace {

using namespace ggtune::kernels;
using namespace ggtune::test;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

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
            check(name, relative_difference(c, expected), 1e-6);
        } else {
            check(name + ", " + std::to_string(nth) + " threads", same_bits(c, first) ? 0.0 : 1.0, 0.0);
        }
    }
}

void test_gemm() {
    const int64_t shapes[][3] = {{1, 1, 1},     {5, 7, 3},     {6, 64, 256},  {13, 65, 257}, {64, 100, 100},
                                 {100, 64, 33}, {33, 16, 300}, {16, 129, 40}, {4, 200, 1},   {200, 4, 77},
                                 {97, 530, 20}, {1030, 70, 9}, {48, 48, 520}, {3, 1000, 10}, {1, 70, 300},
                                 {70, 1, 300},  {4, 100, 70},  {8, 65, 600},  {3, 35, 1100}, {16, 300, 260},
                                 {5, 1030, 40}, {515, 8, 300}, {37, 7, 33},   {130, 13, 530}};
    int variant = 0;
    for (const auto & s : shapes) {
        for (int transposes = 0; transposes < 4; ++transposes) {
            const float beta = variant % 3 == 0 ? 0.0f : variant % 3 == 1 ? 1.0f : -0.7f;
            test_gemm({s[0], s[1], s[2], (transposes & 1) != 0, (transposes & 2) != 0, variant % 5 == 0,
                       variant % 2 == 0 ? 1.0f : 0.3f, beta, variant % 4 == 0 ? 3 : 0});
            ++variant;
        }
    }
    Floats c = {1.0f, 2.0f, 3.0f, 4.0f};
    gemm(2, 2, 0, {nullptr, 0, 1}, {nullptr, 2, 1}, 1.0f, 0.5f, c.data(), 2, 1, 0, 1);
    check("gemm 2x2x0 scales C", relative_difference(c, Floats{0.5f, 1.0f, 1.5f, 2.0f}), 0.0);
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

// Against ggml's own conversion. Where one fuses multiply and add and the other does not, the last bit differs.
void test_dequantize() {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        if (!can_dequantize(type) || type == GGML_TYPE_F32) {
            continue;
        }
        for (const int64_t n_blocks : {1, 3, 37}) {
            const int64_t n = n_blocks * ggml_blck_size(type);
            const QuantizedWeight w = quantized(type, n, 1);
            Floats expected(static_cast<size_t>(n)), values(static_cast<size_t>(n + 1), -7.0f);
            ggml_get_type_traits(type)->to_float(w.data.data(), expected.data(), n);
            dequantize_row(type, w.data.data(), values.data(), n);
            const std::string name = std::string("dequantize ") + ggml_type_name(type) + " " + std::to_string(n);
            check(name, relative_difference(values, expected), 3e-7);
            check(name + " writes no further", values.back() == -7.0f ? 0.0 : 1.0, 0.0);
        }
    }
}

// Subnormal values may have become zero.
bool is_rounded(detail::Bf16 bits, float value) {
    if (std::isnan(value)) {
        return std::isnan(detail::to_float(bits));
    }
    const bool is_zero = detail::to_float(bits) == 0.0f && std::fpclassify(value) == FP_SUBNORMAL;
    return is_zero || bits == detail::to_bf16(value);
}

// Formats around 128 reach as far below it as above, but for a single value where they have all bytes.
void check_largest_value(const detail::Int8Format & format, const std::vector<uint8_t> & blocks, int64_t n,
                         const std::string & name) {
    std::vector<uint8_t> values(static_cast<size_t>(n));
    Floats scales(values.size()), mins(values.size());
    format.unpack(blocks.data(), n, values.data(), scales.data(), mins.data());
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    check(name + ": largest value", *most, format.largest_value);
    check(name + ": smallest value", format.offset == 128 ? 256 - *least : 0,
          format.largest_value == 255 ? 256 : format.largest_value);
}

// Any bytes are valid blocks. Without mins each weight is a product that is rounded once at most: the bits have to be
// ggml's, but for the kind of NaN.
void test_dequantize_random_blocks() {
    constexpr int64_t kBlocks = 301;
    std::mt19937 engine(11);
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        const detail::Int8Format * format = detail::int8_format(type);
        if (!can_dequantize(type) || !ggml_is_quantized(type)) {
            continue;
        }
        const std::string name = std::string("dequantize random ") + ggml_type_name(type);
        check(name + ": not value by value", format != nullptr ? 0.0 : 1.0, 0.0);
        if (format == nullptr) {
            continue;
        }
        const int64_t n = kBlocks * ggml_blck_size(type);
        std::vector<uint8_t> blocks(ggml_row_size(type, n));
        std::generate(blocks.begin(), blocks.end(), [&] { return static_cast<uint8_t>(engine()); });
        check_largest_value(*format, blocks, n, name);
        if (format->has_min) {
            continue;
        }
        Floats expected(static_cast<size_t>(n)), values(static_cast<size_t>(n));
        ggml_get_type_traits(type)->to_float(blocks.data(), expected.data(), n);
        dequantize_row(type, blocks.data(), values.data(), n);
        int64_t n_different = 0;
        for (size_t j = 0; j < values.size(); ++j) {
            const bool same = std::memcmp(&values[j], &expected[j], sizeof(float)) == 0;
            n_different += same || (std::isnan(values[j]) && std::isnan(expected[j])) ? 0 : 1;
        }
        check(name, static_cast<double>(n_different), 0.0);

        constexpr int64_t kGroup = 32, kStride = 48;
        std::vector<detail::Bf16> rounded(static_cast<size_t>((n + kGroup - 1) / kGroup * kStride));
        detail::unpack_bf16(type, blocks.data(), n, rounded.data(), kStride);
        int64_t n_wrong = 0;
        for (int64_t j = 0; j < n; ++j) {
            const float value = expected[static_cast<size_t>(j)];
            const detail::Bf16 bits = rounded[static_cast<size_t>(j / kGroup * kStride + j % kGroup)];
            n_wrong += is_rounded(bits, value) ? 0 : 1;
        }
        check(name + " as bf16", static_cast<double>(n_wrong), 0.0);
    }
}

using WeightProduct = decltype(&weight_input_gradient);
using WeightProductReference = decltype(&weight_input_gradient_reference);

// Fast against reference over token counts, and equal bits over thread counts. x_cols and y_cols: columns of input and
// result.
void test_weight_product(const std::string & name, WeightProduct product, WeightProductReference reference,
                         ggml_type type, const QuantizedWeight & w, int64_t n_in, int64_t n_out, int64_t x_cols,
                         int64_t y_cols, double limit = 1e-5) {
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
                    const double error = relative_difference(y, expected);
                    worst = std::isnan(error) ? error : std::max(worst, error);
                }
                same = same && std::memcmp(y.data(), first.data(), y.size() * sizeof(float)) == 0;
            }
        }
    }
    const std::string label =
        name + " " + ggml_type_name(type) + " [" + std::to_string(n_out) + ", " + std::to_string(n_in) + "]";
    check(label, worst, limit);
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
            if (int16_gradient_supported(type)) {
                test_weight_product("int16 input gradient", int16_input_gradient, weight_input_gradient_reference, type,
                                    w, n_in, n_out, n_out, n_in, 1e-4);
            }
        }
    }
    check("integers are no weights", can_dequantize(GGML_TYPE_I32) || can_dequantize(GGML_TYPE_Q8_K) ? 1.0 : 0.0, 0.0);
}

// int16_input_gradient() where rounding and integer sums are hardest.
void test_int16_gradient(ggml_type type) {
    constexpr int64_t kTokens = 5, kIn = 512, kOut = 301;
    const std::string name = std::string("int16 input gradient ") + ggml_type_name(type);
    const auto gradients = [&](const QuantizedWeight & w, const Floats & dy, Floats & dx, Floats & expected) {
        dx.assign(kTokens * kIn, NAN);
        expected.assign(kTokens * kIn, NAN);
        int16_input_gradient(type, w.data.data(), w.row_bytes, kIn, kOut, dy.data(), kOut, kTokens, dx.data(), kIn,
                             false, 0, 1);
        weight_input_gradient_reference(type, w.data.data(), w.row_bytes, kIn, kOut, dy.data(), kOut, kTokens,
                                        expected.data(), kIn, false);
    };
    Floats dx, expected;

    // equal weights, which have the largest integers, and equal dY: the largest sums
    for (const float sign : {1.0f, -1.0f}) {
        const Floats values(static_cast<size_t>(kIn * kOut), 0.75f);
        QuantizedWeight w{std::vector<char>(ggml_row_size(type, kIn) * kOut), ggml_row_size(type, kIn)};
        const Floats importance(static_cast<size_t>(kIn), 1.0f);
        ggml_quantize_chunk(type, values.data(), w.data.data(), 0, kOut, kIn, importance.data());
        gradients(w, Floats(kTokens * kOut, sign), dx, expected);
        check(name + ", largest sums", relative_difference(dx, expected), 1e-4);
    }

    // more columns than a tile and more tokens than a block; three threads begin inside a block of columns
    const int64_t shapes[][3] = {{2304, 37, 13}, {256, 5, 1031}};
    for (const auto & [n_in, n_out, n_tokens] : shapes) {
        const QuantizedWeight w = quantized(type, n_in, n_out);
        const Floats dy = random_values(n_tokens * n_out, 10);
        const auto size = static_cast<size_t>(n_tokens * n_in);
        expected.assign(size, NAN);
        weight_input_gradient_reference(type, w.data.data(), w.row_bytes, n_in, n_out, dy.data(), n_out, n_tokens,
                                        expected.data(), n_in, false);
        Floats first;
        for (const int nth : {1, 2, 3, 8}) {
            dx.assign(size, NAN);
            run_parts(nth, [&, n_in = n_in, n_out = n_out, n_tokens = n_tokens](int ith, int n) {
                int16_input_gradient(type, w.data.data(), w.row_bytes, n_in, n_out, dy.data(), n_out, n_tokens,
                                     dx.data(), n_in, false, ith, n);
            });
            const std::string label = name + " " + std::to_string(n_in) + " x " + std::to_string(n_tokens);
            if (nth == 1) {
                first = dx;
                check(label, relative_difference(dx, expected), 1e-4);
            } else {
                check(label + ", " + std::to_string(nth) + " threads", same_bits(dx, first) ? 0.0 : 1.0, 0.0);
            }
        }
    }

    const QuantizedWeight w = quantized(type, kIn, kOut);
    Floats dy = random_values(kTokens * kOut, 7);
    for (size_t i = 0; i < dy.size(); ++i) {
        dy[i] *= i % kOut == 17 ? 1.0f : 1e-3f;  // one output of a token holds all the norm
    }
    gradients(w, dy, dx, expected);
    check(name + ", one large dY", relative_difference(dx, expected), 5e-4);

    // tokens apart from each other by 50 orders of magnitude: each has its own error
    dy = random_values(kTokens * kOut, 8);
    const float sizes[kTokens] = {1e-26f, 1.0f, 0.0f, 1e30f, 1e-42f};
    for (size_t i = 0; i < dy.size(); ++i) {
        dy[i] *= sizes[i / kOut];
    }
    gradients(w, dy, dx, expected);
    for (int64_t t = 0; t < kTokens; ++t) {
        const auto row = [&](const Floats & x) { return Floats(x.begin() + t * kIn, x.begin() + (t + 1) * kIn); };
        // the smallest are lost
        const double error =
            t == 4 ? (std::all_of(dx.begin() + t * kIn, dx.end(), [](float x) { return std::abs(x) < 1e-36f; }) ? 0.0
                                                                                                                : 1.0)
                   : relative_difference(row(dx), row(expected));
        check(name + ", dY of size " + std::to_string(std::log10(sizes[t])), error, 1e-4);
    }

    for (const float special : {NAN, INFINITY, -INFINITY}) {
        dy = random_values(kTokens * kOut, 9);
        dy[2 * kOut + 300] = special;
        gradients(w, dy, dx, expected);
        bool as_expected = true;
        for (int64_t i = 0; i < kTokens * kIn; ++i) {
            as_expected = as_expected && std::isfinite(dx[static_cast<size_t>(i)]) == (i / kIn != 2);
        }
        check(name + ", a token with " + std::to_string(special), as_expected ? 0.0 : 1.0, 0.0);
    }
}

}  // namespace

int main() {
    ggml_cpu_init();
    test_gemm();
    test_dequantize();
    test_dequantize_random_blocks();
    test_weight_products();
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        if (int16_gradient_supported(static_cast<ggml_type>(i))) {
            test_int16_gradient(static_cast<ggml_type>(i));
        }
    }
    ggml_quantize_free();
    return finish();
}
