#include "kernels/grid.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "kernels/dropout.h"
#include "kernels/int8_unpack.h"

// Layouts of the types: the block structs and dequantize_row_*() of ggml (ggml-common.h, ggml-quants.c).
namespace ggtune::kernels {
namespace {

constexpr int64_t kPiece = 256;  // values; a multiple of every type's block
constexpr int64_t kSmallestSubBlock = 16;

// Uniform numbers in [0, 1) by index.
class Uniform {
  public:
    explicit Uniform(uint64_t key) : low_(static_cast<uint32_t>(key)), high_(static_cast<uint32_t>(key >> 32)) {}
    uint32_t bits(int64_t index) const {
        const auto low = static_cast<uint32_t>(index);
        const auto high = static_cast<uint32_t>(static_cast<uint64_t>(index) >> 32);
        return detail::mix32(detail::mix32(low ^ low_) + (high_ ^ high));
    }
    float operator()(int64_t index) const { return static_cast<float>(bits(index) >> 8) * 0x1p-24f; }

  private:
    uint32_t low_;
    uint32_t high_;
};

void pack_nibbles(const uint8_t * codes, uint8_t * dst) {
    for (int i = 0; i < 16; ++i) {
        dst[i] = static_cast<uint8_t>(codes[i] | (codes[16 + i] << 4));
    }
}

void pack_fifth_bits(const uint8_t * codes, uint8_t * nibbles, uint8_t * fifth) {
    uint8_t low[32];
    std::fill(fifth, fifth + 4, uint8_t{0});
    for (int i = 0; i < 32; ++i) {
        low[i] = codes[i] & 15;
        fifth[i / 8] = static_cast<uint8_t>(fifth[i / 8] | ((codes[i] >> 4) << (i % 8)));
    }
    pack_nibbles(low, nibbles);
}

// Writes the codes of one block, and nothing else of it.
void pack_q4_0(const uint8_t * codes, uint8_t * dst) {
    pack_nibbles(codes, dst + 2);
}

void pack_q4_1(const uint8_t * codes, uint8_t * dst) {
    pack_nibbles(codes, dst + 4);
}

void pack_q5_0(const uint8_t * codes, uint8_t * dst) {
    pack_fifth_bits(codes, dst + 6, dst + 2);
}

void pack_q5_1(const uint8_t * codes, uint8_t * dst) {
    pack_fifth_bits(codes, dst + 8, dst + 4);
}

void pack_q8_0(const uint8_t * codes, uint8_t * dst) {
    for (int i = 0; i < 32; ++i) {
        dst[2 + i] = codes[i] ^ 128;
    }
}

void pack_twos(const uint8_t * codes, uint8_t * dst) {
    for (int half = 0; half < 2; ++half) {
        const uint8_t * from = codes + 128 * half;
        for (int i = 0; i < 32; ++i) {
            dst[32 * half + i] = static_cast<uint8_t>((from[i] & 3) | ((from[32 + i] & 3) << 2) |
                                                      ((from[64 + i] & 3) << 4) | ((from[96 + i] & 3) << 6));
        }
    }
}

void pack_q2_k(const uint8_t * codes, uint8_t * dst) {
    pack_twos(codes, dst + 16);
}

void pack_q3_k(const uint8_t * codes, uint8_t * dst) {
    pack_twos(codes, dst + 32);
    for (int i = 0; i < 32; ++i) {
        int high = 0;
        for (int part = 0; part < 8; ++part) {
            high |= (codes[32 * part + i] >> 2) << part;
        }
        dst[i] = static_cast<uint8_t>(high);
    }
}

void pack_q4_k(const uint8_t * codes, uint8_t * dst) {
    for (int pair = 0; pair < 4; ++pair) {
        for (int i = 0; i < 32; ++i) {
            dst[16 + 32 * pair + i] = static_cast<uint8_t>(codes[64 * pair + i] | (codes[64 * pair + 32 + i] << 4));
        }
    }
}

void pack_q5_k(const uint8_t * codes, uint8_t * dst) {
    for (int i = 0; i < 32; ++i) {
        int high = 0;
        for (int part = 0; part < 8; ++part) {
            high |= (codes[32 * part + i] >> 4) << part;
        }
        dst[16 + i] = static_cast<uint8_t>(high);
    }
    for (int pair = 0; pair < 4; ++pair) {
        for (int i = 0; i < 32; ++i) {
            const int low = codes[64 * pair + i] & 15;
            dst[48 + 32 * pair + i] = static_cast<uint8_t>(low | ((codes[64 * pair + 32 + i] & 15) << 4));
        }
    }
}

void pack_q6_k(const uint8_t * codes, uint8_t * dst) {
    for (int half = 0; half < 2; ++half) {
        const uint8_t * from = codes + 128 * half;
        for (int i = 0; i < 32; ++i) {
            dst[64 * half + i] = static_cast<uint8_t>((from[i] & 15) | ((from[64 + i] & 15) << 4));
            dst[64 * half + 32 + i] = static_cast<uint8_t>((from[32 + i] & 15) | ((from[96 + i] & 15) << 4));
            dst[128 + 32 * half + i] = static_cast<uint8_t>((from[i] >> 4) | ((from[32 + i] >> 4) << 2) |
                                                            ((from[64 + i] >> 4) << 4) | ((from[96 + i] >> 4) << 6));
        }
    }
}

void pack_iq4_xs(const uint8_t * codes, uint8_t * dst) {
    for (int i = 0; i < 8; ++i) {
        pack_nibbles(codes + 32 * i, dst + 8 + 16 * i);
    }
}

constexpr int8_t kNonLinearLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// MXFP4 (OCP Microscaling formats 1.0): E2M1 doubled, by ascending level; the codes are sign and magnitude.
constexpr int8_t kFp4Levels[15] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};
constexpr int kFp4Zero = 7;

void pack_mxfp4(const uint8_t * codes, uint8_t * dst) {
    const auto nibble = [](int code, int before) {
        if (code == kFp4Zero) {
            return (before & 7) == 0 ? before : 0;  // -0 stays as it is
        }
        return code > kFp4Zero ? code - kFp4Zero : 8 + kFp4Zero - code;
    };
    for (int i = 0; i < 16; ++i) {
        const int before = dst[1 + i];
        dst[1 + i] = static_cast<uint8_t>(nibble(codes[i], before & 15) | (nibble(codes[16 + i], before >> 4) << 4));
    }
}

// Codes from the bytes that detail::int8_format() unpacks: levels plus 128.
template <size_t n>
std::array<uint8_t, 256> codes_of_levels(const int8_t (&levels)[n]) {
    std::array<uint8_t, 256> codes{};
    for (size_t i = 0; i < n; ++i) {
        codes[static_cast<size_t>(levels[i] + 128)] = static_cast<uint8_t>(i);
    }
    return codes;
}

// weight = scale * level(code) - min, level(code) = code - a constant, or a table's entry.
struct Grid {
    int64_t block;
    int64_t block_bytes;
    int64_t sub_block;  // values under one scale
    int lowest;         // codes that a weight may be moved to
    int highest;
    const int8_t * table;                      // null: levels are equally spaced
    const std::array<uint8_t, 256> * code_of;  // null: unpacked bytes are the codes
    void (*unpack)(const uint8_t * src, int64_t n, uint8_t * codes, float * scales, float * mins);
    void (*pack)(const uint8_t * codes, uint8_t * dst);
};

struct Codes {
    ggml_type type;
    int lowest;
    int highest;
    const int8_t * table;
    void (*pack)(const uint8_t * codes, uint8_t * dst);
};

// -128 of Q8_0 is left out: kernels that take the absolute value of a byte can't multiply with it.
constexpr Codes kCodes[] = {
    {GGML_TYPE_Q4_0, 0, 15, nullptr, pack_q4_0},
    {GGML_TYPE_Q4_1, 0, 15, nullptr, pack_q4_1},
    {GGML_TYPE_Q5_0, 0, 31, nullptr, pack_q5_0},
    {GGML_TYPE_Q5_1, 0, 31, nullptr, pack_q5_1},
    {GGML_TYPE_Q8_0, 1, 255, nullptr, pack_q8_0},
    {GGML_TYPE_Q2_K, 0, 3, nullptr, pack_q2_k},
    {GGML_TYPE_Q3_K, 0, 7, nullptr, pack_q3_k},
    {GGML_TYPE_Q4_K, 0, 15, nullptr, pack_q4_k},
    {GGML_TYPE_Q5_K, 0, 31, nullptr, pack_q5_k},
    {GGML_TYPE_Q6_K, 0, 63, nullptr, pack_q6_k},
    {GGML_TYPE_IQ4_NL, 0, 15, kNonLinearLevels, pack_q4_0},
    {GGML_TYPE_IQ4_XS, 0, 15, kNonLinearLevels, pack_iq4_xs},
    {GGML_TYPE_MXFP4, 0, 14, kFp4Levels, pack_mxfp4},
};

Grid grid_of(ggml_type type) {
    const Codes & codes =
        *std::find_if(std::begin(kCodes), std::end(kCodes), [&](const Codes & c) { return c.type == type; });
    static const std::array<uint8_t, 256> non_linear = codes_of_levels(kNonLinearLevels);
    static const std::array<uint8_t, 256> fp4 = codes_of_levels(kFp4Levels);
    const detail::Int8Format & format = *detail::int8_format(type);
    return {ggml_blck_size(type),
            static_cast<int64_t>(ggml_type_size(type)),
            format.sub_block,
            codes.lowest,
            codes.highest,
            codes.table,
            codes.table == kNonLinearLevels ? &non_linear
            : codes.table == kFp4Levels     ? &fp4
                                            : nullptr,
            format.unpack,
            codes.pack};
}

// Up to kPiece weights of a row, unpacked.
struct Piece {
    uint8_t codes[kPiece];
    float scales[kPiece / kSmallestSubBlock];
    float mins[kPiece / kSmallestSubBlock];

