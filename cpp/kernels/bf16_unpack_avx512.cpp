// Where few values share a scale, as 4-bit ones do, a table of what they can be is made and rounded once, and one
// permutation looks up 32 weights. Layouts of the types: the block structs and dequantize_row_*() of ggml
// (ggml-common.h, ggml-quants.c).
#include "kernels/bf16_unpack.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)

#include <immintrin.h>

#include <cstring>

#include "kernels/half.h"
#include "kernels/int8_unpack.h"

namespace ggtune::kernels::detail {
namespace {

template <class T>
inline T read(const uint8_t * src) {
    T value;
    std::memcpy(&value, src, sizeof value);
    return value;
}

inline __m512 iota() {
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

// 32 values as bf16, `low` first.
inline __m512i rounded(__m512 low, __m512 high) {
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

inline void store(Bf16 * to, __m512i values) {
    _mm512_storeu_si512(to, values);
}

// 32 bytes as 16-bit indices
inline __m512i words(const uint8_t * src) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(src)));
}

inline __m512i all(int16_t value) {
    return _mm512_set1_epi16(value);
}

// The second half of a table.
inline __m512i upper_half() {
    return _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
}

// 16 bytes of nibbles as 32 indices, the low ones first.
inline __m512i nibbles(const uint8_t * src) {
    const __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(src)));
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(bytes), _mm256_srli_epi16(bytes, 4), 1);
    return _mm512_and_si512(both, all(15));
}

// Bit i of the word at src as bit 4 of index i.
inline __m512i with_fifth_bits(__m512i indices, const uint8_t * src) {
    return _mm512_mask_or_epi32(indices, 0xffff, indices, _mm512_maskz_mov_epi16(read<uint32_t>(src), all(16)));
}

// scale * value - min for values first to first + 15
inline __m512 table(float scale, float min, float first) {
    return _mm512_fmsub_ps(_mm512_set1_ps(scale), _mm512_add_ps(iota(), _mm512_set1_ps(first)), _mm512_set1_ps(min));
}

void unpack_q4_0(const uint8_t * src, Bf16 * to, int64_t) {
    const __m512 values = table(half_at(src), 0.0f, -8.0f);
    store(to, _mm512_permutexvar_epi16(nibbles(src + 2), rounded(values, values)));
}

void unpack_q4_1(const uint8_t * src, Bf16 * to, int64_t) {
    const __m512 values = table(half_at(src), -half_at(src + 2), 0.0f);
    store(to, _mm512_permutexvar_epi16(nibbles(src + 4), rounded(values, values)));
}

void unpack_q5_0(const uint8_t * src, Bf16 * to, int64_t) {
    const float d = half_at(src);
    const __m512i values = rounded(table(d, 0.0f, -16.0f), table(d, 0.0f, 0.0f));
    store(to, _mm512_permutexvar_epi16(with_fifth_bits(nibbles(src + 6), src + 2), values));
}

void unpack_q5_1(const uint8_t * src, Bf16 * to, int64_t) {
    const float d = half_at(src);
    const float min = -half_at(src + 2);
    const __m512i values = rounded(table(d, min, 0.0f), table(d, min, 16.0f));
    store(to, _mm512_permutexvar_epi16(with_fifth_bits(nibbles(src + 8), src + 4), values));
}

// 32 signed bytes times one or two scales
inline __m512i scaled_bytes(__m256i bytes, float low, float high) {
    const __m512 first = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
    const __m512 second = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
    return rounded(_mm512_mul_ps(first, _mm512_set1_ps(low)), _mm512_mul_ps(second, _mm512_set1_ps(high)));
}

void unpack_q8_0(const uint8_t * src, Bf16 * to, int64_t) {
    const float d = half_at(src);
    store(to, scaled_bytes(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(src + 2)), d, d));
}

