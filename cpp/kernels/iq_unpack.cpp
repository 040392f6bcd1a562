#include "kernels/iq_unpack.h"

#include <array>
#include <cstring>

#include "kernels/int8_block.h"

// Layouts of the types: the block structs and dequantize_row_*() of ggml (ggml-common.h, ggml-quants.c).
namespace ggtune::kernels::detail {
namespace {

constexpr int kBlock = 256;  // of all these types
constexpr uint64_t kOnes = 0x0101010101010101u;

// Halves that make the scale of a block of zeros 1, or 8 where values are eighths.
constexpr uint16_t kHalfOne = 0x3c00, kHalfFour = 0x4400, kHalfEight = 0x4800;

template <class Word>
inline Word word_at(const uint8_t * src) {
    Word word;
    std::memcpy(&word, src, sizeof word);
    return word;
}

// ggml keeps its codebooks to itself, but a block of known indices, its scale 1 and its signs +, turns into their
// vectors. Each is kept as one word: a byte for each value, plus 128.
template <class Type>
auto read_codebook() {
    using Word = typename Type::Word;
    constexpr int kVectors = kBlock / sizeof(Word);
    std::array<Word, Type::kVectors> codebook;
    for (int first = 0; first < Type::kVectors; first += kVectors) {
        uint8_t block[Type::kBytes] = {};
        Type::set_unit_scale(block);
        for (int i = 0; i < kVectors; ++i) {
            Type::set_index(block, i, first + i);
        }
        float values[kBlock];
        ggml_get_type_traits(Type::kType)->to_float(block, values, kBlock);
        uint8_t bytes[kBlock];
        for (int i = 0; i < kBlock; ++i) {
            bytes[i] = static_cast<uint8_t>(128 + static_cast<int>(values[i]));
        }
        std::memcpy(&codebook[static_cast<size_t>(first)], bytes, sizeof bytes);
    }
    return codebook;
}

// Bit j of the index as byte j, 0 or 255.
struct SignMasks {
    uint64_t of_byte[256] = {};
    // the eighth sign is + or - so that the number of - is even
    uint64_t of_seven[128] = {};

    constexpr SignMasks() {
        for (unsigned bits = 0; bits < 256; ++bits) {
            unsigned parity = 0;
            for (unsigned j = 0; j < 8; ++j) {
                of_byte[bits] |= (bits >> j & 1u) * (uint64_t{255} << (8 * j));
                parity ^= bits >> j & 1u;
            }
            if (parity == 0) {
                of_seven[bits & 127u] = of_byte[bits];
            }
        }
    }
};
constexpr SignMasks kSignMasks;

// Eight magnitudes plus 128, none of them 0, with signs: 128 + v becomes 128 - v where the mask has a byte of ones.
inline void store_signed(uint64_t magnitudes, uint64_t mask, uint8_t * values) {
    const uint64_t with_signs = (magnitudes ^ mask) + (mask & kOnes);
    std::memcpy(values, &with_signs, sizeof with_signs);
}

// Scales of IQ2_XS and IQ2_S, of IQ3_S: d * (2 nibble + 1) times a power of two.
template <int n>
inline void unpack_factors(const uint8_t * src, int16_t * factors) {
    for (int i = 0; i < n / 2; ++i) {
        factors[2 * i] = static_cast<int16_t>(2 * (src[i] & 15) + 1);
        factors[2 * i + 1] = static_cast<int16_t>(2 * (src[i] >> 4) + 1);
    }
}

struct Iq2 {
    using Word = uint64_t;
    static constexpr int kValues = kBlock, kOffset = 128, kCenter = kOffset, kLargest = 31 * 43;
    static constexpr int kLargestByte = 171;
    static constexpr bool kHasMin = false;
    static constexpr float kUnit = 0.125f;  // of d * (nibble + 1/2) / 4
    static void set_unit_scale(uint8_t * block) { std::memcpy(block, &kHalfEight, sizeof kHalfEight); }
};

struct Iq2Xxs : Iq2 {
    static constexpr ggml_type kType = GGML_TYPE_IQ2_XXS;
    static constexpr int kVectors = 256, kBytes = 66, kSubBlock = 32;
    static void set_index(uint8_t * block, int i, int index) {
        block[2 + i / 4 * 8 + i % 4] = static_cast<uint8_t>(index);
    }
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float *) {
        static const auto codebook = read_codebook<Iq2Xxs>();
        for (int part = 0; part < 8; ++part) {
            const uint8_t * indices = src + 2 + 8 * part;
            const auto signs = word_at<uint32_t>(indices + 4);
            factors[part] = static_cast<int16_t>(2 * (signs >> 28) + 1);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                store_signed(codebook[indices[i]], kSignMasks.of_seven[signs >> (7 * i) & 127], values);
                values += 8;
            }
        }
        return half_at(src) * kUnit;
    }
};

