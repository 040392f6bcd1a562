#include "kernels/bf16_unpack.h"

#include <algorithm>
#include <cstring>

#include "kernels/dequantize.h"

namespace ggtune::kernels::detail {
namespace {

constexpr int64_t kGroup = 32;

// Values that are dequantized at a time: a multiple of every type's block.
constexpr int64_t kPiece = 256;

void round_row(const float * x, int64_t n, Bf16 * to, int64_t stride) {
    int64_t i = 0;
    for (; i + kGroup <= n; i += kGroup, to += stride) {
        round_to_bf16(x + i, to);
    }
    if (i < n) {
        float rest[kGroup] = {};
        std::memcpy(rest, x + i, static_cast<size_t>(n - i) * sizeof(float));
        round_to_bf16(rest, to);
    }
}

}  // namespace

void unpack_bf16(ggml_type type, const void * src, int64_t n, Bf16 * to, int64_t stride) {
    if (type == GGML_TYPE_F32) {
        round_row(static_cast<const float *>(src), n, to, stride);
        return;
    }
    const auto * bytes = static_cast<const uint8_t *>(src);
    if (const UnpackBlock unpack = vector_unpack(type)) {
        const int64_t block = ggml_blck_size(type);
        const size_t block_bytes = ggml_type_size(type);
        for (int64_t i = 0; i < n; i += block, bytes += block_bytes, to += block / kGroup * stride) {
            unpack(bytes, to, stride);
        }
        return;
    }
    float values[kPiece];
    for (int64_t i = 0; i < n; i += kPiece, to += kPiece / kGroup * stride) {
        const int64_t piece = std::min(kPiece, n - i);
        dequantize_row(type, bytes, values, piece);
        round_row(values, piece, to, stride);
        bytes += ggml_row_size(type, piece);
    }
}

}  // namespace ggtune::kernels::detail
