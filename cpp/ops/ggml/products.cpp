// Gradients of products.
#include <algorithm>

#include "base/error.h"
#include "ops/ggml/ggml_ops.h"
#include "ops/ggml/tiles.h"
#include "ops/products.h"

namespace ggtune {

// dx = w^T dy
ggml_tensor * GgmlOps::matmul_dx(ggml_tensor * w, ggml_tensor * dy, float scale, ggml_tensor * accumulator) {
    return added(accumulator, multiplied(transposed(w), contiguous(dy)), scale);
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
    return added(accumulator, multiplied(rows_of_each(x), rows_of_each(dy)), scale);
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
        ggml_tensor * tile = tile_of(w, begin, n, begin > 0 ? accumulator : dy);
        ggml_tensor * dy_of_tile = dy;
        if (n < w->ne[1]) {
            dy_of_tile = contiguous(ggml_view_4d(ctx, dy, n, dy->ne[1], dy->ne[2], dy->ne[3], dy->nb[1], dy->nb[2],
                                                 dy->nb[3], begin * sizeof(float)));
        }
        // CUDA tells the transpose of a single row from a row no more, and takes it for too short a matrix
        const bool by_out_prod = traits_.has_fast_out_prod && ggml_is_matrix(dy) && n > 1;
        ggml_tensor * term = by_out_prod ? ggml_out_prod(ctx, tile, ggml_transpose(ctx, dy_of_tile))
                                         : multiplied(transposed(tile), dy_of_tile);
        accumulator = added(accumulator, term, 1.0f);
    }
    return accumulator;
}

// Rows [begin, begin + n) of a matrix in float32.
ggml_tensor * GgmlOps::tile_of(ggml_tensor * w, int64_t begin, int64_t n, ggml_tensor * x) {
    ggml_tensor * tile = w->type == GGML_TYPE_F32 ? ggml_view_2d(ctx, w, w->ne[0], n, w->nb[1], begin * w->nb[1])
                                                  : ggml_get_rows(ctx, w, row_numbers(begin, n));
    tile->src[GGML_MAX_SRC - 1] = x;
    return tile;
}

ggml_tensor * GgmlOps::joined(const std::vector<ggml_tensor *> & parts) {
    if (parts.size() == 1) {
        return parts.front();
    }
    const ggml_tensor * first = parts.front();
    int64_t n = 0;
    for (const ggml_tensor * part : parts) {
        n += part->ne[0];
    }
    ggml_tensor * whole =
        zeros_after(parts.front(), ggml_new_tensor_4d(ctx, GGML_TYPE_F32, n, first->ne[1], first->ne[2], first->ne[3]));
    size_t at = 0;
    for (ggml_tensor * part : parts) {
        const size_t n_bytes = part->ne[0] * sizeof(float);
        whole = ggml_set_inplace(ctx, whole, part, whole->nb[1], whole->nb[2], whole->nb[3], at);
        at += n_bytes;
    }
    return whole;
}

ggml_tensor * GgmlOps::exact_product(ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids) {
    static const Op op = {"product", exact_product_rule, Rows::singly};
    ggml_tensor * rows = contiguous(x);
    const int64_t tile_rows =
        ids != nullptr ? rows_per_expert_tile(w, traits_.max_tile_bytes) : rows_per_tile(w, traits_.max_tile_bytes);
    std::vector<ggml_tensor *> parts;
    for (int64_t begin = 0; begin < w->ne[1]; begin += tile_rows) {
        const int64_t n = std::min(tile_rows, w->ne[1] - begin);
        parts.push_back(ids != nullptr ? ggml_mul_mat_id(ctx, expert_tile_of(w, begin, n, rows), rows, ids)
                                       : multiplied(tile_of(w, begin, n, rows), rows));
    }
    // x first: Vulkan takes the type of a copy's second operand for the type that it copies to
    std::vector<ggml_tensor *> operands = {x, w};
    if (ids != nullptr) {
        operands.push_back(ids);
    }
    return standing_for(ctx, joined(parts), operands, keep_node(op, ids != nullptr));
}

void GgmlOps::exact_product_rule(const BackwardStep & s) {
    const bool of_experts = *static_cast<const bool *>(custom_node(s.y)->params);
    ggml_tensor *x = operand_behind(s.y, 0), *w = operand_behind(s.y, 1);
    if (!s.needs(x)) {
        return;
    }
    add_in_place(s, x, [&](ggml_tensor * accumulator) {
        return of_experts ? s.ops.expert_dx(w, x, operand_behind(s.y, 2), s.dy, 1.0f, accumulator)
                          : s.ops.weight_dx(w, s.dy, accumulator);
    });
}

}  // namespace ggtune
