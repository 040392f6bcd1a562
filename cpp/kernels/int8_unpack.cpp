#include "kernels/int8_unpack.h"

#include <cstring>

// Layouts of the types: the block structs and dequantize_row_*() of ggml (ggml-common.h, ggml-quants.c).
namespace ggtune::kernels::detail {
namespace {

// IEEE half precision, little-endian, at src; a function call per block would cost more than the block.
inline float half_at(const uint8_t * src) {
    uint16_t half;
    std::memcpy(&half, src, sizeof half);
    // the exponent's bias is moved by a multiplication, which is exact and turns subnormals into normal numbers
    constexpr float kBias = 0x1p112f;
    const uint32_t magnitude = (half & 0x7fffu) << 13;
    float value;
    std::memcpy(&value, &magnitude, sizeof value);
    value = (half & 0x7c00u) == 0x7c00u ? value * kBias * kBias : value * kBias;  // infinity stays infinite
    return (half & 0x8000u) != 0 ? -value : value;
}

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

// Adds bit i of the 32-bit word at src to value i, as its bit 4.
inline void add_fifth_bits(const uint8_t * src, uint8_t * values) {
    for (int i = 0; i < 4; ++i) {
        // byte j of `bits` keeps bit j, and becomes 0 or 16
        const uint64_t bits = src[i] * 0x0101010101010101u & 0x8040201008040201u;
        const uint64_t sixteens = ((bits + 0x7f7f7f7f7f7f7f7fu) & 0x8080808080808080u) >> 3;
        uint64_t eight;
        std::memcpy(&eight, values + 8 * i, sizeof eight);
        eight |= sixteens;
        std::memcpy(values + 8 * i, &eight, sizeof eight);
    }
}

// The values of IQ4_NL and IQ4_XS (kvalues_iq4nl) plus 128.
constexpr Bytes16 kNonLinear = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

inline void map_non_linear(uint8_t * values) {
    for (int i = 0; i < 32; i += 16) {
        Bytes16 indices;
        std::memcpy(&indices, values + i, sizeof indices);
#if defined(__clang__)  // has no shuffle by variable indices
        Bytes16 mapped;
        for (int j = 0; j < 16; ++j) {
            mapped[j] = kNonLinear[indices[j]];
        }
#else
        const Bytes16 mapped = __builtin_shuffle(kNonLinear, indices);
#endif
        std::memcpy(values + i, &mapped, sizeof mapped);
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

// Each struct: values per block, bytes per block, the format's numbers, the largest integer of a weight, and the unpacking
// of one block, which returns its scale. A block that is one sub-block has no factor.

struct Q4_0 {
    static constexpr int kValues = 32, kBytes = 18, kSubBlock = 32, kOffset = 8, kCenter = kOffset, kLargest = 8;
    static constexpr bool kHasMin = false;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t *, float *) {
        unpack_nibbles(src + 2, values);
        return half_at(src);
    }
};

struct Q4_1 {
    static constexpr int kValues = 32, kBytes = 20, kSubBlock = 32, kOffset = 0, kCenter = 8, kLargest = 8;
    static constexpr bool kHasMin = true;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t *, float * mins) {
        *mins = -half_at(src + 2);
        unpack_nibbles(src + 4, values);
        return half_at(src);
    }
};

struct Q5_0 {
    static constexpr int kValues = 32, kBytes = 22, kSubBlock = 32, kOffset = 16, kCenter = kOffset, kLargest = 16;
    static constexpr bool kHasMin = false;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t *, float *) {
        unpack_nibbles(src + 6, values);
        add_fifth_bits(src + 2, values);
        return half_at(src);
    }
};

struct Q5_1 {
    static constexpr int kValues = 32, kBytes = 24, kSubBlock = 32, kOffset = 0, kCenter = 16, kLargest = 16;
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
    static constexpr bool kHasMin = false;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t *, float *) {
        unpack_nibbles(src + 2, values);
        map_non_linear(values);
        return half_at(src);
    }
};

struct Iq4Xs {
    static constexpr int kValues = 256, kBytes = 136, kSubBlock = 32, kOffset = 128, kCenter = kOffset,
                         kLargest = 32 * 127;
    static constexpr bool kHasMin = false;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float *) {
        for (int i = 0; i < 8; ++i) {
            const int low = (src[4 + i / 2] >> (4 * (i % 2))) & 15;
            const int high = (src[2 + i / 4] >> (2 * (i % 4))) & 3;
            factors[i] = static_cast<int16_t>((low | (high << 4)) - 32);
            unpack_nibbles(src + 8 + 16 * i, values + 32 * i);
            map_non_linear(values + 32 * i);
        }
        return half_at(src);
    }
};

struct Q2_K {
    static constexpr int kValues = 256, kBytes = 84, kSubBlock = 16, kOffset = 0, kCenter = 2, kLargest = 15 * 2;
    static constexpr bool kHasMin = true;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float * mins) {
        const float d_min = half_at(src + 82);
        for (int i = 0; i < 16; ++i) {
            factors[i] = static_cast<int16_t>(src[i] & 15);
            mins[i] = d_min * static_cast<float>(src[i] >> 4);
        }
        for (int part = 0; part < 8; ++part) {
            const uint8_t * twos = src + 16 + part / 4 * 32;
            for (int i = 0; i < 32; ++i) {
                values[32 * part + i] = (twos[i] >> (part % 4 * 2)) & 3;
            }
        }
        return half_at(src + 80);
    }
};

struct Q3_K {
    static constexpr int kValues = 256, kBytes = 110, kSubBlock = 16, kOffset = 4, kCenter = kOffset, kLargest = 32 * 4;
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

template <class Type>
void unpack_row(const uint8_t * src, int64_t n, uint8_t * values, float * scales, float * mins) {
    constexpr int kSubBlocks = Type::kValues / Type::kSubBlock;
    for (int64_t i = 0; i < n; i += Type::kValues) {
        int16_t factors[kSubBlocks];
        const float d = Type::unpack(src, values + i, factors, mins);
        for (int j = 0; j < kSubBlocks; ++j) {
            scales[j] = kSubBlocks == 1 ? d : d * static_cast<float>(factors[j]);
        }
        scales += kSubBlocks;
        mins += Type::kHasMin ? kSubBlocks : 0;
        src += Type::kBytes;
    }
}

template <class Type>
float unpack_block(const uint8_t * src, uint8_t * values, int16_t * factors, float * mins) {
    if (Type::kValues == Type::kSubBlock) {
        *factors = 1;
    }
    return Type::unpack(src, values, factors, mins);
}

template <class Type>
constexpr Int8Format kFormat = {Type::kSubBlock, Type::kOffset, Type::kHasMin,  unpack_row<Type>,
                                Type::kValues,   Type::kCenter, Type::kLargest, unpack_block<Type>};

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
        default:
            return nullptr;
    }
}

}  // namespace ggtune::kernels::detail
