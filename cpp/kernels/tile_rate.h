// The matrix unit's own speed, to hold kernels against.
#pragma once

namespace ggtune::kernels {

// Floating point operations per second of the matrix unit (tile.h) on the thread that calls, over about `seconds` (>
// 0), with bf16 tiles that stay in the L1 cache: nothing is packed, and sums are stored rarely. 0 where the CPU has
// none.
double matrix_unit_rate(double seconds);

}  // namespace ggtune::kernels
