#include "kernels/dequantize.h"

#include <ggml-cpu.h>

#include <algorithm>
#include <cstring>

#include "kernels/int8_unpack.h"
#include "kernels/simd.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace ggtune::kernels {
namespace {

// Unpacked bytes are turned into floats while they are in the L1 cache. A multiple of every type's block.
constexpr int64_t kPiece = 256;
constexpr int64_t kSmallestSubBlock = 16;

#if defined(__AVX2__)
// The compiler widens bytes to integers step by step.
inline simd::IntVec widen(const uint8_t * bytes) {
#if defined(__AVX512F__)
    return (simd::IntVec)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(bytes)));
#else
    return (simd::IntVec)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(bytes)));
#endif
}
#endif

template <int64_t sub_block>
void scale_bytes(const uint8_t * values, const float * scales, const float * mins, int32_t offset, float * dst,
                 int64_t n) {
    for (int64_t i = 0; i < n; i += sub_block) {
        const float scale = scales[i / sub_block];
        const float min = mins[i / sub_block];
#if defined(__AVX2__)
        for (int64_t j = i; j < i + sub_block; j += simd::kWidth) {
            const simd::Vec integers = __builtin_convertvector(widen(values + j) - offset, simd::Vec);
            simd::store(dst + j, scale * integers - min);
        }
#else
#pragma GCC unroll 1  // unrolled early, 16 values are no longer seen as a loop to vectorize
        for (int64_t j = i; j < i + sub_block; ++j) {
            dst[j] = scale * static_cast<float>(values[j] - offset) - min;
        }
#endif
    }
}

void dequantize_bytes(const detail::Int8Format & format, ggml_type type, const uint8_t * src, float * dst, int64_t n) {
    uint8_t values[kPiece];
    float scales[kPiece / kSmallestSubBlock];
    float mins[kPiece / kSmallestSubBlock] = {};
    const auto scale = format.sub_block == 16 ? scale_bytes<16> : scale_bytes<32>;
    for (int64_t i = 0; i < n; i += kPiece) {
        const int64_t piece = std::min(kPiece, n - i);
        format.unpack(src, piece, values, scales, mins);
        scale(values, scales, mins, format.offset, dst + i, piece);
        src += ggml_row_size(type, piece);
    }
}

}  // namespace

bool can_dequantize(ggml_type type) {
    return type == GGML_TYPE_F32 ||
           (type >= 0 && type < GGML_TYPE_COUNT && ggml_get_type_traits(type)->to_float != nullptr);
}

void dequantize_row(ggml_type type, const void * src, float * dst, int64_t n) {
    // most of ggml's conversions go value by value, at several times the cost
    if (const detail::Int8Format * format = detail::int8_format(type)) {
        dequantize_bytes(*format, type, static_cast<const uint8_t *>(src), dst, n);
        return;
    }
    switch (type) {
        case GGML_TYPE_F32:
            std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
            break;
        // ggml-cpu's conversions use the CPU's instructions, the generic ones of the type traits do not
        case GGML_TYPE_F16:
            ggml_cpu_fp16_to_fp32(static_cast<const ggml_fp16_t *>(src), dst, n);
            break;
        case GGML_TYPE_BF16:
            ggml_cpu_bf16_to_fp32(static_cast<const ggml_bf16_t *>(src), dst, n);
            break;
        default:
            ggml_get_type_traits(type)->to_float(src, dst, n);
    }
}

}  // namespace ggtune::kernels
