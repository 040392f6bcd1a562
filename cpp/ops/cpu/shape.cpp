// Gradients of what moves elements: views, rows.
#include <algorithm>

#include "ops/cpu/cpu_ops.h"

namespace ggtune {

namespace {

using kernels::split_range;

// How a view lies in its source: both are strided windows on the same memory.
struct ViewGeometry {
    int64_t ne[4];  // of the view
    int64_t nb[4];  // bytes, of the view
    int64_t source_nb[4];
    int64_t offset;  // bytes from the source's first element
    int order[4];    // dimensions of the source by falling stride
};

void run_view_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const ViewGeometry & g = *static_cast<ViewGeometry *>(userdata);
    const ggml_tensor * dy = dx->src[0];
    // every thread clears and fills its own range of the result, so that none writes where another does
    const auto own = element_range(dx, ith, nth);
    std::fill(floats(dx) + own.begin, floats(dx) + own.end, 0.0f);
    const int64_t strides[4] = {1, dx->ne[0], dx->ne[0] * dx->ne[1], dx->ne[0] * dx->ne[1] * dx->ne[2]};
    const auto position = [&](int64_t bytes) {  // index in the contiguous dx of a byte offset into the source
        int64_t index = 0;
        for (const int d : g.order) {
            if (dx->ne[d] > 1) {
                index += bytes / g.source_nb[d] * strides[d];
                bytes %= g.source_nb[d];
            }
        }
        return index;
    };
    const bool rows_contiguous = g.nb[0] == sizeof(float) && g.source_nb[0] == sizeof(float);
    for (int64_t i3 = 0; i3 < g.ne[3]; i3++) {
        for (int64_t i2 = 0; i2 < g.ne[2]; i2++) {
            for (int64_t i1 = 0; i1 < g.ne[1]; i1++) {
                const int64_t row = g.offset + i1 * g.nb[1] + i2 * g.nb[2] + i3 * g.nb[3];
                const float * from = floats(dy) + ((i3 * g.ne[2] + i2) * g.ne[1] + i1) * g.ne[0];
                if (rows_contiguous && position(row) + g.ne[0] - 1 == position(row + (g.ne[0] - 1) * g.nb[0])) {
                    const int64_t first = position(row);
                    const int64_t begin = std::max(first, own.begin);
                    const int64_t end = std::min(first + g.ne[0], own.end);
                    for (int64_t i = begin; i < end; i++) {
                        floats(dx)[i] += from[i - first];
                    }
                } else {
                    for (int64_t i0 = 0; i0 < g.ne[0]; i0++) {
                        const int64_t i = position(row + i0 * g.nb[0]);
                        if (i >= own.begin && i < own.end) {
                            floats(dx)[i] += from[i0];
                        }
                    }
                }
            }
        }
    }
}

void run_rows_dx(ggml_tensor * dx, int ith, int nth, void *) {
    const ggml_tensor * ids = dx->src[0];
    const ggml_tensor * dy = dx->src[1];
    const int64_t n = dx->ne[0], n_rows = dx->ne[1], n_taken = dy->ne[1];
    // threads take columns of one matrix, or matrices: the rows of one may be added to in any order of `ids`
    const int64_t n_matrices = dx->ne[2] * dx->ne[3];
    const bool by_columns = n_matrices == 1;
    const auto columns = by_columns ? split_range(n, ith, nth, 16) : kernels::Range{0, n};
    const auto matrices = by_columns ? kernels::Range{0, 1} : split_range(n_matrices, ith, nth);
    for (int64_t m = matrices.begin; m < matrices.end; m++) {
        const char * row_ids =
            static_cast<const char *>(ids->data) + m % dx->ne[2] * ids->nb[1] + m / dx->ne[2] * ids->nb[2];
        float * sums = floats(dx) + m * n_rows * n;
        for (int64_t row = 0; row < n_rows; row++) {
            std::fill_n(sums + row * n + columns.begin, columns.size(), 0.0f);
        }
        for (int64_t row = 0; row < n_taken; row++) {
            float * to = sums + *reinterpret_cast<const int32_t *>(row_ids + row * ids->nb[0]) * n;
            const float * from = floats(dy) + (m * n_taken + row) * n;
            for (int64_t i = columns.begin; i < columns.end; i++) {
                to[i] += from[i];
            }
        }
    }
}

void run_zeros(ggml_tensor * t, int ith, int nth, void *) {
    const auto range = split_range(ggml_nelements(t), ith, nth, 64);
    std::fill(floats(t) + range.begin, floats(t) + range.end, 0.0f);
}

const CpuOp view_dx_op = {{"view_dx"}, run_view_dx};
const CpuOp rows_dx_op = {{"rows_dx"}, run_rows_dx};
const CpuOp zeros_op = {{"zeros"}, run_zeros};

}  // namespace

ggml_tensor * CpuOps::view_dx(ggml_tensor * source, ggml_tensor * view, ggml_tensor * dy) {
    ViewGeometry g;
    for (int d = 0; d < 4; d++) {
        g.ne[d] = view->ne[d];
        g.nb[d] = view->nb[d];
        g.source_nb[d] = source->nb[d];
        g.order[d] = d;
    }
    g.offset = view->view_offs - (source->view_src != nullptr ? source->view_offs : 0);
    std::sort(std::begin(g.order), std::end(g.order), [&](int a, int b) { return g.source_nb[a] > g.source_nb[b]; });
    return node(view_dx_op, source->ne, {contiguous(dy)}, keep(g));
}

ggml_tensor * CpuOps::rows_dx(ggml_tensor * x, ggml_tensor * ids, ggml_tensor * dy) {
    return node(rows_dx_op, x->ne, {ids, contiguous(dy)});
}

ggml_tensor * CpuOps::repeat_dx(const ggml_tensor * operand, ggml_tensor * dy) {
    ggml_tensor * shape = ggml_new_tensor(ctx, GGML_TYPE_F32, GGML_MAX_DIMS, operand->ne);
    return ggml_repeat_back(ctx, contiguous(dy), shape);
}

ggml_tensor * CpuOps::zeros_like(const ggml_tensor * t) {
    return node(zeros_op, t->ne, {});
}

}  // namespace ggtune
