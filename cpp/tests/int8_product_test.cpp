// Checks the int8 products against the exact products with the dequantized weights, and their error against that of
// ggml's own quantized products.

#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/int8_product.h"
#include "kernels/int8_unpack.h"
#include "kernels/iq_unpack.h"

namespace {

using namespace ggtune::kernels;
using ggtune::test::check;
using ggtune::test::random_values;
using ggtune::test::relative_difference;
using ggtune::test::run_parts;
using ggtune::test::same_bits;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

constexpr int64_t kPadding = 5;  // of the rows of X and Y, in floats

// Values of very different sizes from one 32 to the next, as activations have them.
Floats random_activations(int64_t n, uint32_t seed) {
    Floats values = random_values(n, seed);
    for (size_t i = 0; i < values.size(); ++i) {
        values[i] *= i / 32 % 5 == 0 ? 8.0f : i / 32 % 3 == 0 ? 0.05f : 1.0f;
    }
    return values;
}

struct Weight {
    ggml_type type;
    int64_t n_in, n_out;
    size_t row_bytes;
    std::vector<char> data;
    Floats values;  // dequantized

    Weight(ggml_type type, int64_t n_in, int64_t n_out)
        : type(type),
          n_in(n_in),
          n_out(n_out),
          row_bytes(ggml_row_size(type, n_in)),
          data(row_bytes * static_cast<size_t>(n_out)),
          values(static_cast<size_t>(n_in * n_out)) {
        if (detail::codebook_format(type) != nullptr) {
            // quantizing to these takes seconds; without a half's highest exponent bit every scale is below 2
            std::mt19937 engine(1);
            std::generate(data.begin(), data.end(), [&] { return static_cast<char>(engine() & 0xbf); });
        } else {
            // a mean other than zero gives the mins their weight
            Floats source = random_values(n_in * n_out, 1, 0.05f);
            std::transform(source.begin(), source.end(), source.begin(), [](float v) { return v + 0.02f; });
            quantize(source);
        }
        dequantize();
    }

    void quantize(const Floats & source) {
        ggml_quantize_chunk(type, source.data(), data.data(), 0, n_out, n_in, nullptr);
    }
    void dequantize() {
        for (int64_t o = 0; o < n_out; ++o) {
            ggml_get_type_traits(type)->to_float(row(o), values.data() + o * n_in, n_in);
        }
    }

