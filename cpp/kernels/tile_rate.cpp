#include "kernels/tile_rate.h"

#include <chrono>
#include <random>
#include <vector>

#include "kernels/bf16.h"
#include "kernels/tile.h"

namespace ggtune::kernels {

using namespace detail;

double matrix_unit_rate(double seconds) {
    const TileUnit & unit = tile_unit();
    if (!unit.fast) {
        return 0.0;
    }
    // A's two panels are the same run of tiles, a tile apart, and so are B's: 2 x 17 KiB, which with C's 4 KiB every L1
    // cache beside a matrix unit holds. A tile's row is one cache line only where the tile starts with one.
    struct alignas(64) Tile {
        Bf16 values[kTileValues];
    };
    constexpr int64_t kDepth = 16;
    constexpr int64_t kColumns = kMostPanels * kTileRows;
    constexpr double kFlops = 2.0 * kColumns * kColumns * kDepth * kTileDepth;
    constexpr int kProducts = 100;  // between two looks at the clock

    // normal values, since tiles of zeros measure up to 1.3 times as fast
    std::vector<Tile> tiles(2 * (kDepth + 1));
    std::minstd_rand random;
    std::normal_distribution<float> normal;
    for (Tile & tile : tiles) {
        for (Bf16 & value : tile.values) {
            value = to_bf16(normal(random));
        }
    }
    alignas(64) float c[kColumns * kColumns];
    TileProduct product = {};
    product.term.depth = kDepth;
    product.term.a = tiles[0].values;
    product.term.b = tiles[kDepth + 1].values;
    product.term.a_stride = product.term.b_stride = kTileValues;
    product.c = c;
    product.c_stride = kColumns;
    product.a_panels = product.b_panels = kMostPanels;
    const TileSession session(unit);
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    double elapsed = 0.0;
    double flops = 0.0;
    while (elapsed < seconds) {
        for (int i = 0; i < kProducts; ++i) {
            session.multiply(product);
        }
        flops += kProducts * kFlops;
        elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    }
    return flops / elapsed;
}

}  // namespace ggtune::kernels
