// Single-precision matrix product on strided operands.
#pragma once

#include <cstdint>

namespace ggtune::kernels {

// A matrix whose element (i, j) is data[i * row_stride + j * col_stride]; strides in floats.
struct Operand {
    const float * data;
    int64_t row_stride;
    int64_t col_stride;

    Operand transposed() const { return {data, col_stride, row_stride}; }
};

// C = alpha * A * B + beta * C.
//   a  [m, k]    b  [k, n]    c  [m, n], element (i, j) at c[i * c_row_stride + j * c_col_stride]
// C must not overlap A or B; with beta == 0 its old contents (NaN included) are ignored.
// Thread ith of nth writes its own part of C; the result has the same bits for every nth.
// Blocking: Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008.
void gemm(int64_t m, int64_t n, int64_t k, Operand a, Operand b, float alpha, float beta, float * c,
          int64_t c_row_stride, int64_t c_col_stride, int ith, int nth);

// The loop that defines gemm(), accumulating in double.
void gemm_reference(int64_t m, int64_t n, int64_t k, Operand a, Operand b, float alpha, float beta, float * c,
                    int64_t c_row_stride, int64_t c_col_stride);

}  // namespace ggtune::kernels
