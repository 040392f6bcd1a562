// The products of a mixture of experts: every token has its own n_used of n_experts matrices, and a result for each.
//
// A pair is a token and one of its experts, pair p being expert p % n_used of token p / n_used. Pairs are sorted by
// expert once; then those of one expert are the rows of an ordinary product, which are gathered from X and scattered
// to Y. Pairs whose expert does not exist are sorted to the end: their results are NaN.
//
// Row strides are in floats, rows are contiguous. A result is computed a range of units at a time, which threads may
// take in any order: it has the same bits for every division and every number of threads.
#pragma once

#include <ggml.h>

#include <cstddef>
#include <cstdint>

#include "kernels/partition.h"

namespace ggtune::kernels {

// W ne = [n_in, n_out, n_experts]: row o of an expert holds its n_in weights of output o in row_bytes bytes; n_in is a
// multiple of ggml_blck_size(type), and can_dequantize(type).
struct ExpertWeights {
    ggml_type type;
    const void * data;
    size_t row_bytes, expert_bytes;
    int64_t n_in, n_out, n_experts;

    const char * row(int64_t expert, int64_t output) const {
        return static_cast<const char *>(data) + static_cast<size_t>(expert) * expert_bytes +
               static_cast<size_t>(output) * row_bytes;
    }
};

// The pairs sorted by expert: expert e has those at [first[e], first[e + 1]), no expert those from first[n_experts] on.
struct ExpertRows {
    int64_t n_experts, n_pairs;
    const int32_t * first;   // [n_experts + 1]
    const int32_t * pairs;   // [n_pairs], ascending within an expert
    const int32_t * tokens;  // [n_pairs], those of the pairs

    Range of(int64_t expert) const { return {first[expert], first[expert + 1]}; }
};

// Sorts; element (k, t) of the ids, the expert that is the k-th of token t, at ids[k * k_stride + t * t_stride].
// `sorted` holds sorted_pairs_size() integers, as expert_rows() reads them.
int64_t sorted_pairs_size(int64_t n_experts, int64_t n_pairs);
void sort_pairs(const int32_t * ids, int64_t k_stride, int64_t t_stride, int64_t n_used, int64_t n_tokens,
                int64_t n_experts, int32_t * sorted);
ExpertRows expert_rows(const int32_t * sorted, int64_t n_experts, int64_t n_pairs);

// The rows of X or dX: tokens where all experts of a token share a row (`shared`), else pairs.
struct ExpertInputs {
    int64_t row_stride;
    int64_t n_rows;
    bool shared;

