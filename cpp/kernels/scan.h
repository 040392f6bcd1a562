// What the headers of the scans over time share.
#pragma once

#include <cstdint>

namespace ggtune::kernels {

// Vectors of each token, head and sequence, contiguous; strides in floats.
template <typename T>
struct ScanVectors {
    T * data;
    int64_t token_stride;
    int64_t head_stride;
    int64_t sequence_stride;

    T * at(int64_t token, int64_t head, int64_t sequence) const {
        return data + token * token_stride + head * head_stride + sequence * sequence_stride;
    }
};
using ConstVectors = ScanVectors<const float>;
using Vectors = ScanVectors<float>;

// Of a contiguous array [n_sequences, n_tokens, n_heads, n].
template <typename T>
ScanVectors<T> packed_vectors(T * data, int64_t n, int64_t n_heads, int64_t n_tokens) {
    return {data, n * n_heads, n, n * n_heads * n_tokens};
}

}  // namespace ggtune::kernels