// The values of IQ4_NL and IQ4_XS (kvalues_iq4nl).
inline __m512 non_linear() {
    return _mm512_setr_ps(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
}

void unpack_iq4_nl(const uint8_t * src, Bf16 * to, int64_t) {
    const __m512 values = _mm512_mul_ps(_mm512_set1_ps(half_at(src)), non_linear());
    store(to, _mm512_permutexvar_epi16(nibbles(src + 2), rounded(values, values)));
}

void unpack_iq4_xs(const uint8_t * src, Bf16 * to, int64_t stride) {
    const float d = half_at(src);
    const auto high = read<uint16_t>(src + 2);
    for (int i = 0; i < 8; ++i, to += stride) {
        const int factor = (((src[4 + i / 2] >> (4 * (i % 2))) & 15) | ((high >> (2 * i)) & 3) << 4) - 32;
        const __m512 values = _mm512_mul_ps(_mm512_set1_ps(d * static_cast<float>(factor)), non_linear());
        store(to, _mm512_permutexvar_epi16(nibbles(src + 8 + 16 * i), rounded(values, values)));
    }
}

// Eight scales and then eight mins of Q4_K and Q5_K.
struct ScalesMins {
    alignas(64) float values[16];

    explicit ScalesMins(const uint8_t * src) {
        const auto low = read<uint32_t>(src + 4);
        const auto middle = read<uint32_t>(src + 8);
        const auto high = read<uint32_t>(src + 12);
        constexpr uint32_t kSix = 0x3f3f3f3f, kFour = 0x0f0f0f0f, kTwo = 0x03030303;
        const __m128i packed = _mm_setr_epi32(
            static_cast<int>(low & kSix), static_cast<int>((high & kFour) | ((low >> 6) & kTwo) << 4),
            static_cast<int>(middle & kSix), static_cast<int>(((high >> 4) & kFour) | ((middle >> 6) & kTwo) << 4));
        const __m512i integers = _mm512_cvtepu8_epi32(packed);
        const __m512 d = _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(half_at(src)), _mm512_set1_ps(half_at(src + 2)));
        _mm512_store_ps(values, _mm512_mul_ps(d, _mm512_cvtepi32_ps(integers)));
    }
    float scale(int i) const { return values[i]; }
    float min(int i) const { return values[8 + i]; }
};

void unpack_q4_k(const uint8_t * src, Bf16 * to, int64_t stride) {
    const ScalesMins s(src);
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; ++pair, to += 2 * stride) {
        const int i = 2 * pair;
        const __m512i values = rounded(table(s.scale(i), s.min(i), 0.0f), table(s.scale(i + 1), s.min(i + 1), 0.0f));
        const __m512i bytes = words(src + 16 + 32 * pair);
        store(to, _mm512_permutexvar_epi16(_mm512_and_si512(bytes, all(15)), values));
        store(to + stride, _mm512_permutexvar_epi16(_mm512_or_si512(_mm512_srli_epi16(bytes, 4), all(16)), values));
    }
}

void unpack_q5_k(const uint8_t * src, Bf16 * to, int64_t stride) {
    const ScalesMins s(src);
    __m512i fifth = _mm512_slli_epi16(words(src + 16), 4);
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; ++pair, to += 2 * stride) {
        const __m512i bytes = words(src + 48 + 32 * pair);
        for (int half = 0; half < 2; ++half) {
            const int i = 2 * pair + half;
            const __m512i values = rounded(table(s.scale(i), s.min(i), 0.0f), table(s.scale(i), s.min(i), 16.0f));
            const __m512i low = _mm512_and_si512(half == 0 ? bytes : _mm512_srli_epi16(bytes, 4), all(15));
            const __m512i indices = _mm512_or_si512(low, _mm512_and_si512(fifth, all(16)));
            store(to + half * stride, _mm512_permutexvar_epi16(indices, values));
            fifth = _mm512_srli_epi16(fifth, 1);
        }
    }
}

void unpack_q6_k(const uint8_t * src, Bf16 * to, int64_t stride) {
    alignas(64) float scales[16];
    const __m512i factors = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(src + 192)));
    _mm512_store_ps(scales, _mm512_mul_ps(_mm512_set1_ps(half_at(src + 208)), _mm512_cvtepi32_ps(factors)));
    const auto bytes = [](const uint8_t * p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); };
    const __m256i four = _mm256_set1_epi8(15);
    const __m256i two = _mm256_set1_epi8(0x30);
    const __m256i offset = _mm256_set1_epi8(32);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half, to += 4 * stride) {
        const __m256i high = bytes(src + 128 + 32 * half);
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part) {
            const __m256i low = bytes(src + 64 * half + 32 * (part % 2));
            const __m256i nibble = _mm256_and_si256(part < 2 ? low : _mm256_srli_epi16(low, 4), four);
            const __m256i shifted =
                part < 2 ? _mm256_slli_epi16(high, 4 - 2 * part) : _mm256_srli_epi16(high, 2 * part - 4);
            const __m256i values = _mm256_sub_epi8(_mm256_or_si256(nibble, _mm256_and_si256(shifted, two)), offset);
            const float * scale = scales + 8 * half + 2 * part;
            store(to + part * stride, scaled_bytes(values, scale[0], scale[1]));
        }
    }
}

void unpack_q2_k(const uint8_t * src, Bf16 * to, int64_t stride) {
    alignas(64) float scales[16], mins[16];
    const __m512i packed = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(src)));
    const __m512 factors = _mm512_cvtepi32_ps(_mm512_and_si512(packed, _mm512_set1_epi32(15)));
    _mm512_store_ps(scales, _mm512_mul_ps(_mm512_set1_ps(half_at(src + 80)), factors));
    const __m512 min_factors = _mm512_cvtepi32_ps(_mm512_srli_epi32(packed, 4));
    _mm512_store_ps(mins, _mm512_mul_ps(_mm512_set1_ps(half_at(src + 82)), min_factors));
    for (int part = 0; part < 8; ++part, to += stride) {
        const int i = 2 * part;
        const __m512i values = rounded(table(scales[i], mins[i], 0.0f), table(scales[i + 1], mins[i + 1], 0.0f));
        const __m512i twos = _mm512_and_si512(
            _mm512_srli_epi16(words(src + 16 + part / 4 * 32), static_cast<unsigned>(2 * (part % 4))), all(3));
        store(to, _mm512_permutexvar_epi16(_mm512_or_si512(twos, upper_half()), values));
    }
}