    void unpack(const Grid & grid, const uint8_t * src, int64_t n) {
        grid.unpack(src, n, codes, scales, mins);
        for (int64_t i = 0; i < n && grid.code_of != nullptr; ++i) {
            codes[i] = (*grid.code_of)[codes[i]];
        }
    }
};

// A delta of this many steps is beyond every grid; larger ones would not fit an int.
constexpr float kFarSteps = 1e4f;

// Where a weight should be: between two codes, and how far up.
struct Place {
    int below;
    float fraction;  // 0 <= fraction < 1, of the way to the code above
    float gap;       // between the two, in levels
};

Place place_of(const Grid & grid, int code, float shift) {
    shift = std::min(std::max(shift, -kFarSteps), kFarSteps);
    if (grid.table == nullptr) {
        const float whole = std::floor(shift);
        return {code + static_cast<int>(whole), shift - whole, 1.0f};
    }
    // beyond the ends of the table it goes on with its last gap
    const int last = grid.highest;
    const auto gap_above = [&](int at) {
        const int i = std::min(std::max(at, 0), last - 1);
        return static_cast<float>(grid.table[i + 1] - grid.table[i]);
    };
    int at = code;
    while (shift < 0) {
        shift += gap_above(at - 1);
        --at;
    }
    while (shift >= gap_above(at)) {
        shift -= gap_above(at);
        ++at;
    }
    return {at, shift / gap_above(at), gap_above(at)};
}

// The level distance from the code that is the grid's end to a place beyond it; 0 inside.
float beyond_end(const Grid & grid, int code, float shift) {
    const auto level = [&](int c) { return static_cast<float>(grid.table != nullptr ? grid.table[c] : c); };
    const int lowest = std::min(grid.lowest, code);
    const float target = level(code) + shift;
    return std::max(0.0f, target - level(grid.highest)) + std::min(0.0f, target - level(lowest));
}

}  // namespace

