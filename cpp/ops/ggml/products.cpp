// Gradients of products.
#include "base/error.h"
#include "ops/ggml/ggml_ops.h"
#include "ops/ggml/tiles.h"

namespace ggtune {

// dx = w^T dy
ggml_tensor * GgmlOps::matmul_dx(ggml_tensor * w, ggml_tensor * dy, float scale, ggml_tensor * accumulator) {
    return added(accumulator, ggml_mul_mat(ctx, transposed(w), contiguous(dy)), scale);
}

// dw = x dy^T; matrices of x that share one of w lie one after another: their rows are summed over as if they were of
// one matrix.
ggml_tensor * GgmlOps::matmul_dw(ggml_tensor * w, ggml_tensor * x, ggml_tensor * dy, float scale,
                                 ggml_tensor * accumulator) {
    if (w->ne[3] != x->ne[3] && w->ne[2] != 1) {
        throw Error("no gradient of a product that repeats its first operand in two dimensions: " +
                    std::string(w->name));
    }
    const auto rows_of_each = [&](ggml_tensor * t) {
        const int64_t n_rows = ggml_nrows(t) / (w->ne[2] * w->ne[3]);
        return transposed(ggml_reshape_4d(ctx, contiguous(t), t->ne[0], n_rows, w->ne[2], w->ne[3]));
    };
    return added(accumulator, ggml_mul_mat(ctx, rows_of_each(x), rows_of_each(dy)), scale);
}

// dx = w^T dy, a tile of w at a time: no backend multiplies by the transpose of a quantized matrix.
ggml_tensor * GgmlOps::weight_dx(ggml_tensor * w, ggml_tensor * dy, ggml_tensor * accumulator) {
    dy = contiguous(dy);
    if (!ggml_is_matrix(w)) {
        if (w->type != GGML_TYPE_F32) {
            // as few rows as a stack has (the heads of latent attention), they are floats at once
            ggml_tensor * rows = ggml_reshape_2d(ctx, w, w->ne[0], ggml_nrows(w));
            w = ggml_reshape_4d(ctx, ggml_get_rows(ctx, rows, row_numbers(0, ggml_nrows(w))), w->ne[0], w->ne[1],
                                w->ne[2], w->ne[3]);
        }
        return matmul_dx(w, dy, 1.0f, accumulator);
    }
    const int64_t tile_rows = rows_per_tile(w, traits_.max_tile_bytes);
    for (int64_t begin = 0; begin < w->ne[1]; begin += tile_rows) {
        const int64_t n = std::min(tile_rows, w->ne[1] - begin);
        ggml_tensor * tile = w->type == GGML_TYPE_F32 ? ggml_view_2d(ctx, w, w->ne[0], n, w->nb[1], begin * w->nb[1])
                                                      : ggml_get_rows(ctx, w, row_numbers(begin, n));
        ggml_tensor * dy_of_tile = dy;
        if (n < w->ne[1]) {
            dy_of_tile = contiguous(ggml_view_4d(ctx, dy, n, dy->ne[1], dy->ne[2], dy->ne[3], dy->nb[1], dy->nb[2],
                                                 dy->nb[3], begin * sizeof(float)));
        }
        accumulator = added(accumulator, ggml_mul_mat(ctx, transposed(tile), dy_of_tile), 1.0f);
    }
    return accumulator;
}

}  // namespace ggtune
