// Rows of a merged tensor on the base's own quantization grid.
#pragma once

#include <cstdint>
#include <vector>

#include "files/lora_product.h"
#include "kernels/grid.h"

namespace ggtune {

// A type without a grid has codes that stand for several weights at once (IQ1 to IQ3, ...): the first wider type that
// has one and whose blocks fit rows of n_in values.
ggml_type next_type_with_grid(ggml_type type, int64_t n_in);

// The seed of a tensor's random numbers, from the merge's and its name.
uint64_t rounding_key(uint64_t seed, const std::string & tensor);

// Gives what the ends of the grid cut off a row's change to its other weights: among the combinations of the rows of A
// the one that leaves the change's product with A^T what it was, as far as the weights can move. That product is what
// the layer adds to inputs that A reads.
class CutOff {
  public:
    // The products of one tensor; they have to outlive this object.
    explicit CutOff(const std::vector<LoraProduct> & products);

    // lost, delta: [n_in] of that row.
    void give_back(int64_t row, const float * lost, float * delta) const;

  private:
    const std::vector<LoraProduct> & products_;
    int64_t rank_ = 0;                           // of all products together
    std::vector<std::vector<double>> cholesky_;  // of A A^T, lower, by expert: [rank, rank]
};

}  // namespace ggtune