struct Iq2Xs : Iq2 {
    static constexpr ggml_type kType = GGML_TYPE_IQ2_XS;
    static constexpr int kVectors = 512, kBytes = 74, kSubBlock = 16;
    static void set_index(uint8_t * block, int i, int index) {
        block[2 + 2 * i] = static_cast<uint8_t>(index);
        block[3 + 2 * i] = static_cast<uint8_t>(index >> 8);
    }
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float *) {
        static const auto codebook = read_codebook<Iq2Xs>();
        for (int i = 0; i < 32; ++i) {
            const auto packed = word_at<uint16_t>(src + 2 + 2 * i);
            store_signed(codebook[packed & 511], kSignMasks.of_seven[packed >> 9], values + 8 * i);
        }
        unpack_factors<16>(src + 66, factors);
        return half_at(src) * kUnit;
    }
};

struct Iq2S : Iq2 {
    static constexpr ggml_type kType = GGML_TYPE_IQ2_S;
    static constexpr int kVectors = 1024, kBytes = 82, kSubBlock = 16;
    static void set_index(uint8_t * block, int i, int index) {
        block[2 + i] = static_cast<uint8_t>(index);
        block[66 + i / 4] |= static_cast<uint8_t>((index >> 8) << (i % 4 * 2));
    }
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float *) {
        static const auto codebook = read_codebook<Iq2S>();
        const uint8_t * signs = src + 34;
        for (int part = 0; part < 8; ++part) {
            const unsigned high = static_cast<unsigned>(src[66 + part]) << 8;
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const int i = 4 * part + j;
                const unsigned index = src[2 + i] | (high >> (2 * j) & 0x300u);
                store_signed(codebook[index], kSignMasks.of_byte[signs[i]], values + 8 * i);
            }
        }
        unpack_factors<16>(src + 74, factors);
        return half_at(src) * kUnit;
    }
};

inline uint64_t join(uint32_t low, uint32_t high) {
    return low | static_cast<uint64_t>(high) << 32;
}

struct Iq3Xxs {
    using Word = uint32_t;
    static constexpr ggml_type kType = GGML_TYPE_IQ3_XXS;
    static constexpr int kVectors = 256, kValues = kBlock, kBytes = 98, kSubBlock = 32, kOffset = 128,
                         kCenter = kOffset, kLargest = 31 * 62;
    static constexpr int kLargestByte = 190;
    static constexpr bool kHasMin = false;
    static void set_unit_scale(uint8_t * block) { std::memcpy(block, &kHalfFour, sizeof kHalfFour); }
    static void set_index(uint8_t * block, int i, int index) { block[2 + i] = static_cast<uint8_t>(index); }
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float *) {
        static const auto codebook = read_codebook<Iq3Xxs>();
        const uint8_t * indices = src + 2;
        for (int part = 0; part < 8; ++part) {
            const auto signs = word_at<uint32_t>(src + 66 + 4 * part);
            factors[part] = static_cast<int16_t>(2 * (signs >> 28) + 1);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                store_signed(join(codebook[indices[0]], codebook[indices[1]]),
                             kSignMasks.of_seven[signs >> (7 * i) & 127], values);
                indices += 2;
                values += 8;
            }
        }
        return half_at(src) * 0.25f;
    }
};

struct Iq3S {
    using Word = uint32_t;
    static constexpr ggml_type kType = GGML_TYPE_IQ3_S;
    static constexpr int kVectors = 512, kValues = kBlock, kBytes = 110, kSubBlock = 32, kOffset = 128,
                         kCenter = kOffset, kLargest = 31 * 15;
    static constexpr int kLargestByte = 143;
    static constexpr bool kHasMin = false;
    static void set_unit_scale(uint8_t * block) { std::memcpy(block, &kHalfOne, sizeof kHalfOne); }
    static void set_index(uint8_t * block, int i, int index) {
        block[2 + i] = static_cast<uint8_t>(index);
        block[66 + i / 8] |= static_cast<uint8_t>((index >> 8) << (i % 8));
    }
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float *) {
        static const auto codebook = read_codebook<Iq3S>();
        const uint8_t * indices = src + 2;
        const uint8_t * signs = src + 74;
        for (int part = 0; part < 8; ++part) {
            const unsigned high = static_cast<unsigned>(src[66 + part]) << 8;
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const uint32_t first = codebook[indices[0] | (high >> (2 * i) & 0x100u)];
                const uint32_t second = codebook[indices[1] | (high >> (2 * i + 1) & 0x100u)];
                store_signed(join(first, second), kSignMasks.of_byte[*signs], values);
                ++signs;
                indices += 2;
                values += 8;
            }
        }
        unpack_factors<8>(src + 106, factors);
        return half_at(src);
    }
};

