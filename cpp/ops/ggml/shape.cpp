// Gradients of what moves elements: views, rows.
#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <optional>

#include "base/error.h"
#include "ops/ggml/ggml_ops.h"

namespace ggtune {

namespace {

using Index = std::array<int64_t, GGML_MAX_DIMS>;

// The element of t at a distance of `bytes` from its first one.
Index index_at(const ggml_tensor * t, int64_t bytes) {
    std::array<int, GGML_MAX_DIMS> order;
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [t](int a, int b) { return t->nb[a] > t->nb[b]; });
    Index index = {};
    for (const int d : order) {
        if (t->ne[d] > 1) {
            index[d] = bytes / static_cast<int64_t>(t->nb[d]);
            bytes %= static_cast<int64_t>(t->nb[d]);
        }
    }
    return index;
}

// Its place in a contiguous tensor of the shape of t, elements.
int64_t place_of(const ggml_tensor * t, const Index & index) {
    int64_t place = 0;
    for (int d = GGML_MAX_DIMS - 1; d >= 0; d--) {
        place = place * t->ne[d] + index[d];
    }
    return place;
}

int64_t offset_in(const ggml_tensor * source, const ggml_tensor * view) {
    return static_cast<int64_t>(view->view_offs - (source->view_src != nullptr ? source->view_offs : 0));
}

// Where the elements of a view lie in a contiguous tensor of its source's shape.
struct Window {
    int64_t offset;  // elements
    std::array<int64_t, GGML_MAX_DIMS> strides;
};

// nullptr: not rows of adjacent elements at even distances, none of them twice
std::optional<Window> window_of(const ggml_tensor * source, const ggml_tensor * view) {
    const Index first = index_at(source, offset_in(source, view));
    Index last = first;
    Window window = {place_of(source, first), {}};
    for (int d = 0; d < GGML_MAX_DIMS; d++) {
        const Index step = index_at(source, static_cast<int64_t>(view->nb[d]));
        for (int e = 0; view->ne[d] > 1 && e < GGML_MAX_DIMS; e++) {
            last[e] += (view->ne[d] - 1) * step[e];
        }
        window.strides[d] = place_of(source, step);
    }
    const auto leaves = [&](int e) { return last[e] >= source->ne[e]; };
    if (!ggml_is_contiguous(source) && (leaves(0) || leaves(1) || leaves(2) || leaves(3))) {
        return std::nullopt;
    }
    std::array<int, GGML_MAX_DIMS> order;
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int a, int b) { return window.strides[a] < window.strides[b]; });
    int64_t reach = 0;  // of the dimensions so far
    for (const int d : order) {
        if (view->ne[d] > 1 && window.strides[d] <= reach) {
            return std::nullopt;
        }
        reach += (view->ne[d] - 1) * window.strides[d];
    }
    return view->ne[0] == 1 || window.strides[0] == 1 ? std::optional(window) : std::nullopt;
}

// Of each element of a view, in order, the place in a contiguous tensor of its source's shape.
std::vector<int32_t> places_of(const ggml_tensor * source, const ggml_tensor * view) {
    std::vector<int32_t> places;
    places.reserve(ggml_nelements(view));
    for (int64_t i3 = 0; i3 < view->ne[3]; i3++) {
        for (int64_t i2 = 0; i2 < view->ne[2]; i2++) {
            for (int64_t i1 = 0; i1 < view->ne[1]; i1++) {
                for (int64_t i0 = 0; i0 < view->ne[0]; i0++) {
                    const auto bytes =
                        static_cast<int64_t>(i0 * view->nb[0] + i1 * view->nb[1] + i2 * view->nb[2] + i3 * view->nb[3]);
                    const Index index = index_at(source, offset_in(source, view) + bytes);
                    places.push_back(static_cast<int32_t>(place_of(source, index)));
                }
            }
        }
    }
    return places;
}

bool has_duplicates(std::vector<int32_t> values) {
    std::sort(values.begin(), values.end());
    return std::adjacent_find(values.begin(), values.end()) != values.end();
}

}  // namespace

// Repetitions of a dimension lie one after another. Metal has no REPEAT_BACK.
ggml_tensor * GgmlOps::repeat_dx(const ggml_tensor * operand, ggml_tensor * dy) {
    ggml_tensor * sum = contiguous(dy);
    for (int d = 0; d < GGML_MAX_DIMS; d++) {
        const int64_t n_repeats = sum->ne[d] / operand->ne[d];
        if (n_repeats == 1) {
            continue;
        }
        Index ne;
        std::copy(std::begin(sum->ne), std::end(sum->ne), ne.begin());
        ne[d] = operand->ne[d];
        const int64_t n_each = std::accumulate(ne.begin(), ne.begin() + d + 1, int64_t{1}, std::multiplies<>());
        ggml_tensor * one_by_one =
            ggml_reshape_3d(ctx, sum, n_each, n_repeats, ggml_nelements(sum) / n_each / n_repeats);
        sum = ggml_sum_rows(ctx, ggml_cont(ctx, ggml_permute(ctx, one_by_one, 1, 0, 2, 3)));
        sum = ggml_reshape_4d(ctx, sum, ne[0], ne[1], ne[2], ne[3]);
    }
    return sum;
}

