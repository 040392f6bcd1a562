// Where in a block of a quantized type its scale and its minimum lie, and what a unit of each adds to the weights: a
// block's weights are linear in them. Layouts: ggml-common.h.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <vector>

namespace ggtune::kernels {

constexpr int kMostFactors = 2;

struct BlockFactors {
    ggml_type type;
    int n;                     // kinds of them: the scale, and of some types the minimum
    int64_t at[kMostFactors];  // in a block, in bytes; each is in half precision
};

// nullptr of types without scales in half precision: all but Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL
// IQ4_XS. (Those of MXFP4 are powers of two.)
const BlockFactors * block_factors(ggml_type type);

// directions = what a unit of the factors of that kind adds to the n weights of a row. `row_of_one` is memory to work
// in.
void factor_directions(const BlockFactors & factors, int kind, const uint8_t * row, int64_t n,
                       std::vector<uint8_t> & row_of_one, float * directions);

// Factor `kind` of a block.
float factor_of(const BlockFactors & factors, int kind, const uint8_t * block);
// Of the two halves beside the value it becomes the upper one where the value is more than `threshold` (0 to 1) of the
// way to it. With thresholds that are evenly spread, many factors that move by less than a half's step move together by
// what they should.
void set_factor(const BlockFactors & factors, int kind, float value, float threshold, uint8_t * block);

}  // namespace ggtune::kernels
