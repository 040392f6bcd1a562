// Products of small bf16 tiles with sums in float32, on the CPU's matrix unit where it has one. Private to cpp/kernels.
//
// C [16 m, 16 n] = A [16 m, k] * B [k, 16 n]. A and B come packed in panels of 16 rows of A or 16 columns of B, each a
// row of tiles of 32 values of the sum (a KiB) one after another:
//   A tile  [16 rows][32]                 the row as it is
//   B tile  [16 pairs][16 columns][2]     pairs of consecutive values of the sum side by side
// bf16 is the upper half of a float32: Kalamkar et al., "A Study of BFLOAT16 for Deep Learning Training",
// arXiv:1905.12322. Layout of the tiles: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1,
// chapter 18 (AMX); Arm's bf16 instructions read the same pairs.
#pragma once

#include <cstdint>

#include "kernels/bf16.h"

namespace ggtune::kernels::detail {

inline constexpr int64_t kTileRows = 16;   // of A and columns of B
inline constexpr int64_t kTileDepth = 32;  // values of the sum
inline constexpr int64_t kTilePairs = kTileDepth / 2;
inline constexpr int64_t kTileValues = kTileRows * kTileDepth;

// Most panels of A and of B that are multiplied at a time: what the eight registers of AMX hold.
inline constexpr int kMostPanels = 2;
inline constexpr int64_t kMostRows = kMostPanels * kTileRows;

inline int64_t tile_count(int64_t depth) {
    return (depth + kTileDepth - 1) / kTileDepth;
}

// An operand that is used once, while the other is met again and should stay in the L1 cache.
enum class Streamed { none, a, b };

// Both operands of a part of the sum.
struct TileTerm {
    int64_t depth;  // in tiles
    const Bf16 * a;
    int64_t a_stride;  // from panel to panel, in values
    const Bf16 * b;
    int64_t b_stride;
};

// One or two panels of A times one or two of B.
struct TileProduct {
    TileTerm term;
    float * c;
    int64_t c_stride;  // from row to row, in floats
    int a_panels, b_panels;
    bool accumulate;  // C += A B
    Streamed streamed = Streamed::none;
    TileTerm more = {0, nullptr, 0, nullptr, 0};  // more of the sum, from elsewhere

    // The block of C that comes next, contiguous, which is brought near meanwhile where an operand is streamed.
    const float * next_c = nullptr;
};

// An implementation of the products. All give the same sums but for the order of their terms and what becomes of
// denormal values.
struct TileUnit {
    const char * name;
    bool fast;  // beats the float32 and the integer kernels

    // Around a thread's products: takes the unit into use and gives it back as it was found.
    void (*acquire)(void * state);
    void (*release)(const void * state);

    void (*multiply)(const TileProduct & product);
};

// The plain loops, always there.
const TileUnit & plain_tiles();

// AMX; nullptr where the CPU has none or the kernel or a container refuses it.
const TileUnit * amx_tiles();

// BFMMLA; nullptr where the CPU is no Arm CPU with bf16 instructions or the compiler knows none.
const TileUnit * arm_tiles();

// The best of this machine.
const TileUnit & tile_unit();

// Holds a unit for the thread that made it.
class TileSession {
  public:
    explicit TileSession(const TileUnit & unit) : unit_(unit) { unit_.acquire(state_); }
    ~TileSession() { unit_.release(state_); }
    TileSession(const TileSession &) = delete;
    TileSession & operator=(const TileSession &) = delete;

    void multiply(const TileProduct & product) const { unit_.multiply(product); }

  private:
    const TileUnit & unit_;
    alignas(64) char state_[64];
};

}  // namespace ggtune::kernels::detail
