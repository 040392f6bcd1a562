#include "kernels/tile.h"

#include <initializer_list>

#include "kernels/bf16.h"

namespace ggtune::kernels::detail {
namespace {

// As the matrix units do it: even and odd values of the sum apart from each other, tile by tile.
void multiply_tile(const Bf16 * a, const Bf16 * b, float * c, int64_t c_stride) {
    for (int64_t i = 0; i < kTileRows; ++i) {
        float even[kTileRows] = {};
        float odd[kTileRows] = {};
        for (int64_t p = 0; p < kTilePairs; ++p) {
            const float a_even = to_float(a[i * kTileDepth + 2 * p]);
            const float a_odd = to_float(a[i * kTileDepth + 2 * p + 1]);
            const Bf16 * pairs = b + p * kTileDepth;
            for (int64_t j = 0; j < kTileRows; ++j) {
                even[j] += a_even * to_float(pairs[2 * j]);
                odd[j] += a_odd * to_float(pairs[2 * j + 1]);
            }
        }
        for (int64_t j = 0; j < kTileRows; ++j) {
            c[i * c_stride + j] += even[j] + odd[j];
        }
    }
}

void multiply(const TileProduct & product) {
    for (int i = 0; i < product.a_panels; ++i) {
        for (int j = 0; j < product.b_panels; ++j) {
            float * c = product.c + i * kTileRows * product.c_stride + j * kTileRows;
            for (int64_t row = 0; row < kTileRows && !product.accumulate; ++row) {
                for (int64_t column = 0; column < kTileRows; ++column) {
                    c[row * product.c_stride + column] = 0.0f;
                }
            }
            for (const TileTerm & term : {product.term, product.more}) {
                for (int64_t k = 0; k < term.depth; ++k) {
                    multiply_tile(term.a + i * term.a_stride + k * kTileValues,
                                  term.b + j * term.b_stride + k * kTileValues, c, product.c_stride);
                }
            }
        }
    }
}

}  // namespace

const TileUnit & plain_tiles() {
    static const TileUnit unit = {"plain", false, [](void *) {}, [](const void *) {}, multiply};
    return unit;
}

const TileUnit & tile_unit() {
    static const TileUnit & best = amx_tiles() != nullptr   ? *amx_tiles()
                                   : arm_tiles() != nullptr ? *arm_tiles()
                                                            : plain_tiles();
    return best;
}

}  // namespace ggtune::kernels::detail
