// Gradients of the products of a mixture of experts.
#include <algorithm>

#include "ops/ggml/ggml_ops.h"
#include "ops/ggml/tiles.h"

namespace ggtune {

// Rows [begin, begin + n) of each expert's matrix in float32. ne = [i, n, n_experts]
ggml_tensor * GgmlOps::expert_tile_of(ggml_tensor * w, int64_t begin, int64_t n, ggml_tensor * x) {
    const int64_t n_in = w->ne[0], n_out = w->ne[1], n_experts = w->ne[2];
    if (w->type == GGML_TYPE_F32) {
        ggml_tensor * tile = ggml_view_3d(ctx, w, n_in, n, n_experts, w->nb[1], w->nb[2], begin * w->nb[1]);
        tile->src[GGML_MAX_SRC - 1] = x;
        return tile;
    }
    // whole rows are taken, one after another, whichever expert's they are
    ggml_tensor *& ids = expert_rows_[{n_out, n_experts, begin, n}];
    if (ids == nullptr) {
        std::vector<int32_t> numbers;
        for (int64_t e = 0; e < n_experts; e++) {
            for (int64_t o = begin; o < begin + n; o++) {
                numbers.push_back(static_cast<int32_t>(e * n_out + o));
            }
        }
        const int64_t ne[4] = {n * n_experts, 1, 1, 1};
        ids = host_input(GGML_TYPE_I32, ne, numbers.data());
    }
    ggml_tensor * rows = ggml_get_rows(ctx, ggml_reshape_2d(ctx, w, n_in, n_out * n_experts), ids);
    rows->src[GGML_MAX_SRC - 1] = x;
    return ggml_reshape_3d(ctx, rows, n_in, n, n_experts);
}

// dx = w^T dy, some rows of each expert's matrix at a time.
ggml_tensor * GgmlOps::expert_dx(ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids, ggml_tensor * dy, float scale,
                                 ggml_tensor * accumulator) {
    dy = contiguous(dy);
    const int64_t n_out = w->ne[1];
    const int64_t tile_rows = rows_per_expert_tile(w, traits_.max_tile_bytes);
    for (int64_t begin = 0; begin < n_out; begin += tile_rows) {
        const int64_t n = std::min(tile_rows, n_out - begin);
        ggml_tensor * tile = expert_tile_of(w, begin, n, begin > 0 ? accumulator : dy);
        ggml_tensor * dy_of_tile = dy;
        if (n < n_out) {
            dy_of_tile =
                contiguous(ggml_view_3d(ctx, dy, n, dy->ne[1], dy->ne[2], dy->nb[1], dy->nb[2], begin * sizeof(float)));
        }
        ggml_tensor * term = ggml_mul_mat_id(ctx, transposed(tile), dy_of_tile, ids);
        if (x->ne[1] != term->ne[1]) {
            term = repeat_dx(x, term);
        }
        accumulator = added(accumulator, term, scale);
    }
    return accumulator;
}

// dw[i, o, e] = sum over pairs of x[i, p] dy[o, p] [p has expert e]: one ordinary product, in which the narrower of the
// two operands has a place for each expert and zeros in those of the others.
ggml_tensor * GgmlOps::expert_dw(ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids, ggml_tensor * dy, float scale,
                                 ggml_tensor * accumulator) {
    const int64_t n_in = w->ne[0], n_out = w->ne[1], n_experts = w->ne[2], n_pairs = ggml_nelements(ids);
    dy = ggml_reshape_2d(ctx, contiguous(dy), n_out, n_pairs);
    if (x->ne[1] != ids->ne[0]) {
        x = ggml_repeat_4d(ctx, contiguous(x), n_in, ids->ne[0], ids->ne[1], 1);
    }
    x = ggml_reshape_2d(ctx, contiguous(x), n_in, n_pairs);
    std::vector<float> identity(n_experts * n_experts, 0.0f);
    for (int64_t e = 0; e < n_experts; e++) {
        identity[e * (n_experts + 1)] = 1.0f;
    }
    const int64_t ne[4] = {n_experts, n_experts, 1, 1};
    ggml_tensor * has_expert = ggml_get_rows(ctx, host_input(GGML_TYPE_F32, ne, identity.data()),
                                             ggml_reshape_1d(ctx, contiguous(ids), n_pairs));
    has_expert = ggml_reshape_3d(ctx, has_expert, 1, n_experts, n_pairs);
    const auto placed = [&](ggml_tensor * t) {
        ggml_tensor * everywhere =
            ggml_repeat_4d(ctx, ggml_reshape_3d(ctx, t, t->ne[0], 1, n_pairs), t->ne[0], n_experts, n_pairs, 1);
        return ggml_reshape_2d(ctx, ggml_mul(ctx, everywhere, has_expert), t->ne[0] * n_experts, n_pairs);
    };
    ggml_tensor * dw;
    if (n_out <= n_in) {
        dw = multiplied(transposed(x), transposed(placed(dy)));
        dw = ggml_reshape_3d(ctx, dw, n_in, n_out, n_experts);
    } else {
        dw = multiplied(transposed(placed(x)), transposed(dy));
        dw = ggml_reshape_3d(ctx, dw, n_in, n_experts, n_out);
        dw = ggml_cont(ctx, ggml_permute(ctx, dw, 0, 2, 1, 3));
    }
    return added(accumulator, dw, scale);
}

ggml_tensor * GgmlOps::expert_lora_add(ggml_tensor * y, ggml_tensor * b, ggml_tensor * h, ggml_tensor * ids,
                                       float scale) {
    return ggml_add(ctx, y, ggml_mul_mat_id(ctx, b, ggml_scale(ctx, h, scale), ids));
}

}  // namespace ggtune
