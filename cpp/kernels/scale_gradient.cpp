#include "kernels/scale_gradient.h"

#include <algorithm>
#include <vector>

#include "kernels/block_factors.h"
#include "kernels/partition.h"
#include "kernels/reduce.h"

namespace ggtune::kernels {
namespace {

constexpr int64_t kRows = 64;  // whose weights have a gradient at a time

}  // namespace

void scale_gradient(ggml_type type, const uint8_t * w, int64_t row_bytes, int64_t n_in, int64_t n_out, int64_t n_tokens,
                    Operand x, Operand dy, float * gradient, int ith, int nth) {
    const BlockFactors & factors = *block_factors(type);
    const int64_t block = ggml_blck_size(type);
    const int64_t n_blocks = n_in / block;
    std::vector<float> d_weights(static_cast<size_t>(kRows * n_in));
    std::vector<float> directions(static_cast<size_t>(n_in));
    std::vector<uint8_t> row_of_one;
    // pieces of whole tiles, so that a row is summed up the same way whoever has it
    const Range own = split_range(n_out, ith, nth, kRows);
    for (int64_t first = own.begin; first < own.end; first += kRows) {
        const int64_t n_rows = std::min(kRows, own.end - first);
        const Operand dy_of_rows{dy.data + first * dy.col_stride, dy.row_stride, dy.col_stride};
        gemm(n_rows, n_in, n_tokens, dy_of_rows.transposed(), x, 1.0f, 0.0f, d_weights.data(), n_in, 1, 0, 1);
        for (int64_t row = 0; row < n_rows; ++row) {
            for (int kind = 0; kind < factors.n; ++kind) {
                factor_directions(factors, kind, w + (first + row) * row_bytes, n_in, row_of_one, directions.data());
                float * of_kind = gradient + ((first + row) * factors.n + kind) * n_blocks;
                for (int64_t i = 0; i < n_blocks; ++i) {
                    of_kind[i] += static_cast<float>(
                        detail::dot(d_weights.data() + row * n_in + i * block, directions.data() + i * block, block));
                }
            }
        }
    }
}

}  // namespace ggtune::kernels