ggml_tensor * GgmlOps::zeros_like(const ggml_tensor * t) {
    ggml_tensor * zeros = ggml_fill(ctx, ggml_new_tensor(ctx, GGML_TYPE_F32, GGML_MAX_DIMS, t->ne), 0.0f);
    zeros->src[0] = zeros;  // which gives its shape alone: another one would be given memory, and be moved to devices
    return zeros;
}

ggml_tensor * GgmlOps::zeros_after(ggml_tensor * x, const ggml_tensor * shape) {
    ggml_tensor * zeros = zeros_like(shape);
    zeros->src[GGML_MAX_SRC - 1] = x;
    return zeros;
}

ggml_tensor * GgmlOps::added_rows(int64_t n_rows, ggml_tensor * ids, ggml_tensor * dy, bool adds) {
    ggml_tensor * shape = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, dy->ne[0], n_rows);
    return adds ? ggml_get_rows_back(ctx, dy, ids, shape) : ggml_set_rows(ctx, zeros_after(dy, shape), dy, ids);
}

ggml_tensor * GgmlOps::rows_dx(ggml_tensor * x, ggml_tensor * ids, ggml_tensor * dy) {
    dy = contiguous(dy);
    ids = contiguous(ids);
    const int64_t n_matrices = x->ne[2] * x->ne[3];
    if (n_matrices == 1) {
        return added_rows(x->ne[1], ids, dy, traits_.adds_rows);
    }
    // Every row that was taken in a matrix of its own, where no other can be; then their sum.
    const int64_t n = x->ne[0], n_rows = x->ne[1], n_taken = dy->ne[1];
    ggml_tensor * shape = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, n, n_rows, n_taken * n_matrices);
    ggml_tensor * apart = ggml_set_rows(ctx, zeros_like(shape), ggml_reshape_3d(ctx, dy, n, 1, n_taken * n_matrices),
                                        ggml_reshape_2d(ctx, ids, 1, n_taken * n_matrices));
    ggml_tensor * sum_shape = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, n * n_rows, 1, n_matrices);
    ggml_tensor * sum = repeat_dx(sum_shape, ggml_reshape_3d(ctx, apart, n * n_rows, n_taken, n_matrices));
    return ggml_reshape_4d(ctx, sum, n, n_rows, x->ne[2], x->ne[3]);
}

ggml_tensor * GgmlOps::view_dx(ggml_tensor * source, ggml_tensor * view, ggml_tensor * dy) {
    constexpr int64_t kMaxSetBytes = 1 << 30;  // SET keeps strides and offset as 32-bit integers
    dy = contiguous(dy);
    const int64_t n = ggml_nelements(source);
    const auto bytes = [](int64_t n_elements) { return n_elements * static_cast<int64_t>(sizeof(float)); };
    const std::optional<Window> window = window_of(source, view);
    if (window && bytes(n) <= kMaxSetBytes && n <= traits_.max_flat_elements) {
        // Vulkan takes places apart from the last stride on: so strides have to grow, those of nothing, too
        Index strides, order;
        for (int d = 0; d < GGML_MAX_DIMS; d++) {
            strides[d] = view->ne[d] > 1 || d == 0 ? window->strides[d] : n;
        }
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin() + 1, order.end(), [&](int64_t a, int64_t b) { return strides[a] < strides[b]; });
        if (!std::is_sorted(order.begin(), order.end())) {
            std::array<int, GGML_MAX_DIMS> place;
            for (int d = 0; d < GGML_MAX_DIMS; d++) {
                place[order[d]] = d;
            }
            dy = contiguous(ggml_permute(ctx, dy, place[0], place[1], place[2], place[3]));
        }
        return ggml_set_inplace(ctx, zeros_after(dy, source), dy, bytes(strides[order[1]]), bytes(strides[order[2]]),
                                bytes(strides[order[3]]), bytes(window->offset));
    }
    if (n > INT32_MAX) {
        throw Error("a view of a tensor that is too large to be differentiated: " + std::string(view->name));
    }
    const std::vector<int32_t> places = places_of(source, view);
    const bool adds = has_duplicates(places);
    if (adds && !traits_.adds_rows) {
        throw Error("no gradient of a view that shows an element twice: " + std::string(view->name));
    }
    const int64_t ne[4] = {ggml_nelements(view), 1, 1, 1};
    ggml_tensor * ids = host_input(GGML_TYPE_I32, ne, places.data());
    ggml_tensor * elements = added_rows(n, ids, ggml_reshape_2d(ctx, dy, 1, ne[0]), adds);
    return ggml_reshape_4d(ctx, elements, source->ne[0], source->ne[1], source->ne[2], source->ne[3]);
}

}  // namespace ggtune
