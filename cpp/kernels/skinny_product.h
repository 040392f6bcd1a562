// C = alpha * A * B + beta * C for a few rows of A, as the products with LoRA matrices are: there B is read once, from
// where it lies, while packing it for gemm() costs more than the product. Private to cpp/kernels.
#pragma once

#include <cstdint>

#include "kernels/gemm.h"

namespace ggtune::kernels::detail {

// True where skinny_product() takes A [m, k] * B [k, n] and is faster.
bool is_skinny(int64_t m, int64_t n, int64_t k, const Operand & b);

// Thread ith of nth writes its own columns of C; each element is summed in the same order for every nth.
void skinny_product(int64_t m, int64_t n, int64_t k, const Operand & a, const Operand & b, float alpha, float beta,
                    float * c, int64_t c_row_stride, int64_t c_col_stride, int ith, int nth);

}  // namespace ggtune::kernels::detail
