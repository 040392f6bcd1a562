#include "kernels/block_factors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

#include "kernels/dequantize.h"
#include "kernels/half.h"

namespace ggtune::kernels {
namespace {

constexpr uint16_t kHalfOne = 0x3c00;

constexpr BlockFactors kFactors[] = {
    {GGML_TYPE_Q4_0, 1, {0}},    {GGML_TYPE_Q4_1, 2, {0, 2}},   {GGML_TYPE_Q5_0, 1, {0}},   {GGML_TYPE_Q5_1, 2, {0, 2}},
    {GGML_TYPE_Q8_0, 1, {0}},    {GGML_TYPE_Q2_K, 2, {80, 82}}, {GGML_TYPE_Q3_K, 1, {108}}, {GGML_TYPE_Q4_K, 2, {0, 2}},
    {GGML_TYPE_Q5_K, 2, {0, 2}}, {GGML_TYPE_Q6_K, 1, {208}},    {GGML_TYPE_IQ4_NL, 1, {0}}, {GGML_TYPE_IQ4_XS, 1, {0}},
};

float half_value(uint16_t half) {
    return detail::half_at(reinterpret_cast<const uint8_t *>(&half));
}

}  // namespace

const BlockFactors * block_factors(ggml_type type) {
    const auto * found =
        std::find_if(std::begin(kFactors), std::end(kFactors), [&](const BlockFactors & f) { return f.type == type; });
    return found == std::end(kFactors) ? nullptr : found;
}

void factor_directions(const BlockFactors & factors, int kind, const uint8_t * row, int64_t n,
                       std::vector<uint8_t> & row_of_one, float * directions) {
    const auto block_bytes = static_cast<int64_t>(ggml_type_size(factors.type));
    const int64_t n_blocks = n / ggml_blck_size(factors.type);
    row_of_one.assign(row, row + n_blocks * block_bytes);
    for (int64_t i = 0; i < n_blocks; ++i) {
        for (int other = 0; other < factors.n; ++other) {
            const uint16_t half = other == kind ? kHalfOne : 0;
            std::memcpy(row_of_one.data() + i * block_bytes + factors.at[other], &half, sizeof half);
        }
    }
    dequantize_row(factors.type, row_of_one.data(), directions, n);
}

float factor_of(const BlockFactors & factors, int kind, const uint8_t * block) {
    return detail::half_at(block + factors.at[kind]);
}

void set_factor(const BlockFactors & factors, int kind, float value, float threshold, uint8_t * block) {
    uint16_t half = ggml_fp32_to_fp16(value);
    const float nearest = half_value(half);
    if (nearest != value) {
        // by magnitude halves lie in the order of their bits
        const auto beyond = static_cast<uint16_t>(std::abs(nearest) < std::abs(value) ? half + 1 : half - 1);
        const float other = half_value(beyond);
        const float lower = std::min(nearest, other), upper = std::max(nearest, other);
        const bool up = (value - lower) / (upper - lower) > threshold;
        half = up == (nearest == upper) ? half : beyond;
    }
    std::memcpy(block + factors.at[kind], &half, sizeof half);
}

}  // namespace ggtune::kernels
