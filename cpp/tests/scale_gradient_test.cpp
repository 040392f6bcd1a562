// Checks the gradient of scales and mins against what a change of each does to the weights, found by ggml's own
// dequantization, and how factors are rounded to half precision.

#include "kernels/scale_gradient.h"

#include <ggml-cpu.h>
#include <ggml.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/block_factors.h"

namespace {

using namespace ggtune::kernels;
using ggtune::test::check;
using ggtune::test::random_values;
using ggtune::test::relative_difference;
using ggtune::test::run_parts;
using ggtune::test::same_bits;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using Bytes = std::vector<uint8_t>;

constexpr int64_t kIn = 768, kOut = 150, kTokens = 33;  // more than two tiles of rows, and a part of one
constexpr ggml_type kTypes[] = {GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0,   GGML_TYPE_Q5_1,
                                GGML_TYPE_Q8_0, GGML_TYPE_Q2_K, GGML_TYPE_Q3_K,   GGML_TYPE_Q4_K,
                                GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS};

Floats dequantized(ggml_type type, const uint8_t * row) {
    Floats values(static_cast<size_t>(kIn));
    ggml_get_type_traits(type)->to_float(row, values.data(), kIn);
    return values;
}

// Weights are linear in a factor: what they are with it doubled, less what they are.
Doubles expected_gradient(ggml_type type, const Bytes & w, int64_t row_bytes, const Floats & x, const Floats & dy) {
    const BlockFactors & factors = *block_factors(type);
    const int64_t block = ggml_blck_size(type), n_blocks = kIn / block;
    const auto block_bytes = static_cast<int64_t>(ggml_type_size(type));
    Doubles gradient;
    for (int64_t o = 0; o < kOut; ++o) {
        Doubles d_weights(static_cast<size_t>(kIn));
        for (int64_t t = 0; t < kTokens; ++t) {
            for (int64_t i = 0; i < kIn; ++i) {
                d_weights[static_cast<size_t>(i)] += static_cast<double>(dy[static_cast<size_t>(t * kOut + o)]) *
                                                     static_cast<double>(x[static_cast<size_t>(t * kIn + i)]);
            }
        }
        const uint8_t * row = w.data() + o * row_bytes;
        const Floats before = dequantized(type, row);
        for (int kind = 0; kind < factors.n; ++kind) {
            Bytes twice(row, row + row_bytes);
            for (int64_t j = 0; j < n_blocks; ++j) {
                uint8_t * at = twice.data() + j * block_bytes + factors.at[kind];
                uint16_t half;
                std::memcpy(&half, at, sizeof half);
                half = ggml_fp32_to_fp16(2.0f * ggml_fp16_to_fp32(half));
                std::memcpy(at, &half, sizeof half);
            }
            const Floats after = dequantized(type, twice.data());
            for (int64_t j = 0; j < n_blocks; ++j) {
                double sum = 0.0;
                for (int64_t i = j * block; i < (j + 1) * block; ++i) {
                    const auto at = static_cast<size_t>(i);
                    sum += d_weights[at] * static_cast<double>(after[at] - before[at]);
                }
                gradient.push_back(sum / static_cast<double>(factor_of(factors, kind, row + j * block_bytes)));
            }
        }
    }
    return gradient;
}

void test_gradient(ggml_type type) {
    const auto row_bytes = static_cast<int64_t>(ggml_row_size(type, kIn));
    const Floats values = random_values(kOut * kIn, 1), x = random_values(kTokens * kIn, 2),
                 dy = random_values(kTokens * kOut, 3), importance(static_cast<size_t>(kIn), 1.0f);
    Bytes w(static_cast<size_t>(kOut * row_bytes));
    ggml_quantize_chunk(type, values.data(), w.data(), 0, kOut, kIn, importance.data());
    const int64_t n = kOut * block_factors(type)->n * kIn / ggml_blck_size(type);
    const auto found = [&](int nth) {
        Floats gradient(static_cast<size_t>(n), 0.5f);  // it is added to
        run_parts(nth, [&](int ith, int of) {
            scale_gradient(type, w.data(), row_bytes, kIn, kOut, kTokens, {x.data(), kIn, 1}, {dy.data(), kOut, 1},
                           gradient.data(), ith, of);
        });
        return gradient;
    };
    const Floats of_one = found(1);
    Doubles expected = expected_gradient(type, w, row_bytes, x, dy);
    for (double & each : expected) {
        each += 0.5;
    }
    const std::string name = std::string("scale gradient ") + ggml_type_name(type);
    check(name, relative_difference(of_one, expected), 1e-5);
    check(name + ", same bits for 3 threads", same_bits(of_one, found(3)) ? 0.0 : 1.0, 0.0);
}

// Between two halves it is the threshold that decides, whatever the sign and on both sides of zero.
void test_rounding() {
    const BlockFactors & factors = *block_factors(GGML_TYPE_Q4_0);
    Bytes block(18);
    const auto rounded = [&](float value, float threshold) {
        set_factor(factors, 0, value, threshold, block.data());
        return factor_of(factors, 0, block.data());
    };
    constexpr float kStep = 0x1p-10f;  // of halves between 1 and 2
    for (const float half : {1.5f, -1.5f}) {
        check("a half stays", std::abs(rounded(half, 0.5f) - half), 0.0);
        for (const float part : {0.1f, 0.4f, 0.6f, 0.9f}) {
            for (const float threshold : {0.05f, 0.3f, 0.5f, 0.8f, 0.95f}) {
                const float expected = half + (part > threshold ? kStep : 0.0f);
                check("rounding by a threshold", std::abs(rounded(half + part * kStep, threshold) - expected), 0.0);
            }
        }
    }
    constexpr float kSmallest = 0x1p-24f;
    check("the smallest half, up", std::abs(rounded(0.6f * kSmallest, 0.5f) - kSmallest), 0.0);
    check("the smallest half, down", std::abs(rounded(0.6f * kSmallest, 0.7f)), 0.0);
    check("below zero, up", std::abs(rounded(-0.6f * kSmallest, 0.3f)), 0.0);
    check("below zero, down", std::abs(rounded(-0.6f * kSmallest, 0.5f) + kSmallest), 0.0);
}

}  // namespace

int main() {
    for (const ggml_type type : kTypes) {
        test_gradient(type);
    }
    test_rounding();
    return ggtune::test::finish();
}
