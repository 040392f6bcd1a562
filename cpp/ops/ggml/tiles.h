// How a weight is cut into tiles of rows, which are float32 one after another.
#pragma once

#include <ggml.h>

#include <algorithm>
#include <cstdint>

namespace ggtune {

// w ne = [i, o]
inline int64_t rows_per_tile(const ggml_tensor * w, int64_t max_bytes) {
    const int64_t row_bytes = w->ne[0] * static_cast<int64_t>(sizeof(float));
    return std::clamp<int64_t>(max_bytes / row_bytes, 1, w->ne[1]);
}

inline int64_t n_tiles(const ggml_tensor * w, int64_t max_bytes) {
    const int64_t n = rows_per_tile(w, max_bytes);
    return (w->ne[1] + n - 1) / n;
}

// Of a stack of matrices, w ne = [i, o, n_experts], so many rows of each are a tile.
inline int64_t rows_per_expert_tile(const ggml_tensor * w, int64_t max_bytes) {
    return rows_per_tile(w, max_bytes / w->ne[2]);
}

inline int64_t n_expert_tiles(const ggml_tensor * w, int64_t max_bytes) {
    return n_tiles(w, max_bytes / w->ne[2]);
}

}  // namespace ggtune
