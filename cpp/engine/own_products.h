// llama.cpp's graphs with ggtune's own attention and products (ops/cpu): where many rows are computed at once, as with
// answers side by side, a tile of a weight is unpacked once and serves all of them. All else is computed as it is.
#pragma once

#include <ggml-backend.h>

namespace ggtune {

// How a CPU backend computes from now on. Results differ from llama.cpp's by the rounding of sums, or by less rounding
// of operands. Such a graph returns GGML_STATUS_ALLOC_FAILED where there is no memory for what our nodes need.
void use_own_products(ggml_backend_t cpu);

}  // namespace ggtune
