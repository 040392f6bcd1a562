#include "kernels/int8_unpack.h"

#include <algorithm>
#include <cstring>

#include "kernels/int8_block.h"
#include "kernels/iq_unpack.h"

// Layouts of the types: the block structs and dequantize_row_*() of ggml (ggml-common.h, ggml-quants.c).
namespace ggtune::kernels::detail {
namespace {

typedef uint8_t Bytes16 __attribute__((vector_size(16)));

// 16 bytes of nibbles: the low ones are values 0 to 15, the high ones 16 to 31.
inline void unpack_nibbles(const uint8_t * src, uint8_t * values) {
    Bytes16 nibbles;
    std::memcpy(&nibbles, src, sizeof nibbles);
    const Bytes16 low = nibbles & 15;
    const Bytes16 high = nibbles >> 4;
    std::memcpy(values, &low, sizeof low);
    std::memcpy(values + 16, &high, sizeof high);
}

// Each bit of a byte as the highest one of a byte of its own, from the lowest on.
inline uint64_t spread_bits(uint8_t byte) {
    const uint64_t bits = byte * 0x0101010101010101u & 0x8040201008040201u;  // byte j keeps bit j
    return (bits + 0x7f7f7f7f7f7f7f7fu) & 0x8080808080808080u;
}

// Adds bit i of the 32-bit word at src to value i, as its bit 4.
inline void add_fifth_bits(const uint8_t * src, uint8_t * values) {
    for (int i = 0; i < 4; ++i) {
        uint64_t eight;
        std::memcpy(&eight, values + 8 * i, sizeof eight);
        eight |= spread_bits(src[i]) >> 3;
        std::memcpy(values + 8 * i, &eight, sizeof eight);
    }
}

// The values of IQ4_NL and IQ4_XS (kvalues_iq4nl) plus 128.
constexpr Bytes16 kNonLinear = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

// Twice the values of FP4 (E2M1) plus 128: MXFP4 and NVFP4 of the OCP Microscaling formats and their scales.
constexpr Bytes16 kFp4 = {128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116};

// table[indices], indices below 16
inline Bytes16 look_up(const Bytes16 & table, const Bytes16 & indices) {
#if defined(__clang__)  // has no shuffle by variable indices
    Bytes16 found;
    for (int i = 0; i < 16; ++i) {
        found[i] = table[indices[i]];
    }
    return found;
#else
    return __builtin_shuffle(table, indices);
#endif
}

// 32 values below 16 are replaced by the entries of a table.
inline void map_values(const Bytes16 & table, uint8_t * values) {
    for (int i = 0; i < 32; i += 16) {
        Bytes16 indices;
        std::memcpy(&indices, values + i, sizeof indices);
        const Bytes16 found = look_up(table, indices);
        std::memcpy(values + i, &found, sizeof found);
    }
}

// 64 bytes of pairs of bits: the lowest ones of 32 bytes are values 0 to 31, the next ones 32 to 63.
inline void unpack_twos(const uint8_t * src, uint8_t * values) {
    for (int part = 0; part < 8; ++part) {
        const uint8_t * twos = src + part / 4 * 32;
        for (int i = 0; i < 32; ++i) {
            values[32 * part + i] = (twos[i] >> (part % 4 * 2)) & 3;
        }
    }
}

// Factors and mins of Q4_K and Q5_K: eight pairs of 6 bits in 12 bytes. Returns the scale of the block.
inline float unpack_factors_mins(const uint8_t * src, int16_t * factors, float * mins) {
    const float d_min = half_at(src + 2);
    const uint8_t * packed = src + 4;
    for (int i = 0; i < 4; ++i) {
        factors[i] = packed[i] & 63;
        mins[i] = d_min * static_cast<float>(packed[i + 4] & 63);
        factors[i + 4] = static_cast<int16_t>((packed[i + 8] & 15) | ((packed[i] >> 6) << 4));
        mins[i + 4] = d_min * static_cast<float>((packed[i + 8] >> 4) | ((packed[i + 4] >> 6) << 4));
    }
    return half_at(src);
}

struct Q4_0 {
    static constexpr int kValues = 32, kBytes = 18, kSubBlock = 32, kOffset = 8, kCenter = kOffset, kLargest = 8;
    static constexpr int kLargestByte = 15;
    static constexpr bool kHasMin = false;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t *, float *) {
        unpack_nibbles(src + 2, values);
        return half_at(src);
    }
};

struct Q4_1 {
    static constexpr int kValues = 32, kBytes = 20, kSubBlock = 32, kOffset = 0, kCenter = 8, kLargest = 8;
    static constexpr int kLargestByte = 15;
    static constexpr bool kHasMin = true;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t *, float * mins) {
        *mins = -half_at(src + 2);
        unpack_nibbles(src + 4, values);
        return half_at(src);
    }
};

