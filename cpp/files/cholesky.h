// Factors of small symmetric matrices: those of LoRA matrices with themselves.
#pragma once

#include <cstddef>
#include <vector>

namespace ggtune {

// Turns a symmetric matrix [n, n], of which the lower part is read, into its lower Cholesky factor in place. A
// millionth of the mean diagonal is added to the diagonal: rows of A may be nearly parallel, and that is far below what
// matters beside float32 values. All diagonal elements of the factor are above 0.
void cholesky(std::vector<double> & m, size_t n);

}  // namespace ggtune
