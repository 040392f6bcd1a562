// The cache blocking shared by gemm() and the products with quantized weights. Private to cpp/kernels.
//
// C [m, n] = alpha * A [m, k] * B [k, n] + beta * C, where B is brought tile by tile into packed panels by a
// `PanelSource` (copied from memory, or dequantized). n is the vector dimension.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/gemm.h"
#include "kernels/microkernel.h"
#include "kernels/partition.h"
#include "kernels/simd.h"
#include "kernels/transpose.h"

namespace ggtune::kernels::detail {

inline constexpr int64_t kWidth = simd::kWidth;
inline constexpr int64_t kPanelCols = simd::kPanelVectors * simd::kWidth;

// A tile of B is kBlockK x kBlockN floats (512 KB) and stays in the L2 cache while it serves kBlockM rows of A, of
// which one register block (kBlockK floats a row) at a time is in L1. kBlockK is a multiple of every ggml block size.
inline constexpr int64_t kBlockK = 256;
inline constexpr int64_t kBlockN = 512;
inline constexpr int64_t kBlockM = 1020;

struct Product {
    int64_t m, n, k;
    Operand a;
    float alpha, beta;
    float * c;
    int64_t c_row_stride, c_col_stride;
};

// Layout of a packed tile [k, cols]: panels of kPanelCols columns one after another, each [k][panel_width] row-major;
// the last one is narrower, a multiple of kWidth wide, its columns beyond `cols` are zeros.
inline int64_t panel_width(int64_t cols, int64_t first_col) {
    return std::min(kPanelCols, round_up(cols - first_col, kWidth));
}

// Estimated cycles of a thread's part, by which the split is chosen.
struct CostModel {
    int64_t col_unit;           // B is brought in multiples of so many columns...
    double cycles_per_b;        // ... at so many cycles per element
    double cycles_per_a = 1.0;  // packing of A
    int64_t row_unit = max_block_rows(simd::kPanelVectors);
};

struct Part {
    Range rows, cols;
};

// The part of C that thread ith of nth computes: one rectangle of a grid of at most nth, chosen for the slowest thread.
inline Part split_product(int64_t m, int64_t n, const CostModel & cost, int ith, int nth) {
    double best = -1.0;
    int best_grid_rows = 1;
    for (int grid_rows = 1; grid_rows <= nth; ++grid_rows) {
        const int grid_cols = nth / grid_rows;
        const int64_t rows = round_up((m + grid_rows - 1) / grid_rows, cost.row_unit);
        const int64_t cols = round_up((n + grid_cols - 1) / grid_cols, kWidth);
        const int64_t cols_brought = std::min(round_up(cols, cost.col_unit), round_up(n, cost.col_unit));
        const double cycles = static_cast<double>(std::min(rows, m)) * static_cast<double>(cols) / kWidth +
                              cost.cycles_per_b * static_cast<double>(cols_brought) +
                              cost.cycles_per_a * static_cast<double>(rows);
        if (best < 0.0 || cycles < best) {
            best = cycles;
            best_grid_rows = grid_rows;
        }
    }
    const int grid_cols = nth / best_grid_rows;
    if (ith >= best_grid_rows * grid_cols) {
        return {{0, 0}, {0, 0}};
    }
    return {split_range(m, ith / grid_cols, best_grid_rows, cost.row_unit),
            split_range(n, ith % grid_cols, grid_cols, kWidth)};
}

// Rows [0, rows) and columns [0, k) of A as blocks of block_rows rows, each [k][block_rows] (fewer rows in the last).
inline void pack_rows(const Operand & a, int64_t rows, int64_t k, int64_t block_rows, float * packed) {
    for (int64_t i0 = 0; i0 < rows; i0 += block_rows) {
        const int64_t block = std::min(block_rows, rows - i0);
        const float * source = a.data + i0 * a.row_stride;
        if (a.col_stride == 1) {
            transpose_copy(source, a.row_stride, block, k, packed, block);
        } else {
            for (int64_t p = 0; p < k; ++p) {
                for (int64_t i = 0; i < block; ++i) {
                    packed[p * block + i] = source[p * a.col_stride + i * a.row_stride];
                }
            }
        }
        packed += block * k;
    }
}

// Computes `part` of C. `bring(k0, k_size, col0, cols, packed)` writes the tile B[k0 .. k0 + k_size, col0 .. col0 +
// cols].
template <class PanelSource>
void blocked_product(const Product & product, const Part & part, PanelSource && bring) {
    if (part.rows.size() == 0 || part.cols.size() == 0) {
        return;
    }
    thread_local std::vector<float> tile;
    thread_local std::vector<float> packed_rows;
    const int64_t n_vectors = panel_width(part.cols.size(), 0) / kWidth;
    const int64_t block_rows = max_block_rows(static_cast<int>(n_vectors));
    const Operand & a = product.a;
    // Copying A pays only where each element is used for several panels.
    const bool pack = part.cols.size() > 2 * kPanelCols;
    const int64_t max_cols = std::min(round_up(part.cols.size(), kWidth), kBlockN);
    const int64_t max_k = std::min(product.k, kBlockK);
    tile.resize(static_cast<size_t>(max_cols * max_k));
    if (pack) {
        packed_rows.resize(static_cast<size_t>(std::min(part.rows.size(), kBlockM) * max_k));
    }
    for (int64_t row0 = part.rows.begin; row0 < part.rows.end; row0 += kBlockM) {
        const int64_t rows = std::min(kBlockM, part.rows.end - row0);
        for (int64_t k0 = 0; k0 < product.k; k0 += kBlockK) {
            const int64_t k = std::min(kBlockK, product.k - k0);
            const float * a_block = a.data + row0 * a.row_stride + k0 * a.col_stride;
            if (pack) {
                pack_rows({a_block, a.row_stride, a.col_stride}, rows, k, block_rows, packed_rows.data());
            }
            for (int64_t col0 = part.cols.begin; col0 < part.cols.end; col0 += kBlockN) {
                const int64_t cols = std::min(kBlockN, part.cols.end - col0);
                bring(k0, k, col0, cols, tile.data());
                for (int64_t i = 0; i < rows; i += block_rows) {
                    const int64_t n_rows = std::min(block_rows, rows - i);
                    const float * a_rows = pack ? packed_rows.data() + i * k : a_block + i * a.row_stride;
                    for (int64_t j = 0; j < cols; j += kPanelCols) {
                        const int64_t width = panel_width(cols, j);
                        const BlockOutput output = {
                            product.c + (row0 + i) * product.c_row_stride + (col0 + j) * product.c_col_stride,
                            product.c_row_stride,
                            product.c_col_stride,
                            std::min(kPanelCols, cols - j),
                            product.alpha,
                            k0 == 0 ? product.beta : 1.0f,
                        };
                        block_kernel(static_cast<int>(width / kWidth), static_cast<int>(n_rows), pack)(
                            k, a_rows, a.row_stride, a.col_stride, tile.data() + j * k, width, output);
                    }
                }
            }
        }
    }
}

}  // namespace ggtune::kernels::detail
