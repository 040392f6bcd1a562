// One row of a merged tensor.
#pragma once

#include <cstdint>
#include <vector>

#include "files/gguf_file.h"
#include "files/grid_merge.h"
#include "files/lora_product.h"
#include "kernels/grid.h"

namespace ggtune {

// How the rows of one tensor are merged.
struct RowMerge {
    const std::vector<LoraProduct> & products;
    const GgufTensor & from;
    const GgufTensor & to;
    const CutOff * cut_off;  // null: quantized anew
    kernels::Rounding rounding;
    uint64_t key;
};

// What a part of the rows adds to the counts of a MergedTensor; summed over rows in their order.
struct RowCounts {
    bool changed = false;
    int64_t n_moved = 0;
    double change = 0;
    double variance = 0;
};

// delta = what the adapters add to row `index`: [n_in]. Returns whether that is anything.
bool change_of(const RowMerge & merge, int64_t index, std::vector<float> & delta);

// Merges row `index` of the tensor; row and delta are scratch of n_in values. On its grid a row is rounded as
// kernels/grid.h says, but for blocks that change by half a step and more. unmoved, if not null, gets `out` with the
// codes that the random numbers have no part in. Raises Error for values that can't be held.
RowCounts merge_row(const RowMerge & merge, int64_t index, const uint8_t * in, uint8_t * out, uint8_t * unmoved,
                    std::vector<float> & row, std::vector<float> & delta);

// error = [n_in], row `index` as merged less what it should be; row and delta are scratch.
void error_of_row(const RowMerge & merge, int64_t index, const uint8_t * before, const uint8_t * after,
                  std::vector<float> & row, std::vector<float> & delta, float * error);

}  // namespace ggtune
