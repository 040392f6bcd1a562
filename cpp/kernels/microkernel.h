// The register block of the matrix product: a few rows of A (broadcast) times one panel of B (vectors). Private to
// cpp/kernels.
#pragma once

#include <cstdint>

#include "kernels/simd.h"

namespace ggtune::kernels::detail {

// Most rows of a register block whose rows are n_vectors wide: as many as leave registers for the B vectors and one
// broadcast.
constexpr int max_block_rows(int n_vectors) {
    // 16 vector registers on AVX and SSE, 32 on AVX-512 and NEON
    if constexpr (simd::kPanelVectors == 2) {
        return n_vectors == 1 ? 12 : 6;
    }
    return n_vectors <= 2 ? 12 : n_vectors == 3 ? 8 : 6;
}

// Where a block goes: C = alpha * product + beta * C over n_cols <= n_vectors * kWidth columns.
struct BlockOutput {
    float * c;
    int64_t row_stride;
    int64_t col_stride;
    int64_t n_cols;
    float alpha;
    float beta;
};

// One block: a(i, p) = a[i * a_row_stride + p * a_col_stride], row p of the panel at b + p * b_row_stride.
// The sum over p is taken in order by fused (or, without FMA, by separate) operations: it does not depend on the
// block's size.
using BlockKernel = void (*)(int64_t k, const float * a, int64_t a_row_stride, int64_t a_col_stride, const float * b,
                             int64_t b_row_stride, const BlockOutput & output);

// 1 <= n_vectors <= kPanelVectors, 1 <= n_rows <= max_block_rows(n_vectors). `packed`: A has a_row_stride == 1 and
// a_col_stride == n_rows.
BlockKernel block_kernel(int n_vectors, int n_rows, bool packed);

}  // namespace ggtune::kernels::detail
