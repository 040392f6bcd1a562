#include "files/lora_product.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "kernels/dequantize.h"

namespace ggtune {

namespace {

std::vector<float> read_values(AdapterSource & adapter, const GgufTensor & tensor) {
    std::vector<uint8_t> bytes(tensor.n_bytes);
    adapter.data.read(tensor.offset, bytes.data(), bytes.size());
    std::vector<float> values(static_cast<size_t>(tensor.ne[0] * tensor.n_rows()));
    kernels::dequantize_row(tensor.type, bytes.data(), values.data(), static_cast<int64_t>(values.size()));
    for (const float value : values) {
        if (!std::isfinite(value)) {
            throw ModelFileError(adapter.file.path + ": tensor " + tensor.name +
                                 " holds values that are not finite: the training that made it diverged");
        }
    }
    return values;
}

// [n_rows, n_columns] to [n_columns, n_rows]
std::vector<float> transposed(const std::vector<float> & values, int64_t n_rows, int64_t n_columns) {
    std::vector<float> out(values.size());
    for (int64_t i = 0; i < n_rows; ++i) {
        for (int64_t j = 0; j < n_columns; ++j) {
            out[static_cast<size_t>(j * n_rows + i)] = values[static_cast<size_t>(i * n_columns + j)];
        }
    }
    return out;
}

}  // namespace

DataReader::DataReader(const std::string & path) : path_(path), in_(path, std::ios::binary) {}

void DataReader::read(uint64_t offset, void * data, uint64_t n) {
    in_.clear();
    in_.seekg(static_cast<std::streamoff>(offset));
    in_.read(static_cast<char *>(data), static_cast<std::streamsize>(n));
    if (!in_) {
        throw ModelFileError(path_ + ": can't be read at byte " + std::to_string(offset));
    }
}

const LoraPair * AdapterSource::find(size_t base_tensor) const {
    const auto it = std::find_if(pairs.begin(), pairs.end(), [&](const LoraPair & p) { return p.base == base_tensor; });
    return it == pairs.end() ? nullptr : &*it;
}

bool LoraProduct::add_row(int64_t row, float * delta) const {
    const float * l = left.data() + row * rank;
    const float * r = right.data() + row / n_out * rank * n_in;
    bool added = false;
    for (int64_t k = 0; k < rank; ++k) {
        const float factor = l[k];
        if (factor == 0.0f) {
            continue;
        }
        added = true;
        const float * from = r + k * n_in;
        for (int64_t i = 0; i < n_in; ++i) {
            delta[i] += factor * from[i];
        }
    }
    return added;
}

LoraProduct load_product(AdapterSource & adapter, const LoraPair & pair, const GgufTensor & base) {
    const GgufTensor & a = adapter.file.tensors[pair.a];
    const GgufTensor & b = adapter.file.tensors[pair.b];
    LoraProduct product{pair.rank, base.ne[0], base.ne[1], {}, {}};
    if (pair.flipped) {
        product.left = read_values(adapter, a);                                        // [n_vocab, rank]
        product.right = transposed(read_values(adapter, b), product.n_in, pair.rank);  // of [n_embd, rank]
    } else {
        product.left = read_values(adapter, b);
        product.right = read_values(adapter, a);
    }
    const float scale = adapter.scale * lora_scale(adapter.file, pair.rank);
    for (float & value : product.left) {
        value *= scale;
    }
    return product;
}

}  // namespace ggtune
