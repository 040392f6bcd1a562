// An adapter file opened for reading, and the product B A of its pairs.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "files/gguf_check.h"
#include "files/gguf_file.h"

namespace ggtune {

// Reads ranges of a file whose header was checked. Raises ModelFileError.
class DataReader {
  public:
    explicit DataReader(const std::string & path);
    void read(uint64_t offset, void * data, uint64_t n);

  private:
    std::string path_;
    std::ifstream in_;
};

struct AdapterSource {
    GgufFile file;
    DataReader data;
    float scale;                  // the user's
    std::vector<LoraPair> pairs;  // in the base's tensor order

    // The pair of a tensor of the base, or null.
    const LoraPair * find(size_t base_tensor) const;
};

// What one adapter adds to one tensor of the base: scale * alpha / rank * B A, of each expert where the tensor has
// many.
struct LoraProduct {
    int64_t rank;
    int64_t n_in;
    int64_t n_out;
    std::vector<float> left;   // [n_expert, n_out, rank], scaled
    std::vector<float> right;  // [n_expert, rank, n_in]

    // delta += left[row] right, where rows count over the n_out rows of all experts.
    // delta: [n_in]. Returns false where left[row] is all zero.
    bool add_row(int64_t row, float * delta) const;
};

// Reads a pair's values and scales them. Raises ModelFileError where one is not finite.
LoraProduct load_product(AdapterSource & adapter, const LoraPair & pair, const GgufTensor & base);

}  // namespace ggtune
