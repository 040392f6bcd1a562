// GATED_LINEAR_ATTN: k, v, q, g, state. RWKV_WKV6: k, v, r, u, w, state. RWKV_WKV7: r, w, k, v, a, b, state.
#include "kernels/wkv.h"

#include "ops/cpu/scan.h"
#include "ops/recurrent.h"

namespace ggtune {

namespace {

using kernels::WkvKind;

// Where the operands of the kernels are among ggml's.
struct Places {
    int r, k, v, w, a, b, u, state;  // -1: none
};

template <WkvKind kind>
constexpr Places kPlaces = kind == WkvKind::gated   ? Places{2, 0, 1, 3, -1, -1, -1, 4}
                           : kind == WkvKind::rwkv6 ? Places{2, 0, 1, 4, -1, -1, 3, 5}
                                                    : Places{0, 2, 3, 1, 4, 5, -1, 6};

// k ne = [dim, n_heads, T of all sequences], the states ne[1] = n_sequences
template <WkvKind kind>
kernels::WkvShape shape_of(ggml_tensor * const * src, const ScanParams & params) {
    const ggml_tensor *k = src[kPlaces<kind>.k], *state = src[kPlaces<kind>.state];
    const int64_t n_sequences = state->ne[1];
    return {kind, k->ne[2] / n_sequences, n_sequences, k->ne[1], k->ne[0], params.scale};
}

template <WkvKind kind>
kernels::WkvOperands operands_of(ggml_tensor * const * src) {
    const auto at = [src](int place) -> const float * { return place < 0 ? nullptr : floats(src[place]); };
    const Places & p = kPlaces<kind>;
    return {at(p.r), at(p.k), at(p.v), at(p.w), at(p.a), at(p.b), at(p.u), at(p.state)};
}

template <WkvKind kind>
const CpuScan & scan_of() {
    return kind == WkvKind::gated ? gated_scan : kind == WkvKind::rwkv6 ? rwkv6_scan : rwkv7_scan;
}

// of rwkv7 alone
template <WkvKind kind>
float * removed_values(ggml_tensor * y, ggml_tensor * const * src) {
    return kind == WkvKind::rwkv7 ? kept_by(y, ggml_nelements(src[0]), ggml_nelements(src[kPlaces<kind>.state]))
                                  : nullptr;
}

template <WkvKind kind>
void run(ggml_tensor * y, int ith, int nth, void * params) {
    kernels::wkv_forward(shape_of<kind>(y->src, *static_cast<ScanParams *>(params)), operands_of<kind>(y->src),
                         floats(y), floats(y) + ggml_nelements(y->src[0]), removed_values<kind>(y, y->src), ith, nth);
}

template <WkvKind kind>
void run_dx(ggml_tensor * dx, int ith, int nth, void * userdata) {
    const auto & params = *static_cast<ScanParams *>(userdata);
    const std::vector<float *> d = gradient_parts(scan_of<kind>(), dx, params);
    const auto at = [&d](int place) { return place < 0 ? nullptr : d[place]; };
    const Places & p = kPlaces<kind>;
    const float * dy = floats(dx->src[p.state + 1]);
    kernels::wkv_backward(shape_of<kind>(dx->src, params), operands_of<kind>(dx->src), dy,
                          dy + ggml_nelements(dx->src[0]), removed_values<kind>(dx->src[p.state + 2], dx->src),
                          {at(p.r), at(p.k), at(p.v), at(p.w), at(p.a), at(p.b), at(p.u), at(p.state)}, ith, nth);
}

template <ggml_op op>
void rule(const BackwardStep & s) {
    add_scan_gradients(s, op);
}

template <WkvKind kind>
std::vector<ScanPart> parts(ggml_tensor * const * src) {
    std::vector<ScanPart> list;
    for (int i = 0; i <= kPlaces<kind>.state; i++) {
        list.push_back(like(src[i]));
    }
    if constexpr (kind == WkvKind::rwkv6) {
        const int64_t n_heads = src[0]->ne[1], n_sequences = src[kPlaces<kind>.state]->ne[1];
        list[kPlaces<kind>.u] = {{src[0]->ne[0], n_heads, n_sequences, 1}, {src[0]->ne[0], n_heads, 1, 1}};
    }
    return list;
}

}  // namespace

const CpuScan gated_scan = {5,
                            4,
                            {{"gated_linear_attention", rule<GGML_OP_GATED_LINEAR_ATTN>}, run<WkvKind::gated>},
                            {{"gated_linear_attention_dx"}, run_dx<WkvKind::gated>},
                            false,
                            parts<WkvKind::gated>};
const CpuScan rwkv6_scan = {6,
                            5,
                            {{"rwkv6", rule<GGML_OP_RWKV_WKV6>}, run<WkvKind::rwkv6>},
                            {{"rwkv6_dx"}, run_dx<WkvKind::rwkv6>},
                            false,
                            parts<WkvKind::rwkv6>};
const CpuScan rwkv7_scan = {7,
                            6,
                            {{"rwkv7", rule<GGML_OP_RWKV_WKV7>}, run<WkvKind::rwkv7>},
                            {{"rwkv7_dx"}, run_dx<WkvKind::rwkv7>},
                            true,
                            parts<WkvKind::rwkv7>};

}  // namespace ggtune