struct Q5_0 {
    static constexpr int kValues = 32, kBytes = 22, kSubBlock = 32, kOffset = 16, kCenter = kOffset, kLargest = 16;
    static constexpr int kLargestByte = 31;
    static constexpr bool kHasMin = false;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t *, float *) {
        unpack_nibbles(src + 6, values);
        add_fifth_bits(src + 2, values);
        return half_at(src);
    }
};

struct Q5_1 {
    static constexpr int kValues = 32, kBytes = 24, kSubBlock = 32, kOffset = 0, kCenter = 16, kLargest = 16;
    static constexpr int kLargestByte = 31;
    static constexpr bool kHasMin = true;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t *, float * mins) {
        *mins = -half_at(src + 2);
        unpack_nibbles(src + 8, values);
        add_fifth_bits(src + 4, values);
        return half_at(src);
    }
};

struct Q8_0 {
    static constexpr int kValues = 32, kBytes = 34, kSubBlock = 32, kOffset = 128, kCenter = kOffset, kLargest = 128;
    static constexpr int kLargestByte = 255;
    static constexpr bool kHasMin = false;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t *, float *) {
        for (int i = 0; i < 32; ++i) {
            values[i] = src[2 + i] ^ 128;
        }
        return half_at(src);
    }
};

struct Iq4Nl {
    static constexpr int kValues = 32, kBytes = 18, kSubBlock = 32, kOffset = 128, kCenter = kOffset, kLargest = 127;
    static constexpr int kLargestByte = 255;
    static constexpr bool kHasMin = false;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t *, float *) {
        unpack_nibbles(src + 2, values);
        map_values(kNonLinear, values);
        return half_at(src);
    }
};

struct Iq4Xs {
    static constexpr int kValues = 256, kBytes = 136, kSubBlock = 32, kOffset = 128, kCenter = kOffset,
                         kLargest = 32 * 127;
    static constexpr int kLargestByte = 255;
    static constexpr bool kHasMin = false;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float *) {
        for (int i = 0; i < 8; ++i) {
            const int low = (src[4 + i / 2] >> (4 * (i % 2))) & 15;
            const int high = (src[2 + i / 4] >> (2 * (i % 4))) & 3;
            factors[i] = static_cast<int16_t>((low | (high << 4)) - 32);
            unpack_nibbles(src + 8 + 16 * i, values + 32 * i);
            map_values(kNonLinear, values + 32 * i);
        }
        return half_at(src);
    }
};

struct Q2_K {
    static constexpr int kValues = 256, kBytes = 84, kSubBlock = 16, kOffset = 0, kCenter = 2, kLargest = 15 * 2;
    static constexpr int kLargestByte = 3;
    static constexpr bool kHasMin = true;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float * mins) {
        const float d_min = half_at(src + 82);
        for (int i = 0; i < 16; ++i) {
            factors[i] = static_cast<int16_t>(src[i] & 15);
            mins[i] = d_min * static_cast<float>(src[i] >> 4);
        }
        unpack_twos(src + 16, values);
        return half_at(src + 80);
    }
};

struct Q3_K {
    static constexpr int kValues = 256, kBytes = 110, kSubBlock = 16, kOffset = 4, kCenter = kOffset, kLargest = 32 * 4;
    static constexpr int kLargestByte = 7;
    static constexpr bool kHasMin = false;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float *) {
        const uint8_t * packed = src + 96;
        for (int i = 0; i < 16; ++i) {
            const int low = i < 8 ? packed[i] & 15 : packed[i - 8] >> 4;
            const int high = (packed[8 + i % 4] >> (i / 4 * 2)) & 3;
            factors[i] = static_cast<int16_t>((low | (high << 4)) - 32);
        }
        for (int part = 0; part < 8; ++part) {
            const uint8_t * twos = src + 32 + part / 4 * 32;
            for (int i = 0; i < 32; ++i) {
                const int high = (src[i] >> part) & 1;
                values[32 * part + i] = static_cast<uint8_t>(((twos[i] >> (part % 4 * 2)) & 3) | (high << 2));
            }
        }
        return half_at(src + 108);
    }
};

struct Q4_K {
    static constexpr int kValues = 256, kBytes = 144, kSubBlock = 32, kOffset = 0, kCenter = 8, kLargest = 63 * 8;
    static constexpr int kLargestByte = 15;
    static constexpr bool kHasMin = true;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float * mins) {
        const float d = unpack_factors_mins(src, factors, mins);
        for (int pair = 0; pair < 4; ++pair) {
            for (int i = 0; i < 32; ++i) {
                const uint8_t nibbles = src[16 + 32 * pair + i];
                values[64 * pair + i] = nibbles & 15;
                values[64 * pair + 32 + i] = nibbles >> 4;
            }
        }
        return d;
    }
};