bool has_grid(ggml_type type) {
    return std::any_of(std::begin(kCodes), std::end(kCodes), [&](const Codes & c) { return c.type == type; });
}

GridMoves move_on_grid(ggml_type type, const void * src, const float * delta, int64_t n, uint64_t key,
                       int64_t first_index, Rounding rounding, void * dst) {
    const Grid grid = grid_of(type);
    const Uniform uniform(key);
    const auto * from = static_cast<const uint8_t *>(src);
    auto * to = static_cast<uint8_t *>(dst);
    GridMoves moves;
    Piece piece;
    for (int64_t begin = 0; begin < n; begin += kPiece) {
        const int64_t n_piece = std::min(kPiece, n - begin);
        const int64_t n_bytes = n_piece / grid.block * grid.block_bytes;
        std::memcpy(to, from, static_cast<size_t>(n_bytes));
        piece.unpack(grid, from, n_piece);
        int64_t n_moved = 0;
        for (int64_t i = 0; i < n_piece; ++i) {
            const float scale = piece.scales[i / grid.sub_block];
            const float d = delta[begin + i];
            if (d == 0.0f || scale == 0.0f) {
                continue;
            }
            const int code = piece.codes[i];
            const Place place = place_of(grid, code, d / scale);
            const float threshold = rounding == Rounding::unbiased ? uniform(first_index + begin + i) : 0.5f;
            int moved = place.below + (threshold < place.fraction ? 1 : 0);
            moved = std::min(std::max(moved, std::min(grid.lowest, code)), grid.highest);
            const bool inside = place.below >= grid.lowest && place.below < grid.highest;
            if (inside && rounding == Rounding::unbiased) {
                const float step = place.gap * scale;
                moves.variance += static_cast<double>(place.fraction * (1.0f - place.fraction) * step * step);
            }
            n_moved += moved != code ? 1 : 0;
            piece.codes[i] = static_cast<uint8_t>(moved);
        }
        if (n_moved > 0) {
            for (int64_t i = 0; i < n_piece; i += grid.block) {
                grid.pack(piece.codes + i, to + i / grid.block * grid.block_bytes);
            }
        }
        moves.n_moved += n_moved;
        from += n_bytes;
        to += n_bytes;
    }
    return moves;
}