    const char * row(int64_t o) const { return data.data() + static_cast<size_t>(o) * row_bytes; }
    std::string name() const {
        return std::string(ggml_type_name(type)) + " [" + std::to_string(n_out) + ", " + std::to_string(n_in) + "]";
    }
};

Floats forward(const Weight & w, const Floats & x, int64_t n_tokens, int nth) {
    const int64_t block = int8_activation_block(w.type);
    std::vector<char> quantized(
        static_cast<size_t>(int8_token_blocks(n_tokens)) * int8_token_block_bytes(w.n_in, block), '\x55');
    run_parts(nth, [&](int ith, int nth) {
        int8_quantize(x.data(), w.n_in + kPadding, w.n_in, block, n_tokens, quantized.data(), ith, nth);
    });
    Floats y(static_cast<size_t>(n_tokens * (w.n_out + kPadding)), 0.25f);
    run_parts(nth, [&](int ith, int nth) {
        int8_forward(w.type, w.data.data(), w.row_bytes, w.n_in, w.n_out, quantized.data(), n_tokens, y.data(),
                     w.n_out + kPadding, ith, nth);
    });
    return y;
}

// The rows of Y without their padding.
Floats rows(const Floats & y, int64_t n_tokens, int64_t n_out) {
    Floats dense;
    for (int64_t t = 0; t < n_tokens; ++t) {
        const auto begin = y.begin() + t * (n_out + kPadding);
        dense.insert(dense.end(), begin, begin + n_out);
    }
    return dense;
}

Doubles exact_product(const Weight & w, const Floats & x, int64_t n_tokens) {
    Doubles y;
    for (int64_t t = 0; t < n_tokens; ++t) {
        for (int64_t o = 0; o < w.n_out; ++o) {
            double sum = 0.0;
            for (int64_t i = 0; i < w.n_in; ++i) {
                sum += static_cast<double>(x[static_cast<size_t>(t * (w.n_in + kPadding) + i)]) *
                       static_cast<double>(w.values[static_cast<size_t>(o * w.n_in + i)]);
            }
            y.push_back(sum);
        }
    }
    return y;
}

// ggml's own product: rows of X quantized to the type's partner, one dot product per element.
Floats ggml_product(const Weight & w, const Floats & x, int64_t n_tokens) {
    const ggml_type_traits_cpu * traits = ggml_get_type_traits_cpu(w.type);
    const ggml_type x_type = traits->vec_dot_type;
    std::vector<char> quantized(ggml_row_size(x_type, w.n_in));
    Floats y;
    for (int64_t t = 0; t < n_tokens; ++t) {
        ggml_get_type_traits_cpu(x_type)->from_float(x.data() + t * (w.n_in + kPadding), quantized.data(), w.n_in);
        for (int64_t o = 0; o < w.n_out; ++o) {
            float dot = 0.0f;
            traits->vec_dot(static_cast<int>(w.n_in), &dot, 0, w.row(o), 0, quantized.data(), 0, 1);
            y.push_back(dot);
        }
    }
    return y;
}

void test_unpack(const Weight & w) {
    const detail::Int8Format & format = *detail::int8_format(w.type);
    const auto n = static_cast<size_t>(w.n_in);
    std::vector<uint8_t> bytes(n);
    Floats scales(n), mins(n, 0.0f), values(n);
    double worst = 0.0;
    for (int64_t o = 0; o < w.n_out; ++o) {
        format.unpack(reinterpret_cast<const uint8_t *>(w.row(o)), w.n_in, bytes.data(), scales.data(), mins.data());
        for (size_t i = 0; i < n; ++i) {
            const size_t block = i / static_cast<size_t>(format.sub_block);
            values[i] = scales[block] * static_cast<float>(bytes[i] - format.offset) - mins[block];
        }
        const auto expected = w.values.begin() + o * w.n_in;
        worst = std::max(worst, relative_difference(values, Floats(expected, expected + w.n_in)));
    }
    check("unpacked " + w.name(), worst, 1e-6);
}

void test_product(const Weight & w, int64_t n_tokens) {
    const std::string name = w.name() + " x " + std::to_string(n_tokens);
    const Floats x = random_activations(n_tokens * (w.n_in + kPadding), 2);
    const Floats y = forward(w, x, n_tokens, 1);
    const Doubles exact = exact_product(w, x, n_tokens);
    const double ggml_error = relative_difference(ggml_product(w, x, n_tokens), exact);
    check(name, relative_difference(rows(y, n_tokens, w.n_out), exact), 1.05 * ggml_error);
    bool padding_kept = true;
    for (int64_t t = 0; t < n_tokens; ++t) {
        for (int64_t j = 0; j < kPadding; ++j) {
            padding_kept = padding_kept && y[static_cast<size_t>(t * (w.n_out + kPadding) + w.n_out + j)] == 0.25f;
        }
    }
    check(name + ", padding untouched", padding_kept ? 0.0 : 1.0, 0.0);
    bool same = true;
    for (const int nth : {1, 2, 3, 8}) {
        same = same && same_bits(forward(w, x, n_tokens, nth), y);
    }
    check(name + ", same bits", same ? 0.0 : 1.0, 0.0);
}

// Activations that are integers times a power of two, the largest of each block 127, are not rounded at all.
void test_exact(const Weight & w) {
    constexpr int64_t kTokens = 13;
    std::mt19937 engine(3);
    Floats x(static_cast<size_t>(kTokens * (w.n_in + kPadding)));
    for (size_t i = 0; i < x.size(); ++i) {
        const auto column = static_cast<int64_t>(i) % (w.n_in + kPadding);
        x[i] = 0.5f * (column % 32 == 7 ? -127.0f : static_cast<float>(static_cast<int>(engine() % 255) - 127));
    }
    check(w.name() + ", activations that need no rounding",
          relative_difference(rows(forward(w, x, kTokens, 2), kTokens, w.n_out), exact_product(w, x, kTokens)), 2e-6);
}

// Nearly all weights have their type's largest value, as bytes, and all activations the largest magnitude.
void test_largest(Weight w) {
    const detail::Int8Format & format = *detail::int8_format(w.type);
    if (detail::codebook_format(w.type) == nullptr) {
        const auto half = static_cast<float>(format.largest_value >> 1);
        const float below_one = half / (half + 1.0f);
        Floats source(w.values.size(), format.has_min ? 1.0f : below_one);
        for (size_t i = 0; i < source.size(); i += 16) {
            source[i] = format.has_min ? 0.0f : -1.0f;
        }
        w.quantize(source);
        w.dequantize();
    }
    constexpr int64_t kTokens = 4;
    Floats x(static_cast<size_t>(kTokens * (w.n_in + kPadding)), 127.0f);
    std::fill(x.begin() + 2 * (w.n_in + kPadding), x.end(), -127.0f);
    check(w.name() + ", largest values",
          relative_difference(rows(forward(w, x, kTokens, 1), kTokens, w.n_out), exact_product(w, x, kTokens)), 2e-6);
}

void test_special_values() {
    const Weight w(GGML_TYPE_Q4_K, 256, 33);
    for (const float special : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
        constexpr int64_t kTokens = 9;
        Floats x = random_values(kTokens * (w.n_in + kPadding), 4);
        x[static_cast<size_t>(4 * (w.n_in + kPadding) + 100)] = special;
        const Floats y = rows(forward(w, x, kTokens, 2), kTokens, w.n_out);
        bool as_expected = true;
        for (size_t i = 0; i < y.size(); ++i) {
            as_expected = as_expected && std::isfinite(y[i]) == (static_cast<int64_t>(i) / w.n_out != 4);
        }
        check("a token with " + std::to_string(special), as_expected ? 0.0 : 1.0, 0.0);
    }
    const Floats zeros(static_cast<size_t>(7 * (w.n_in + kPadding)), 0.0f);
    const Floats y = rows(forward(w, zeros, 7, 1), 7, w.n_out);
    check("tokens of zeros", std::any_of(y.begin(), y.end(), [](float v) { return v != 0.0f; }) ? 1.0 : 0.0, 0.0);
    check("no tokens", forward(w, {}, 0, 1).empty() ? 0.0 : 1.0, 0.0);
}

}  // namespace

int main() {
    ggml_cpu_init();
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        if (!int8_product_supported(type)) {
            continue;
        }
        const int64_t block = std::max(int8_activation_block(type), ggml_blck_size(type));
        const Weight small(type, 3 * block, 37);
        test_unpack(small);
        test_exact(small);
        test_largest(small);
        for (const int64_t n_tokens : {1, 7, 64}) {
            test_product(small, n_tokens);
        }
        test_product(Weight(type, 2048 + 256, 131), 33);  // more than one tile
    }
    test_product(Weight(GGML_TYPE_Q6_K, 256, 24), 1031);
    test_special_values();
    for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_I32, GGML_TYPE_Q8_K}) {
        check(std::string("not supported: ") + ggml_type_name(type), int8_product_supported(type) ? 1.0 : 0.0, 0.0);
    }
    ggml_quantize_free();
    return ggtune::test::finish();
}