void unpack_q3_k(const uint8_t * src, Bf16 * to, int64_t stride) {
    const float d = half_at(src + 108);
    const uint8_t * packed = src + 96;
    float scales[16];
    for (int i = 0; i < 16; ++i) {
        const int low = i < 8 ? packed[i] & 15 : packed[i - 8] >> 4;
        const int high = (packed[8 + i % 4] >> (i / 4 * 2)) & 3;
        scales[i] = d * static_cast<float>((low | (high << 4)) - 32);
    }
    const __m512i thirds = words(src);
    for (int part = 0; part < 8; ++part, to += stride) {
        const int i = 2 * part;
        const __m512i values = rounded(table(scales[i], 0.0f, -4.0f), table(scales[i + 1], 0.0f, -4.0f));
        const __m512i twos = _mm512_and_si512(
            _mm512_srli_epi16(words(src + 32 + part / 4 * 32), static_cast<unsigned>(2 * (part % 4))), all(3));
        const __m512i third =
            _mm512_and_si512(_mm512_slli_epi16(_mm512_srli_epi16(thirds, static_cast<unsigned>(part)), 2), all(4));
        store(to, _mm512_permutexvar_epi16(_mm512_or_si512(_mm512_or_si512(twos, third), upper_half()), values));
    }
}

// A block of 256 values of a type without mins, by way of its bytes.
template <ggml_type type, int sub_block>
void unpack_bytes(const uint8_t * src, Bf16 * to, int64_t stride) {
    constexpr int kBlock = 256;
    static const Int8Format & format = *int8_format(type);
    alignas(32) uint8_t values[kBlock];
    float scales[kBlock / sub_block];
    format.unpack(src, kBlock, values, scales, nullptr);
    const __m256i offset = _mm256_set1_epi8(static_cast<char>(format.offset));
    for (int i = 0; i < kBlock; i += 32, to += stride) {
        const __m256i bytes = _mm256_load_si256(reinterpret_cast<const __m256i *>(values + i));
        const float * scale = scales + i / sub_block;
        store(to, scaled_bytes(_mm256_sub_epi8(bytes, offset), scale[0], scale[sub_block == 16 ? 1 : 0]));
    }
}

}  // namespace

UnpackBlock vector_unpack(ggml_type type) {
    switch (type) {
        case GGML_TYPE_Q4_0:
            return unpack_q4_0;
        case GGML_TYPE_Q4_1:
            return unpack_q4_1;
        case GGML_TYPE_Q5_0:
            return unpack_q5_0;
        case GGML_TYPE_Q5_1:
            return unpack_q5_1;
        case GGML_TYPE_Q8_0:
            return unpack_q8_0;
        case GGML_TYPE_Q2_K:
            return unpack_q2_k;
        case GGML_TYPE_Q3_K:
            return unpack_q3_k;
        case GGML_TYPE_Q4_K:
            return unpack_q4_k;
        case GGML_TYPE_Q5_K:
            return unpack_q5_k;
        case GGML_TYPE_Q6_K:
            return unpack_q6_k;
        case GGML_TYPE_IQ4_NL:
            return unpack_iq4_nl;
        case GGML_TYPE_IQ4_XS:
            return unpack_iq4_xs;
        case GGML_TYPE_IQ1_S:
            return unpack_bytes<GGML_TYPE_IQ1_S, 32>;
        case GGML_TYPE_IQ1_M:
            return unpack_bytes<GGML_TYPE_IQ1_M, 16>;
        case GGML_TYPE_IQ2_XXS:
            return unpack_bytes<GGML_TYPE_IQ2_XXS, 32>;
        case GGML_TYPE_IQ2_XS:
            return unpack_bytes<GGML_TYPE_IQ2_XS, 16>;
        case GGML_TYPE_IQ2_S:
            return unpack_bytes<GGML_TYPE_IQ2_S, 16>;
        case GGML_TYPE_IQ3_XXS:
            return unpack_bytes<GGML_TYPE_IQ3_XXS, 32>;
        case GGML_TYPE_IQ3_S:
            return unpack_bytes<GGML_TYPE_IQ3_S, 32>;
        default:
            return nullptr;
    }
}

}  // namespace ggtune::kernels::detail

#else

namespace ggtune::kernels::detail {

UnpackBlock vector_unpack(ggml_type) {
    return nullptr;
}

}  // namespace ggtune::kernels::detail

#endif