// IQ1_S and IQ1_M: a value of -1, 0 or 1 plus or minus an eighth, in eighths. The codebook holds those plus an eighth.
struct Iq1 {
    using Word = uint64_t;
    static constexpr int kVectors = 2048, kValues = kBlock, kOffset = 128, kCenter = kOffset, kLargest = 15 * 9;
    static constexpr int kLargestByte = 137;
    static constexpr bool kHasMin = false;
    static constexpr float kUnit = 0.125f;
};

struct Iq1S : Iq1 {
    static constexpr ggml_type kType = GGML_TYPE_IQ1_S;
    static constexpr int kBytes = 50, kSubBlock = 32;
    static void set_unit_scale(uint8_t * block) { std::memcpy(block, &kHalfEight, sizeof kHalfEight); }
    static void set_index(uint8_t * block, int i, int index) {
        block[2 + i] = static_cast<uint8_t>(index);
        const unsigned high = static_cast<unsigned>(index >> 8) << (i % 4 * 3);
        block[34 + i / 4 * 2] |= static_cast<uint8_t>(high);
        block[35 + i / 4 * 2] |= static_cast<uint8_t>(high >> 8);
    }
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float *);
};

const auto & iq1_codebook() {
    static const auto codebook = read_codebook<Iq1S>();
    return codebook;
}

inline void store_iq1(uint64_t vector, bool minus, uint8_t * values) {
    vector -= minus ? 2 * kOnes : 0;
    std::memcpy(values, &vector, sizeof vector);
}

float Iq1S::unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float *) {
    const auto & codebook = iq1_codebook();
    for (int part = 0; part < 8; ++part) {
        const unsigned high = word_at<uint16_t>(src + 34 + 2 * part);
        factors[part] = static_cast<int16_t>(2 * (high >> 12 & 7) + 1);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const int i = 4 * part + j;
            store_iq1(codebook[src[2 + i] | (high >> (3 * j) & 7) << 8], high >> 15 != 0, values + 8 * i);
        }
    }
    return half_at(src) * kUnit;
}

struct Iq1M : Iq1 {
    static constexpr int kBytes = 56, kSubBlock = 16;
    static float unpack(const uint8_t * src, uint8_t * values, int16_t * factors, float *) {
        const auto & codebook = iq1_codebook();
        const uint8_t * highs = src + 32;
        for (int i = 0; i < 32; i += 2) {
            const unsigned high = highs[i / 2];
            store_iq1(codebook[src[i] | (high & 7) << 8], (high & 8) != 0, values + 8 * i);
            store_iq1(codebook[src[i + 1] | (high >> 4 & 7) << 8], (high & 128) != 0, values + 8 * i + 8);
        }
        // four times four factors of 3 bits; the 4 bits above them are the block's scale, the lowest ones first
        unsigned scale = 0;
        for (int i = 0; i < 4; ++i) {
            const unsigned packed = word_at<uint16_t>(src + 48 + 2 * i);
            scale |= packed >> 12 << (4 * i);
            for (int j = 0; j < 4; ++j) {
                factors[4 * i + j] = static_cast<int16_t>(2 * (packed >> (3 * j) & 7) + 1);
            }
        }
        const auto half = static_cast<uint16_t>(scale);
        uint8_t bytes[sizeof half];
        std::memcpy(bytes, &half, sizeof half);
        return half_at(bytes) * kUnit;
    }
};

}  // namespace

const Int8Format * codebook_format(ggml_type type) {
    switch (type) {
        case GGML_TYPE_IQ1_S:
            return &kFormat<Iq1S>;
        case GGML_TYPE_IQ1_M:
            return &kFormat<Iq1M>;
        case GGML_TYPE_IQ2_XXS:
            return &kFormat<Iq2Xxs>;
        case GGML_TYPE_IQ2_XS:
            return &kFormat<Iq2Xs>;
        case GGML_TYPE_IQ2_S:
            return &kFormat<Iq2S>;
        case GGML_TYPE_IQ3_XXS:
            return &kFormat<Iq3Xxs>;
        case GGML_TYPE_IQ3_S:
            return &kFormat<Iq3S>;
        default:
            return nullptr;
    }
}

}  // namespace ggtune::kernels::detail