struct Q5_K {
    static constexpr int kValues = 256, kBytes = 176, kSubBlock = 32, kOffset = 0, kCenter = 16, kLargest = 63 * 16;
    static constexpr int kLargestByte = 31;
    static constexpr bool kHasMin = true;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float * mins) {
        const float d = unpack_factors_mins(src, factors, mins);
        for (int pair = 0; pair < 4; ++pair) {
            for (int i = 0; i < 32; ++i) {
                const int nibbles = src[48 + 32 * pair + i];
                const int high = src[16 + i] >> (2 * pair);
                values[64 * pair + i] = static_cast<uint8_t>((nibbles & 15) | ((high & 1) << 4));
                values[64 * pair + 32 + i] = static_cast<uint8_t>((nibbles >> 4) | ((high & 2) << 3));
            }
        }
        return d;
    }
};

struct Q6_K {
    static constexpr int kValues = 256, kBytes = 210, kSubBlock = 16, kOffset = 32, kCenter = kOffset,
                         kLargest = 128 * 32;
    static constexpr int kLargestByte = 63;
    static constexpr bool kHasMin = false;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float *) {
        for (int i = 0; i < 16; ++i) {
            factors[i] = static_cast<int16_t>(static_cast<int8_t>(src[192 + i]));
        }
        for (int half = 0; half < 2; ++half) {
            const uint8_t * low = src + 64 * half;
            const uint8_t * high = src + 128 + 32 * half;
            uint8_t * target = values + 128 * half;
            for (int i = 0; i < 32; ++i) {
                target[i] = static_cast<uint8_t>((low[i] & 15) | ((high[i] & 3) << 4));
                target[32 + i] = static_cast<uint8_t>((low[32 + i] & 15) | (((high[i] >> 2) & 3) << 4));
                target[64 + i] = static_cast<uint8_t>((low[i] >> 4) | (((high[i] >> 4) & 3) << 4));
                target[96 + i] = static_cast<uint8_t>((low[32 + i] >> 4) | ((high[i] >> 6) << 4));
            }
        }
        return half_at(src + 208);
    }
};

struct Q1_0 {
    static constexpr int kValues = 128, kBytes = 18, kSubBlock = 32, kOffset = 1, kCenter = kOffset, kLargest = 1;
    static constexpr int kLargestByte = 2;
    static constexpr bool kHasMin = false;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float *) {
        std::fill_n(factors, kValues / kSubBlock, int16_t{1});
        for (int i = 0; i < 16; ++i) {
            const uint64_t twos = spread_bits(src[2 + i]) >> 6;
            std::memcpy(values + 8 * i, &twos, sizeof twos);
        }
        return half_at(src);
    }
};

struct Q2_0 {
    static constexpr int kValues = 64, kBytes = 18, kSubBlock = 32, kOffset = 1, kCenter = kOffset, kLargest = 2;
    static constexpr int kLargestByte = 3;
    static constexpr bool kHasMin = false;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float *) {
        std::fill_n(factors, kValues / kSubBlock, int16_t{1});
        for (int i = 0; i < 16; ++i) {
            const uint32_t packed = src[2 + i];
            const uint32_t four = (packed | packed << 6 | packed << 12 | packed << 18) & 0x03030303u;
            std::memcpy(values + 4 * i, &four, sizeof four);
        }
        return half_at(src);
    }
};

struct Tq1_0 {
    static constexpr int kValues = 256, kBytes = 54, kSubBlock = 32, kOffset = 1, kCenter = kOffset, kLargest = 1;
    static constexpr int kLargestByte = 2;
    static constexpr bool kHasMin = false;

    // A byte is the fraction 0.abcde of base 3, out of 256; n_digits of each of n bytes, the first one of all of them
    // first.
    template <int n, int n_digits>
    static void unpack_digits(const uint8_t * src, uint8_t * values) {
        uint8_t rest[n];
        std::memcpy(rest, src, n);
        for (int digit = 0; digit < n_digits; ++digit) {
            for (int i = 0; i < n; ++i) {
                const auto tripled = static_cast<uint16_t>(rest[i] * 3);
                values[digit * n + i] = static_cast<uint8_t>(tripled >> 8);
                rest[i] = static_cast<uint8_t>(tripled);
            }
        }
    }

    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float *) {
        std::fill_n(factors, kValues / kSubBlock, int16_t{1});
        unpack_digits<32, 5>(src, values);
        unpack_digits<16, 5>(src + 32, values + 160);
        unpack_digits<4, 4>(src + 48, values + 240);
        return half_at(src + 52);
    }
};

