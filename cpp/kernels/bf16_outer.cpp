#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/bf16_product.h"
#include "kernels/tile.h"
#include "kernels/tile_pack.h"
#include "kernels/transpose.h"

namespace ggtune::kernels {
namespace {

using namespace detail;

constexpr int64_t kSide = kMostRows;

// Columns of L that are read at a time: whole cache lines of rows that lie far apart, and their panels fit the L2
// cache.
constexpr int64_t kColumns = 128;
constexpr int64_t kTokens = 512;

// The panels of one thread: S transposed is A, L is B, the sum runs over tokens.
struct Scratch {
    struct alignas(64) Line {
        Bf16 values[kTileDepth];
    };
    std::vector<Line> small;
    alignas(64) Bf16 large[kColumns * kTokens];
    alignas(64) float sums[kSide * kSide];
};

Scratch & scratch() {
    thread_local Scratch buffers;
    return buffers;
}

// Rows of S become columns of A.
void pack_small(const float * s, int64_t s_row_stride, int64_t rank, int64_t n_tokens, Bf16 * panels) {
    alignas(64) float columns[kTileRows * kTileDepth];
    const int64_t depth = tile_count(n_tokens);
    for (int64_t r = 0; r < rank; r += kTileRows) {
        const int64_t n_rows = std::min(kTileRows, rank - r);
        for (int64_t k = 0; k < depth; ++k, panels += kTileValues) {
            const int64_t t = k * kTileDepth;
            const int64_t n = std::min(kTileDepth, n_tokens - t);
            transpose_copy(s + t * s_row_stride + r, s_row_stride, n, n_rows, columns, kTileDepth);
            pack_rows(columns, kTileDepth, n_rows, n, 1.0f, panels);
        }
    }
}

// Rows lie too far apart for the CPU to foresee them.
constexpr int64_t kRowsAhead = 16;

// Pairs of rows of L become pairs of values of B's columns.
void pack_large(const float * l, int64_t l_row_stride, int64_t n_tokens, int64_t n_columns, Bf16 * panels) {
    constexpr int64_t kLine = 16;
    const int64_t depth = tile_count(n_tokens);
    for (int64_t pair = 0; pair < depth * kTilePairs; ++pair) {
        const float * from = l + 2 * pair * l_row_stride;
        Bf16 * to = panels + pair * kTileDepth;
        if (2 * pair + kRowsAhead + 1 < n_tokens) {
            for (int64_t i = 0; i < n_columns; i += kLine) {
                __builtin_prefetch(from + kRowsAhead * l_row_stride + i);
                __builtin_prefetch(from + (kRowsAhead + 1) * l_row_stride + i);
            }
        }
        for (int64_t column = 0; column < n_columns; column += kTileDepth, to += 2 * depth * kTileValues) {
            alignas(64) Bf16 rows[2][kTileDepth];
            if (2 * pair + 1 < n_tokens && column + kTileDepth <= n_columns) {
                round_to_bf16(from + column, rows[0]);
                round_to_bf16(from + l_row_stride + column, rows[1]);
            } else {
                const int64_t n_rows = std::clamp<int64_t>(n_tokens - 2 * pair, 0, 2);
                std::memset(rows, 0, sizeof rows);
                for (int64_t i = 0; i < n_rows; ++i) {
                    round_scaled(from + i * l_row_stride + column, n_columns - column, 1.0f, rows[i]);
                }
            }
            interleave(rows[0], rows[1], to, to + depth * kTileValues);
        }
    }
}

}  // namespace

int64_t bf16_outer_block() {
    return kColumns;
}

void bf16_outer_product(const float * s, int64_t s_row_stride, int64_t rank, const float * l, int64_t l_row_stride,
                        int64_t n_tokens, float scale, bool accumulate, float * g, int64_t g_row_stride,
                        int64_t g_col_stride, int64_t first, int64_t end) {
    const TileSession session(tile_unit());
    Scratch & buffers = scratch();
    for (int64_t t = 0; t < n_tokens; t += kTokens) {
        const int64_t n = std::min(kTokens, n_tokens - t);
        const int64_t depth = tile_count(n);
        const int64_t stride = depth * kTileValues;
        buffers.small.resize(static_cast<size_t>((rank + kTileRows - 1) / kTileRows * stride / kTileDepth));
        Bf16 * small = buffers.small.data()->values;
        pack_small(s + t * s_row_stride, s_row_stride, rank, n, small);
        const bool add = accumulate || t > 0;
        for (int64_t column = first; column < end; column += kColumns) {
            const int64_t n_columns = std::min(kColumns, end - column);
            pack_large(l + t * l_row_stride + column, l_row_stride, n, n_columns, buffers.large);
            for (int64_t r = 0; r < rank; r += kSide) {
                const int64_t n_rows = std::min(kSide, rank - r);
                for (int64_t i = 0; i < n_columns; i += kSide) {
                    session.multiply({depth, small + r / kTileRows * stride, stride,
                                      buffers.large + i / kTileRows * stride, stride, buffers.sums, kSide,
                                      n_rows > kTileRows ? 2 : 1, kMostPanels, false});
                    float * to = g + r * g_row_stride + (column + i) * g_col_stride;
                    const int64_t width = std::min(kSide, n_columns - i);
                    for (int64_t row = 0; row < n_rows; ++row) {
                        for (int64_t j = 0; j < width; ++j) {
                            float & element = to[row * g_row_stride + j * g_col_stride];
                            const float sum = scale * buffers.sums[row * kSide + j];
                            element = add ? element + sum : sum;
                        }
                    }
                }
            }
        }
    }
}

}  // namespace ggtune::kernels