bool cut_off_by_grid(ggml_type type, const void * src, const float * delta, int64_t n, float * lost) {
    const Grid grid = grid_of(type);
    const auto * from = static_cast<const uint8_t *>(src);
    bool any = false;
    Piece piece;
    for (int64_t begin = 0; begin < n; begin += kPiece) {
        const int64_t n_piece = std::min(kPiece, n - begin);
        piece.unpack(grid, from, n_piece);
        for (int64_t i = 0; i < n_piece; ++i) {
            const float scale = piece.scales[i / grid.sub_block];
            const float d = delta[begin + i];
            const float part = scale == 0.0f ? d : scale * beyond_end(grid, piece.codes[i], d / scale);
            lost[begin + i] = part;
            any = any || part != 0.0f;
        }
        from += n_piece / grid.block * grid.block_bytes;
    }
    return any;
}

void mean_square_steps(ggml_type type, const void * src, int64_t n, float * squares) {
    const Grid grid = grid_of(type);
    // of a table the mean step, as far as its ends are apart
    const float gap = grid.table == nullptr ? 1.0f
                                            : static_cast<float>(grid.table[grid.highest] - grid.table[0]) /
                                                  static_cast<float>(grid.highest);
    const auto * from = static_cast<const uint8_t *>(src);
    const int64_t n_scales = grid.block / grid.sub_block;
    Piece piece;
    for (int64_t begin = 0; begin < n; begin += grid.block, from += grid.block_bytes) {
        piece.unpack(grid, from, grid.block);
        float sum = 0;
        for (int64_t i = 0; i < n_scales; ++i) {
            sum += piece.scales[i] * piece.scales[i];
        }
        squares[begin / grid.block] = gap * gap * sum / static_cast<float>(n_scales);
    }
}

void round_to_bf16(const float * src, int64_t n, uint64_t key, int64_t first_index, ggml_bf16_t * dst) {
    const Uniform uniform(key);
    for (int64_t i = 0; i < n; ++i) {
        uint32_t bits;
        std::memcpy(&bits, &src[i], sizeof bits);
        if ((bits & 0x7f800000u) != 0x7f800000u) {
            const uint32_t up = bits + (uniform.bits(first_index + i) >> 16);
            // the largest finite values do not become infinite
            bits = (up & 0x7f800000u) == 0x7f800000u ? bits : up;
        }
        dst[i].bits = static_cast<uint16_t>(bits >> 16);
    }
}

}  // namespace ggtune::kernels
