#include "kernels/bf16_product.h"

#include <algorithm>
#include <vector>

#include "kernels/tile.h"
#include "kernels/tile_pack.h"

#ifndef KB
#define KB 1024
#define OB 256
#define GB 1024
#define IB 256
#endif
namespace ggtune::kernels {
namespace {

using namespace detail;

// What is multiplied at a time.
constexpr int64_t kSide = kMostPanels * kTileRows;

// Forward: a block of W, kBlockOutputs x kBlockInputs as bf16, stays in the L2 cache and meets all tokens.
constexpr int64_t kBlockInputs = KB;
constexpr int64_t kBlockOutputs = OB;

// Gradient: likewise.
constexpr int64_t kGradientOutputs = GB;
constexpr int64_t kGradientInputs = IB;

Bf16 * scratch(int64_t n) {
    struct alignas(64) Line {
        Bf16 values[32];
    };
    thread_local std::vector<Line> buffer;
    buffer.resize(std::max(buffer.size(), static_cast<size_t>((n + 31) / 32)));
    return buffer.data()->values;
}

int64_t panel_values(int64_t depth) {
    return tile_count(depth) * kTileValues;
}

int panels_of(int64_t n) {
    return n > kTileRows ? 2 : 1;
}

}  // namespace

bool bf16_product_fast() {
    return tile_unit().fast;
}

int64_t bf16_panel_count(int64_t n_tokens) {
    return (n_tokens + kTileRows - 1) / kTileRows;
}

size_t bf16_panel_bytes(int64_t n) {
    return static_cast<size_t>(panel_values(n)) * sizeof(Bf16);
}

void bf16_pack_inputs(const float * x, int64_t x_row_stride, int64_t n, int64_t n_tokens, void * packed, int64_t first,
                      int64_t end) {
    for (int64_t p = first; p < end; ++p) {
        pack_columns(x + p * kTileRows * x_row_stride, x_row_stride, std::min(kTileRows, n_tokens - p * kTileRows), n,
                     static_cast<Bf16 *>(packed) + p * panel_values(n));
    }
}

void bf16_pack_gradients(const float * dy, int64_t dy_row_stride, int64_t n, int64_t n_tokens, void * packed,
                         int64_t first, int64_t end) {
    for (int64_t p = first; p < end; ++p) {
        pack_rows(dy + p * kTileRows * dy_row_stride, dy_row_stride, std::min(kTileRows, n_tokens - p * kTileRows), n,
                  static_cast<Bf16 *>(packed) + p * panel_values(n));
    }
}

void bf16_forward(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, const void * packed,
                  int64_t n_tokens, float * y, int64_t y_row_stride, bool accumulate, int64_t first, int64_t end) {
    const TileSession session(tile_unit());
    const auto * x = static_cast<const Bf16 *>(packed);
    const int64_t x_stride = panel_values(n_in);
    Bf16 * block = scratch(kBlockOutputs * std::min(kBlockInputs, tile_count(n_in) * kTileDepth));
    alignas(64) float sums[kSide * kSide];
    for (int64_t o0 = first; o0 < end; o0 += kBlockOutputs) {
        const int64_t n_outputs = std::min(kBlockOutputs, end - o0);
        for (int64_t k0 = 0; k0 < n_in; k0 += kBlockInputs) {
            const int64_t depth = std::min(kBlockInputs, n_in - k0);
            const int64_t w_stride = panel_values(depth);
            for (int64_t o = 0; o < n_outputs; ++o) {
                const char * row = static_cast<const char *>(w) + static_cast<size_t>(o0 + o) * w_row_bytes;
                unpack_bf16(type, row + ggml_row_size(type, k0), depth,
                            block + o / kTileRows * w_stride + o % kTileRows * kTileDepth, kTileValues);
            }
            for (int64_t t = 0; t < n_tokens; t += kSide) {
                const int64_t n = std::min(kSide, n_tokens - t);
                for (int64_t o = 0; o < n_outputs; o += kSide) {
                    const int64_t m = std::min(kSide, n_outputs - o);
                    session.multiply({tile_count(depth), block + o / kTileRows * w_stride, w_stride,
                                      x + t / kTileRows * x_stride + k0 / kTileDepth * kTileValues, x_stride, sums,
                                      kSide, panels_of(m), panels_of(n), false});
                    store_transposed(sums, m, n, y + t * y_row_stride + o0 + o, y_row_stride, accumulate || k0 > 0);
                }
            }
        }
    }
}

void bf16_input_gradient(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_out, const void * packed,
                         int64_t n_tokens, float * dx, int64_t dx_row_stride, bool accumulate, int64_t first,
                         int64_t end) {
    const TileSession session(tile_unit());
    const auto * dy = static_cast<const Bf16 *>(packed);
    const int64_t dy_stride = panel_values(n_out);
    const int64_t w_block = ggml_blck_size(type);
    Bf16 * block = scratch(kGradientInputs * std::min(kGradientOutputs, tile_count(n_out) * kTileDepth));
    alignas(64) Bf16 rows[2][kGradientInputs + 256];
    alignas(64) float sums[kSide * kSide];
    for (int64_t i0 = first; i0 < end; i0 += kGradientInputs) {
        const int64_t n_inputs = std::min(kGradientInputs, end - i0);
        // a chunk's columns may begin inside a block of W
        const int64_t from = i0 / w_block * w_block;
        const int64_t n_unpacked = (i0 + n_inputs - from + w_block - 1) / w_block * w_block;
        for (int64_t k0 = 0; k0 < n_out; k0 += kGradientOutputs) {
            const int64_t depth = std::min(kGradientOutputs, n_out - k0);
            const int64_t w_stride = panel_values(depth);
            for (int64_t k = 0; k < depth; k += 2) {
                const char * row = static_cast<const char *>(w) + static_cast<size_t>(k0 + k) * w_row_bytes +
                                   ggml_row_size(type, from);
                unpack_bf16(type, row, n_unpacked, rows[0], kTileDepth);
                unpack_bf16(type, row + w_row_bytes, n_unpacked, rows[1], kTileDepth);
                for (int64_t i = 0; i < n_inputs; i += kTileDepth) {
                    interleave(rows[0] + (i0 - from) + i, rows[1] + (i0 - from) + i, k,
                               block + i / kTileRows * w_stride, w_stride);
                }
            }
            for (int64_t t = 0; t < n_tokens; t += kSide) {
                const int64_t m = std::min(kSide, n_tokens - t);
                for (int64_t i = 0; i < n_inputs; i += kSide) {
                    session.multiply({tile_count(depth), dy + t / kTileRows * dy_stride + k0 / kTileDepth * kTileValues,
                                      dy_stride, block + i / kTileRows * w_stride, w_stride,
                                      dx + t * dx_row_stride + i0 + i, dx_row_stride, panels_of(m), 2,
                                      accumulate || k0 > 0});
                }
            }
        }
    }
    (void)sums;
}

}  // namespace ggtune::kernels
