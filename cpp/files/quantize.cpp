#include "files/quantize.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "kernels/dequantize.h"

namespace ggtune {

namespace {

std::string upper(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::toupper(c); });
    return text;
}

}  // namespace

ggml_type type_from_name(const std::string & name) {
    std::string known;
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        if (!kernels::can_dequantize(type)) {
            continue;
        }
        if (upper(name) == upper(ggml_type_name(type))) {
            return type;
        }
        known += std::string(known.empty() ? "" : ", ") + ggml_type_name(type);
    }
    throw Error("unknown tensor type '" + name + "'; known are " + known);
}

int64_t row_bytes(ggml_type type, int64_t n) {
    if (n <= 0 || n % ggml_blck_size(type) != 0) {
        throw Error("rows of " + std::to_string(n) + " elements are no multiple of the " +
                    std::to_string(ggml_blck_size(type)) + " of a block of type " + ggml_type_name(type));
    }
    return static_cast<int64_t>(ggml_row_size(type, n));
}

bool has_quantizer(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q1_0:
        case GGML_TYPE_Q2_0:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_MXFP4:
        case GGML_TYPE_NVFP4:
        case GGML_TYPE_Q2_K:
        case GGML_TYPE_Q3_K:
        case GGML_TYPE_Q4_K:
        case GGML_TYPE_Q5_K:
        case GGML_TYPE_Q6_K:
        case GGML_TYPE_TQ1_0:
        case GGML_TYPE_TQ2_0:
        case GGML_TYPE_IQ2_XXS:
        case GGML_TYPE_IQ2_XS:
        case GGML_TYPE_IQ3_XXS:
        case GGML_TYPE_IQ3_S:
        case GGML_TYPE_IQ2_S:
        case GGML_TYPE_IQ1_S:
        case GGML_TYPE_IQ1_M:
        case GGML_TYPE_IQ4_NL:
        case GGML_TYPE_IQ4_XS:
            return true;
        default:
            return false;
    }
}

float largest_value(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F16:
        // These quantizers search a codebook and assert where their sums of squares overflow.
        case GGML_TYPE_IQ1_S:
        case GGML_TYPE_IQ1_M:
        case GGML_TYPE_IQ2_XXS:
        case GGML_TYPE_IQ2_XS:
        case GGML_TYPE_IQ2_S:
        case GGML_TYPE_IQ3_XXS:
        case GGML_TYPE_IQ3_S:
            return 65504.0f;
        default:
            return std::numeric_limits<float>::max();
    }
}

std::string why_not_quantizable(ggml_type type) {
    if (!has_quantizer(type)) {
        return "ggml has no quantizer for it";
    }
    if (ggml_quantize_requires_imatrix(type)) {
        return "its quantizer needs an importance matrix";
    }
    return "";
}

// The quantizers of some types assert on values that are not finite.
void check_finite(ggml_type type, const float * values, int64_t n, const std::string & what) {
    const float largest = largest_value(type);
    for (int64_t i = 0; i < n; ++i) {
        if (!(std::fabs(values[i]) <= largest)) {
            throw Error(what + ": element " + std::to_string(i) + " of a row is " + std::to_string(values[i]) +
                        ", which " + ggml_type_name(type) + " can't hold");
        }
    }
}

void quantize_rows(ggml_type type, const float * values, void * data, int64_t n_rows, int64_t n_per_row,
                   const std::string & what) {
    const std::string reason = why_not_quantizable(type);
    if (!reason.empty()) {
        throw Error(what + " can't be written as " + ggml_type_name(type) + ": " + reason);
    }
    for (int64_t i = 0; i < n_rows; ++i) {
        check_finite(type, values + i * n_per_row, n_per_row, what);
    }
    ggml_quantize_chunk(type, values, data, 0, n_rows, n_per_row, nullptr);
}

}  // namespace ggtune
