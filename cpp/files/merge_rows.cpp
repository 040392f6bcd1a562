#include "files/merge_rows.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "files/quantize.h"
#include "kernels/dequantize.h"

namespace ggtune {

namespace {

// The first columns of the blocks that are changed by half a step and more. There rounding to nearest loses nothing
// but noise, and weights grow beyond their block's grid: such a block is quantized anew.
std::vector<int64_t> far_blocks(ggml_type type, const uint8_t * in, const std::vector<float> & delta) {
    const auto n = static_cast<int64_t>(delta.size());
    const int64_t block = ggml_blck_size(type);
    std::vector<float> steps(static_cast<size_t>(n / block));
    kernels::mean_square_steps(type, in, n, steps.data());
    std::vector<int64_t> first;
    for (int64_t begin = 0; begin < n; begin += block) {
        float square = 0;
        for (int64_t j = begin; j < begin + block; ++j) {
            square += delta[static_cast<size_t>(j)] * delta[static_cast<size_t>(j)];
        }
        if (square > 0 && square >= 0.25f * static_cast<float>(block) * steps[static_cast<size_t>(begin / block)]) {
            first.push_back(begin);
        }
    }
    return first;
}

// merge_row() of a type with a grid.
void move_row(const RowMerge & merge, int64_t index, const uint8_t * in, uint8_t * out, uint8_t * unmoved,
              std::vector<float> & row, std::vector<float> & delta, const std::string & what, RowCounts & counts) {
    const int64_t n = merge.from.ne[0];
    const ggml_type type = merge.to.type;
    std::vector<uint8_t> own;  // the row in a type that has a grid, where the base's has none
    if (merge.from.type != type) {
        own.resize(merge.to.row_bytes());
        kernels::dequantize_row(merge.from.type, in, row.data(), n);
        quantize_rows(type, row.data(), own.data(), 1, n, what);
        in = own.data();
    }
    if (!std::isfinite(counts.change)) {
        throw Error(what + ": what the adapter adds is not finite");
    }
    const std::vector<int64_t> anew = far_blocks(type, in, delta);
    const std::vector<float> whole = anew.empty() ? std::vector<float>() : delta;
    const int64_t block = ggml_blck_size(type);
    for (const int64_t first : anew) {
        std::fill_n(delta.begin() + first, block, 0.0f);
    }
    if (kernels::cut_off_by_grid(type, in, delta.data(), n, row.data())) {
        merge.cut_off->give_back(index, row.data(), delta.data());
        for (const int64_t first : anew) {
            std::fill_n(delta.begin() + first, block, 0.0f);
        }
    }
    const kernels::GridMoves moves =
        kernels::move_on_grid(type, in, delta.data(), n, merge.key, index * n, merge.rounding, out);
    counts.n_moved = moves.n_moved;
    counts.variance = moves.variance;
    if (unmoved != nullptr) {
        std::copy_n(in, merge.to.row_bytes(), unmoved);
    }
    const auto block_bytes = static_cast<int64_t>(ggml_type_size(type));
    for (const int64_t first : anew) {
        const int64_t at = first / block * block_bytes;
        kernels::dequantize_row(type, in + at, row.data(), block);
        for (int64_t j = 0; j < block; ++j) {
            row[static_cast<size_t>(j)] += whole[static_cast<size_t>(first + j)];
        }
        quantize_rows(type, row.data(), out + at, 1, block, what);
        counts.n_moved += block;
        if (unmoved != nullptr) {
            std::copy_n(out + at, block_bytes, unmoved + at);
        }
    }
}

}  // namespace

bool change_of(const RowMerge & merge, int64_t index, std::vector<float> & delta) {
    std::fill(delta.begin(), delta.end(), 0.0f);
    bool any = false;
    for (const LoraProduct & product : merge.products) {
        any = product.add_row(index, delta.data()) || any;
    }
    return any;
}

RowCounts merge_row(const RowMerge & merge, int64_t index, const uint8_t * in, uint8_t * out, uint8_t * unmoved,
                    std::vector<float> & row, std::vector<float> & delta) {
    const int64_t n = merge.from.ne[0];
    RowCounts counts;
    counts.changed = change_of(merge, index, delta);
    for (const float d : delta) {
        counts.change += static_cast<double>(d) * static_cast<double>(d);
    }
    const std::string what = "tensor " + merge.from.name + ", row " + std::to_string(index);
    if (!counts.changed && merge.from.type == merge.to.type) {
        // Quantizing again would only lose accuracy.
        std::copy(in, in + merge.from.row_bytes(), out);
    } else if (merge.cut_off != nullptr) {
        move_row(merge, index, in, out, unmoved, row, delta, what, counts);
        return counts;
    } else {
        kernels::dequantize_row(merge.from.type, in, row.data(), n);
        for (int64_t j = 0; j < n; ++j) {
            row[static_cast<size_t>(j)] += delta[static_cast<size_t>(j)];
        }
        if (merge.to.type == GGML_TYPE_BF16 && merge.from.type == GGML_TYPE_BF16 &&
            merge.rounding == kernels::Rounding::unbiased) {
            check_finite(merge.to.type, row.data(), n, what);
            kernels::round_to_bf16(row.data(), n, merge.key, index * n, reinterpret_cast<ggml_bf16_t *>(out));
        } else {
            quantize_rows(merge.to.type, row.data(), out, 1, n, what);
        }
    }
    if (unmoved != nullptr) {
        std::copy_n(out, merge.to.row_bytes(), unmoved);
    }
    return counts;
}

void error_of_row(const RowMerge & merge, int64_t index, const uint8_t * before, const uint8_t * after,
                  std::vector<float> & row, std::vector<float> & delta, float * error) {
    const auto n = static_cast<int64_t>(row.size());
    change_of(merge, index, delta);
    kernels::dequantize_row(merge.from.type, before, row.data(), n);
    kernels::dequantize_row(merge.to.type, after, error, n);
    for (size_t j = 0; j < row.size(); ++j) {
        error[j] -= row[j] + delta[j];
    }
}

}  // namespace ggtune