    const int32_t * rows(const ExpertRows & pairs) const { return shared ? pairs.tokens : pairs.pairs; }
};

// How a result is divided: into so many tiles of so many columns of each expert, or of all of them together.
struct ExpertUnits {
    int64_t n_units;
    int64_t n_columns;
};

// Y[p, o] = scale * sum_i X[., i] * W[e, o, i], added to Y where `accumulate`, in float32.
//   x  [tokens or pairs, n_in]    y  [n_pairs, n_out]
ExpertUnits expert_forward_units(const ExpertWeights & w, int n_threads);
void expert_forward(const ExpertWeights & w, const ExpertRows & pairs, const float * x, const ExpertInputs & inputs,
                    float scale, bool accumulate, float * y, int64_t y_row_stride, int64_t unit_columns,
                    const Range & units);

// dX[., i] = scale * sum_o dY[p, o] * W[e, o, i], added to dX where `accumulate`, in float32; over the experts of a
// token that share a row of X the sum is taken in the order of their numbers.
//   dy  [n_pairs, n_out]    dx  [tokens or pairs, n_in]
ExpertUnits expert_input_gradient_units(const ExpertWeights & w, const ExpertInputs & inputs, int n_threads);
void expert_input_gradient(const ExpertWeights & w, const ExpertRows & pairs, const float * dy, int64_t dy_row_stride,
                           float scale, bool accumulate, float * dx, const ExpertInputs & inputs, int64_t unit_columns,
                           const Range & units);

// The plain loops that define the two.
void expert_forward_reference(const ExpertWeights & w, const ExpertRows & pairs, const float * x,
                              const ExpertInputs & inputs, float scale, bool accumulate, float * y,
                              int64_t y_row_stride);
void expert_input_gradient_reference(const ExpertWeights & w, const ExpertRows & pairs, const float * dy,
                                     int64_t dy_row_stride, float scale, bool accumulate, float * dx,
                                     const ExpertInputs & inputs);

// Y as expert_forward() has it with scale 1, by int8 dot products: for int8_product_supported() types. What X is
// quantized to, expert by expert, takes expert_int8_blocks() blocks of int8_token_block_bytes() at most, and serves all
// weights of the same int8_activation_block(); it is made by blocks, of which there are expert_int8_quantize_units().
int64_t expert_int8_blocks(int64_t n_experts, int64_t n_pairs);
int64_t expert_int8_quantize_units(const ExpertRows & pairs);
void expert_int8_quantize(const ExpertRows & pairs, const float * x, const ExpertInputs & inputs, int64_t n_in,
                          int64_t activation_block, void * quantized, const Range & units);
ExpertUnits expert_int8_forward_units(const ExpertWeights & w, int n_threads);
void expert_int8_forward(const ExpertWeights & w, const ExpertRows & pairs, const void * quantized, float * y,
                         int64_t y_row_stride, int64_t unit_columns, const Range & units);

// dX as expert_input_gradient() has it with scale 1, by int16 dot products: for int16_gradient_supported() types.
ExpertUnits expert_int16_input_gradient_units(const ExpertWeights & w, const ExpertInputs & inputs, int n_threads);
void expert_int16_input_gradient(const ExpertWeights & w, const ExpertRows & pairs, const float * dy,
                                 int64_t dy_row_stride, bool accumulate, float * dx, const ExpertInputs & inputs,
                                 int64_t unit_columns, const Range & units);

// Both with scale 1 in bf16 (bf16_product.h), for all types. What X and dY are packed to, expert by expert, takes
// expert_bf16_panels() panels of bf16_panel_bytes() at most; it is made by panels, of which there are
// expert_bf16_pack_units().
int64_t expert_bf16_panels(int64_t n_experts, int64_t n_pairs);
int64_t expert_bf16_pack_units(const ExpertRows & pairs);
void expert_bf16_pack_inputs(const ExpertRows & pairs, const float * x, const ExpertInputs & inputs, int64_t n_in,
                             void * packed, const Range & units);
void expert_bf16_pack_gradients(const ExpertRows & pairs, const float * dy, int64_t dy_row_stride, int64_t n_out,
                                void * packed, const Range & units);
ExpertUnits expert_bf16_forward_units(const ExpertWeights & w, int n_threads);
void expert_bf16_forward(const ExpertWeights & w, const ExpertRows & pairs, const void * packed, float * y,
                         int64_t y_row_stride, int64_t unit_columns, const Range & units);
ExpertUnits expert_bf16_input_gradient_units(const ExpertWeights & w, const ExpertInputs & inputs, int n_threads);
void expert_bf16_input_gradient(const ExpertWeights & w, const ExpertRows & pairs, const void * packed, bool accumulate,
                                float * dx, const ExpertInputs & inputs, int64_t unit_columns, const Range & units);

// dW[e, o, i] = scale * sum over the pairs of e of dY[p, o] * X[., i], added to dW where `accumulate`; dW float32,
// contiguous, ne = [n_in, n_out, n_experts].
struct ExpertShape {
    int64_t n_in, n_out, n_experts;
};
int64_t expert_weight_gradient_units(const ExpertShape & shape);
void expert_weight_gradient(const ExpertShape & shape, const ExpertRows & pairs, const float * x,
                            const ExpertInputs & inputs, const float * dy, int64_t dy_row_stride, float scale,
                            bool accumulate, float * dw, const Range & units);
void expert_weight_gradient_reference(const ExpertShape & shape, const ExpertRows & pairs, const float * x,
                                      const ExpertInputs & inputs, const float * dy, int64_t dy_row_stride, float scale,
                                      bool accumulate, float * dw);

// The results of a token's experts added up: y[t] = sum_k weights[t, k] * x[t, k], in the order of k; weights nullptr:
// all one. Rows [tokens.begin, tokens.end) of Y.
//   x  [n_tokens, n_used, n]    weights  [n_tokens, n_used]    y  [n_tokens, n]
void expert_sum(const float * x, const float * weights, int64_t n_used, int64_t n, float * y, const Range & tokens);
// dx[t, k] = weights[t, k] * dy[t]
void expert_sum_dx(const float * weights, const float * dy, int64_t dy_row_stride, int64_t n_used, int64_t n,
                   float * dx, const Range & tokens);
// dweights[t, k] = sum_i x[t, k, i] * dy[t, i]
void expert_sum_dweights(const float * x, const float * dy, int64_t dy_row_stride, int64_t n_used, int64_t n,
                         float * dweights, const Range & tokens);

}  // namespace ggtune::kernels