struct Tq2_0 {
    static constexpr int kValues = 256, kBytes = 66, kSubBlock = 32, kOffset = 1, kCenter = kOffset, kLargest = 2;
    static constexpr int kLargestByte = 3;
    static constexpr bool kHasMin = false;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float *) {
        std::fill_n(factors, kValues / kSubBlock, int16_t{1});
        unpack_twos(src, values);
        return half_at(src + 64);
    }
};

struct Mxfp4 {
    static constexpr int kValues = 32, kBytes = 17, kSubBlock = 32, kOffset = 128, kCenter = kOffset, kLargest = 12;
    static constexpr int kLargestByte = 140;
    static constexpr bool kHasMin = false;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t *, float *) {
        unpack_nibbles(src + 1, values);
        map_values(kFp4, values);
        // 2^(byte - 128): half of what E8M0 says, since the values are doubled
        const uint32_t bits = *src < 2 ? 0x200000u << *src : static_cast<uint32_t>(*src - 1) << 23;
        float scale;
        std::memcpy(&scale, &bits, sizeof scale);
        return scale;
    }
};

// NVFP4: 64 values under four scales of E4M3, which are no integer multiples of one.
constexpr int kNvfp4Values = 64, kNvfp4Bytes = 36, kNvfp4SubBlock = 16;

// Half of the scale, since the values are doubled. The sign is ignored; NaN is taken for zero.
inline float half_e4m3(uint8_t byte) {
    const uint32_t exponent = byte >> 3 & 15;
    const uint32_t implicit_bit = exponent != 0 ? 8 : 0;
    const uint32_t significand = byte == 0x7f ? 0 : (byte & 7) | implicit_bit;
    const uint32_t power_bits = (std::max(exponent, 1u) + 127 - 11) << 23;
    float power;
    std::memcpy(&power, &power_bits, sizeof power);
    return static_cast<float>(significand) * power;
}

void unpack_nvfp4(const uint8_t * src, int64_t n, uint8_t * values, float * scales, float *) {
    for (int64_t i = 0; i < n; i += kNvfp4Values, src += kNvfp4Bytes) {
        for (int part = 0; part < 4; ++part) {
            *scales++ = half_e4m3(src[part]);
            uint64_t nibbles;
            std::memcpy(&nibbles, src + 4 + 8 * part, sizeof nibbles);
            constexpr uint64_t kLow = 0x0f0f0f0f0f0f0f0fu;
            typedef uint64_t Words __attribute__((vector_size(16)));
            const Bytes16 found = look_up(kFp4, (Bytes16)Words{nibbles & kLow, nibbles >> 4 & kLow});
            std::memcpy(values + i + part * kNvfp4SubBlock, &found, sizeof found);
        }
    }
}

constexpr Int8Format kNvfp4 = {kNvfp4SubBlock, 128, false, 140, unpack_nvfp4, kNvfp4Values, 128, 0, nullptr};

}  // namespace

const Int8Format * int8_format(ggml_type type) {
    switch (type) {
        case GGML_TYPE_Q4_0:
            return &kFormat<Q4_0>;
        case GGML_TYPE_Q4_1:
            return &kFormat<Q4_1>;
        case GGML_TYPE_Q5_0:
            return &kFormat<Q5_0>;
        case GGML_TYPE_Q5_1:
            return &kFormat<Q5_1>;
        case GGML_TYPE_Q8_0:
            return &kFormat<Q8_0>;
        case GGML_TYPE_Q2_K:
            return &kFormat<Q2_K>;
        case GGML_TYPE_Q3_K:
            return &kFormat<Q3_K>;
        case GGML_TYPE_Q4_K:
            return &kFormat<Q4_K>;
        case GGML_TYPE_Q5_K:
            return &kFormat<Q5_K>;
        case GGML_TYPE_Q6_K:
            return &kFormat<Q6_K>;
        case GGML_TYPE_IQ4_NL:
            return &kFormat<Iq4Nl>;
        case GGML_TYPE_IQ4_XS:
            return &kFormat<Iq4Xs>;
        case GGML_TYPE_Q1_0:
            return &kFormat<Q1_0>;
        case GGML_TYPE_Q2_0:
            return &kFormat<Q2_0>;
        case GGML_TYPE_TQ1_0:
            return &kFormat<Tq1_0>;
        case GGML_TYPE_TQ2_0:
            return &kFormat<Tq2_0>;
        case GGML_TYPE_MXFP4:
            return &kFormat<Mxfp4>;
        case GGML_TYPE_NVFP4:
            return &kNvfp4;
        default:
            return codebook_format(type);
    }
}

}  // namespace ggtune::kernels::detail
