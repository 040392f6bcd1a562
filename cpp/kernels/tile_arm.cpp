// Empty but in the variants of the kernels that are compiled for Arm's bf16 instructions (cpp/dispatch/CMakeLists.txt).
#include "kernels/tile.h"

#include <initializer_list>

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && defined(__linux__)

#include <arm_neon.h>
#include <sys/auxv.h>

#include <algorithm>

namespace ggtune::kernels::detail {
namespace {

// BFMMLA: a register of 2 x 2 sums gains the product of 2 rows of A and 2 columns of B, each 4 values of the sum (Arm
// Architecture Reference Manual, DDI 0487, C7.2). Blocks of 8 x 8 sums in registers: 16 of them, and 4 each of A and B.
constexpr int64_t kSide = 8;
constexpr int64_t kPairs = kSide / 2;
constexpr int64_t kStep = 4;
constexpr int64_t kLanes = 8;  // values of bf16 in a register
constexpr int64_t kStepValues = kSide * kStep;
constexpr int64_t kSides = kTileRows / kSide;  // of a panel

// So many tiles of a panel are brought into that form at a time: with two panels each of A and B 16 KiB, half an L1
// cache.
constexpr int64_t kChunk = 4;
constexpr int64_t kChunkValues = kChunk * kTileDepth * kSide;

// What a block of kSide rows of A or columns of B is repacked to:
//   Bf16 [kChunk * kTileDepth / kStep][kPairs][2][kStep]
struct Repacked {
    alignas(64) Bf16 sides[kMostPanels * kSides][kChunkValues];
};

// Pairs of values travel as one uint32_t, four of them as one uint64_t.
inline void store_pairs(uint64x2_t pairs, Bf16 * to) {
    vst1q_u16(to, vreinterpretq_u16_u64(pairs));
}

void repack_a(const Bf16 * a, int64_t panel_stride, int panels, int64_t depth, Repacked & repacked) {
    for (int64_t side = 0; side < panels * kSides; ++side) {
        const Bf16 * tile = a + side / kSides * panel_stride + side % kSides * kSide * kTileDepth;
        Bf16 * to = repacked.sides[side];
        for (int64_t k = 0; k < depth; ++k, tile += kTileValues) {
            for (int64_t i = 0; i < kTileDepth; i += kLanes, to += 2 * kStepValues) {
                for (int64_t pair = 0; pair < kPairs; ++pair) {
                    const Bf16 * row = tile + 2 * pair * kTileDepth + i;
                    const uint64x2_t first = vreinterpretq_u64_u16(vld1q_u16(row));
                    const uint64x2_t second = vreinterpretq_u64_u16(vld1q_u16(row + kTileDepth));
                    store_pairs(vzip1q_u64(first, second), to + pair * kLanes);
                    store_pairs(vzip2q_u64(first, second), to + kStepValues + pair * kLanes);
                }
            }
        }
    }
}

void repack_b(const Bf16 * b, int64_t panel_stride, int panels, int64_t depth, Repacked & repacked) {
    for (int64_t side = 0; side < panels * kSides; ++side) {
        const Bf16 * tile = b + side / kSides * panel_stride + side % kSides * 2 * kSide;
        Bf16 * to = repacked.sides[side];
        for (int64_t p = 0; p < depth * kTilePairs; p += 2, tile += 2 * kTileDepth) {
            for (int64_t j = 0; j < 2 * kSide; j += kLanes, to += 2 * kLanes) {
                const uint32x4_t first = vreinterpretq_u32_u16(vld1q_u16(tile + j));
                const uint32x4_t second = vreinterpretq_u32_u16(vld1q_u16(tile + kTileDepth + j));
                store_pairs(vreinterpretq_u64_u32(vzip1q_u32(first, second)), to);
                store_pairs(vreinterpretq_u64_u32(vzip2q_u32(first, second)), to + kLanes);
            }
        }
    }
}

inline bfloat16x8_t load(const Bf16 * from) {
    return vreinterpretq_bf16_u16(vld1q_u16(from));
}

// Two registers of 2 x 2 sums as two rows of 4, and back: the same exchange.
inline void exchange(float32x4_t & first, float32x4_t & second) {
    const float64x2_t low = vreinterpretq_f64_f32(first);
    const float64x2_t high = vreinterpretq_f64_f32(second);
    first = vreinterpretq_f32_f64(vzip1q_f64(low, high));
    second = vreinterpretq_f32_f64(vzip2q_f64(low, high));
}

// kSide x kSide of C, from one repacked side each of A and B.
void multiply_block(int64_t n_steps, const Bf16 * a, const Bf16 * b, float * c, int64_t c_stride, bool accumulate) {
    float32x4_t sum[kPairs][kPairs] = {};
    if (accumulate) {
#pragma GCC unroll 4
        for (int64_t i = 0; i < kPairs; ++i) {
#pragma GCC unroll 2
            for (int64_t j = 0; j < kPairs; j += 2) {
                sum[i][j] = vld1q_f32(c + 2 * i * c_stride + 2 * j);
                sum[i][j + 1] = vld1q_f32(c + (2 * i + 1) * c_stride + 2 * j);
                exchange(sum[i][j], sum[i][j + 1]);
            }
        }
    }
    for (int64_t step = 0; step < n_steps; ++step, a += kStepValues, b += kStepValues) {
        bfloat16x8_t columns[kPairs];
#pragma GCC unroll 4
        for (int64_t j = 0; j < kPairs; ++j) {
            columns[j] = load(b + j * kLanes);
        }
#pragma GCC unroll 4
        for (int64_t i = 0; i < kPairs; ++i) {
            const bfloat16x8_t rows = load(a + i * kLanes);
#pragma GCC unroll 4
            for (int64_t j = 0; j < kPairs; ++j) {
                sum[i][j] = vbfmmlaq_f32(sum[i][j], rows, columns[j]);
            }
        }
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < kPairs; ++i) {
#pragma GCC unroll 2
        for (int64_t j = 0; j < kPairs; j += 2) {
            exchange(sum[i][j], sum[i][j + 1]);
            vst1q_f32(c + 2 * i * c_stride + 2 * j, sum[i][j]);
            vst1q_f32(c + (2 * i + 1) * c_stride + 2 * j, sum[i][j + 1]);
        }
    }
}

void multiply(const TileProduct & product) {
    Repacked a, b;
    bool accumulate = product.accumulate;
    for (const TileTerm & term : {product.term, product.more}) {
        for (int64_t k = 0; k < term.depth; k += kChunk, accumulate = true) {
            const int64_t depth = std::min(kChunk, term.depth - k);
            repack_a(term.a + k * kTileValues, term.a_stride, product.a_panels, depth, a);
            repack_b(term.b + k * kTileValues, term.b_stride, product.b_panels, depth, b);
            for (int64_t i = 0; i < product.a_panels * kSides; ++i) {
                for (int64_t j = 0; j < product.b_panels * kSides; ++j) {
                    multiply_block(depth * kTileDepth / kStep, a.sides[i], b.sides[j],
                                   product.c + i * kSide * product.c_stride + j * kSide, product.c_stride, accumulate);
                }
            }
        }
    }
}

// Linux, Documentation/arch/arm64/elf_hwcaps.rst
bool is_available() {
    constexpr unsigned long kBf16 = 1ul << 14;
    return (getauxval(AT_HWCAP2) & kBf16) != 0;
}

}  // namespace

const TileUnit * arm_tiles() {
    // fast by the instructions' count, not by measurement: BFMMLA does 16 multiply-adds, FMLA 4 and SDOT 16
    static const TileUnit unit = {"arm", true, [](void *) {}, [](const void *) {}, multiply};
    static const bool available = is_available();
    return available ? &unit : nullptr;
}

}  // namespace ggtune::kernels::detail

#else

namespace ggtune::kernels::detail {

const TileUnit * arm_tiles() {
    return nullptr;
}

}  // namespace ggtune::kernels::detail

#endif
