// Transposed copies, four by four in registers. Private to cpp/kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace ggtune::kernels::detail {

typedef float Vec4 __attribute__((vector_size(16)));
typedef int32_t IntVec4 __attribute__((vector_size(16)));

#if defined(__clang__)
#define GGTUNE_SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define GGTUNE_SHUFFLE4(a, b, i, j, k, l) __builtin_shuffle(a, b, IntVec4{i, j, k, l})
#endif

inline void transpose_4x4(const float * src, int64_t src_stride, float * dst, int64_t dst_stride) {
    Vec4 row[4];
    for (int i = 0; i < 4; ++i) {
        std::memcpy(&row[i], src + i * src_stride, sizeof(Vec4));
    }
    const Vec4 low01 = GGTUNE_SHUFFLE4(row[0], row[1], 0, 4, 1, 5);
    const Vec4 high01 = GGTUNE_SHUFFLE4(row[0], row[1], 2, 6, 3, 7);
    const Vec4 low23 = GGTUNE_SHUFFLE4(row[2], row[3], 0, 4, 1, 5);
    const Vec4 high23 = GGTUNE_SHUFFLE4(row[2], row[3], 2, 6, 3, 7);
    const Vec4 column[4] = {GGTUNE_SHUFFLE4(low01, low23, 0, 1, 4, 5), GGTUNE_SHUFFLE4(low01, low23, 2, 3, 6, 7),
                            GGTUNE_SHUFFLE4(high01, high23, 0, 1, 4, 5), GGTUNE_SHUFFLE4(high01, high23, 2, 3, 6, 7)};
    for (int i = 0; i < 4; ++i) {
        std::memcpy(dst + i * dst_stride, &column[i], sizeof(Vec4));
    }
}

#undef GGTUNE_SHUFFLE4

// dst[j * dst_stride + i] = src[i * src_stride + j] for 0 <= i < rows, 0 <= j < cols
inline void transpose_copy(const float * src, int64_t src_stride, int64_t rows, int64_t cols, float * dst,
                           int64_t dst_stride) {
    const int64_t full_rows = rows / 4 * 4;
    const int64_t full_cols = cols / 4 * 4;
    // Rows at a stride of a power of two share a few cache sets: use up a line of each before the next rows evict it.
    constexpr int64_t kLine = 16;
    for (int64_t line = 0; line < full_cols; line += kLine) {
        const int64_t line_end = std::min(full_cols, line + kLine);
        for (int64_t i = 0; i < full_rows; i += 4) {
            for (int64_t j = line; j < line_end; j += 4) {
                transpose_4x4(src + i * src_stride + j, src_stride, dst + j * dst_stride + i, dst_stride);
            }
        }
    }
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = i < full_rows ? full_cols : 0; j < cols; ++j) {
            dst[j * dst_stride + i] = src[i * src_stride + j];
        }
    }
}

}  // namespace ggtune::kernels::detail
