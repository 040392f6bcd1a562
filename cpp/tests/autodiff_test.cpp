// Every rule of the op table, with the nodes of each implementation of the makers, against central finite differences
// of ggml's forward op (the implementation's own where it replaces ggml's).
#include "engine/autodiff.h"

#include <ggml-cpp.h>

#include <algorithm>
#include <functional>
#include <random>
#include <tuple>

#include "base/error.h"
#include "check.h"
#include "engine/executor.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/ggml/ggml_ops.h"

namespace {

using namespace ggtune;
using namespace ggtune::test;

// What a test case builds its graph from. Inputs hold random numbers; those that `make` marks trainable get gradients.
struct Builder {
    Ops & ops;
    ggml_context * ctx;  // for nodes
    std::vector<ggml_tensor *> inputs;
    std::vector<ggml_tensor *> trainable;
    std::vector<ggml_tensor *> nodes;
    std::vector<std::pair<ggml_tensor *, std::vector<int32_t>>> given;  // inputs that are not random
    ggml_context * input_ctx;
    bool replaces = true;

    Builder(Ops & ops, ggml_context * inputs_ctx) : ops(ops), ctx(ops.ctx), input_ctx(inputs_ctx) {}

    ggml_tensor * input(bool train, std::vector<int64_t> ne, ggml_type type = GGML_TYPE_F32) {
        ggml_tensor * t = ggml_new_tensor(input_ctx, type, ne.size(), ne.data());
        inputs.push_back(t);
        if (train) {
            trainable.push_back(t);
        }
        return t;
    }
    // I32, ne = [values]
    ggml_tensor * integers(std::vector<int32_t> values) {
        ggml_tensor * t = input(false, {static_cast<int64_t>(values.size())}, GGML_TYPE_I32);
        given.emplace_back(t, std::move(values));
        return t;
    }
    ggml_tensor * node(ggml_tensor * t) {
        nodes.push_back(t);
        return t;
    }
    // As the training graph does: the implementation's node in place of ggml's, with what it is made of.
    ggml_tensor * own(ggml_tensor * ggml_node) {
        ggml_tensor * replacement = replaces ? ops.replacement(ggml_node) : nullptr;
        return all(replacement != nullptr ? replacement : ggml_node);
    }
    // t and all nodes in front of it
    ggml_tensor * all(ggml_tensor * t) {
        if (t->op != GGML_OP_NONE && std::find(nodes.begin(), nodes.end(), t) == nodes.end()) {
            for (ggml_tensor * src : t->src) {
                if (src != nullptr && src != t) {
                    all(src);
                }
            }
            nodes.push_back(t);
        }
        return t;
    }
};

struct Implementation {
    std::string name;
    std::function<std::unique_ptr<Ops>(ggml_context *)> make;
    bool adds_elements = true;  // has a gradient of what shows an element twice
    bool scans = false;         // has gradients of scans over the tokens of a sequence
};

std::vector<Implementation> implementations() {
    BackendTraits small;
    small.max_tile_bytes = 3 * 12 * sizeof(float);  // several tiles for each weight
    BackendTraits no_sums;                          // of rows, as on Metal
    no_sums.adds_rows = false;
    // as on CUDA and Vulkan, but for what the CPU's own nodes can't do in place or round
    BackendTraits cuda = small;
    cuda.has_fast_out_prod = true;
    BackendTraits vulkan = small;
    vulkan.wants_contiguous_operands = true;
    vulkan.max_flat_elements = 20;
    vulkan.exact = true;
    return {
        {"cpu", [](ggml_context * ctx) { return std::make_unique<CpuOps>(ctx); }, true, true},
        {"ggml", [](ggml_context * ctx) { return std::make_unique<GgmlOps>(ctx); }},
        {"ggml, small tiles", [small](ggml_context * ctx) { return std::make_unique<GgmlOps>(ctx, small); }},
        {"ggml, no sums of rows", [no_sums](ggml_context * ctx) { return std::make_unique<GgmlOps>(ctx, no_sums); },
         false},
        {"ggml, CUDA", [cuda](ggml_context * ctx) { return std::make_unique<GgmlOps>(ctx, cuda); }},
        {"ggml, Vulkan", [vulkan](ggml_context * ctx) { return std::make_unique<GgmlOps>(ctx, vulkan); }},
    };
}

void fill_host_inputs(const Ops & ops) {
    for (const Ops::HostInput & input : ops.host_inputs()) {
        if (input.tensor->buffer != nullptr) {
            ggml_backend_tensor_set(input.tensor, input.bytes.data(), 0, input.bytes.size());
        }
    }
}

struct Case {
    std::string what;
    double tolerance;  // relative in norm; float32 forward passes limit what differences can show
    std::function<ggml_tensor *(Builder &)> make;
    float h = 4e-3f;             // step of the differences
    bool adds_elements = false;  // an element goes into several of the result
    bool scans = false;          // over the tokens of a sequence
    bool like_ggml = false;      // nodes in place of ggml's differ from them by rounding alone
};

void fill(ggml_tensor * t, std::mt19937 & rng) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < ggml_nelements(t); i++) {
        if (t->type == GGML_TYPE_I32) {
            static_cast<int32_t *>(t->data)[i] = static_cast<int32_t>((i * 2) % 5);
        } else if (t->type == GGML_TYPE_F16) {
            static_cast<ggml_fp16_t *>(t->data)[i] = ggml_fp32_to_fp16(normal(rng));
        } else {
            static_cast<float *>(t->data)[i] = normal(rng);
        }
    }
}

void run(const Case & c, const Implementation & implementation) {
    const std::string name = implementation.name + ": " + c.what;
    const ggml_context_ptr nodes_ctx(ggml_init({1 << 22, nullptr, true}));
    const ggml_context_ptr input_ctx(ggml_init({1 << 16, nullptr, true}));
    const ggml_context_ptr result_ctx(ggml_init({1 << 16, nullptr, true}));
    const std::unique_ptr<Ops> ops = implementation.make(nodes_ctx.get());
    Builder b(*ops, input_ctx.get());
    ggml_tensor * y = c.make(b);
    const ggml_backend_buffer_ptr input_buffer(
        ggml_backend_alloc_ctx_tensors_from_buft(input_ctx.get(), ggml_backend_cpu_buffer_type()));
    std::mt19937 rng(1);
    for (ggml_tensor * t : b.inputs) {
        fill(t, rng);
    }
    for (const auto & [t, values] : b.given) {
        std::copy(values.begin(), values.end(), static_cast<int32_t *>(t->data));
    }
    ggml_tensor * dy = ggml_new_tensor(result_ctx.get(), GGML_TYPE_F32, GGML_MAX_DIMS, y->ne);
    std::vector<ggml_tensor *> accumulators;
    for (ggml_tensor * t : b.trainable) {
        accumulators.push_back(ggml_dup_tensor(result_ctx.get(), t));
    }
    const ggml_backend_buffer_ptr result_buffer(
        ggml_backend_alloc_ctx_tensors_from_buft(result_ctx.get(), ggml_backend_cpu_buffer_type()));
    fill(dy, rng);
    for (ggml_tensor * t : accumulators) {
        // gradients are added: what was there before must stay
        std::fill_n(static_cast<float *>(t->data), ggml_nelements(t), 0.25f);
    }

    Executor executor(2);
    Implementations all(*ops);
    Autodiff ad(all);
    for (size_t i = 0; i < b.trainable.size(); i++) {
        ad.set_trainable(b.trainable[i], accumulators[i]);
    }
    ad.trace(b.nodes);
    check(name + ": rules", static_cast<double>(Autodiff::missing_rules(ad.gradient_path(b.nodes)).size()), 0);
    ad.add(y, dy);
    ad.backward(b.nodes);
    ggml_cgraph * backward = ggml_new_graph_custom(nodes_ctx.get(), 512, false);
    ggml_build_forward_expand(backward, y);
    for (ggml_tensor * t : ad.take_results()) {
        ggml_build_forward_expand(backward, t);
    }
    executor.allocate(backward);
    fill_host_inputs(*ops);
    executor.compute(backward, 0, ggml_graph_n_nodes(backward));

    // a graph of the forward pass alone, on memory of its own
    ggml_cgraph * forward = ggml_new_graph_custom(nodes_ctx.get(), 512, false);
    for (int i = 0; i < ggml_graph_n_nodes(backward); i++) {
        ggml_tensor * t = ggml_graph_node(backward, i);
        t->data = nullptr;
        t->buffer = nullptr;
    }
    for (ggml_tensor * t = ggml_get_first_tensor(nodes_ctx.get()); t != nullptr;
         t = ggml_get_next_tensor(nodes_ctx.get(), t)) {
        t->data = nullptr;
        t->buffer = nullptr;
    }
    ggml_set_output(y);
    ggml_build_forward_expand(forward, y);
    Executor forward_executor(1);
    forward_executor.allocate(forward);
    const auto objective = [&] {
        fill_host_inputs(*ops);  // a result may take the place of an operand that nothing else reads
        forward_executor.compute(forward, 0, ggml_graph_n_nodes(forward));
        double sum = 0;
        for (int64_t i3 = 0; i3 < y->ne[3]; i3++) {
            for (int64_t i2 = 0; i2 < y->ne[2]; i2++) {
                for (int64_t i1 = 0; i1 < y->ne[1]; i1++) {
                    for (int64_t i0 = 0; i0 < y->ne[0]; i0++) {
                        const auto at = [&](const ggml_tensor * t) {
                            const char * p = static_cast<const char *>(t->data);
                            return *reinterpret_cast<const float *>(p + i0 * t->nb[0] + i1 * t->nb[1] + i2 * t->nb[2] +
                                                                    i3 * t->nb[3]);
                        };
                        sum += static_cast<double>(at(y)) * at(dy);
                    }
                }
            }
        }
        return sum;
    };
    for (size_t k = 0; k < b.trainable.size(); k++) {
        float * x = static_cast<float *>(b.trainable[k]->data);
        const float * found = static_cast<const float *>(accumulators[k]->data);
        std::vector<double> gradient, differences;
        for (int64_t i = 0; i < ggml_nelements(b.trainable[k]); i++) {
            const float kept = x[i];
            x[i] = kept + c.h;
            const double up = objective();
            const double x_up = x[i];
            x[i] = kept - c.h;
            const double down = objective();
            const double x_down = x[i];
            x[i] = kept;
            differences.push_back((up - down) / (x_up - x_down));
            gradient.push_back(found[i] - 0.25);
        }
        check(name + ": input " + std::to_string(k), relative_difference(gradient, differences), c.tolerance);
    }
}

// What the implementation puts in place of ggml's nodes computes the same.
void compare_with_ggml(const Case & c, const Implementation & implementation) {
    std::vector<double> results[2];
    for (const bool replaces : {false, true}) {
        const ggml_context_ptr nodes_ctx(ggml_init({1 << 22, nullptr, true}));
        const ggml_context_ptr input_ctx(ggml_init({1 << 16, nullptr, true}));
        const std::unique_ptr<Ops> ops = implementation.make(nodes_ctx.get());
        Builder b(*ops, input_ctx.get());
        b.replaces = replaces;
        ggml_tensor * y = ggml_cont(b.ctx, c.make(b));
        const ggml_backend_buffer_ptr buffer(
            ggml_backend_alloc_ctx_tensors_from_buft(input_ctx.get(), ggml_backend_cpu_buffer_type()));
        std::mt19937 rng(1);
        for (ggml_tensor * t : b.inputs) {
            fill(t, rng);
        }
        ggml_cgraph * graph = ggml_new_graph_custom(nodes_ctx.get(), 512, false);
        ggml_build_forward_expand(graph, y);
        Executor executor(2);
        executor.allocate(graph);
        fill_host_inputs(*ops);
        executor.compute(graph, 0, ggml_graph_n_nodes(graph));
        const float * values = static_cast<const float *>(y->data);
        results[replaces].assign(values, values + ggml_nelements(y));
    }
    check(implementation.name + ": " + c.what + ": as ggml's", relative_difference(results[1], results[0]), 1e-5);
}

ggml_tensor * own_glu(Builder & b, ggml_glu_op op, bool fused, bool swapped) {
    ggml_tensor * gate = b.input(true, {fused ? 22 : 11, 5});
    ggml_tensor * up = fused ? nullptr : b.input(true, {11, 5});
    return b.own(fused ? ggml_glu(b.ctx, gate, op, swapped) : ggml_glu_split(b.ctx, gate, up, op));
}

void expect_refusal(const Case & c, const Implementation & implementation) {
    bool refused = false;
    try {
        run(c, implementation);
    } catch (const Error &) {
        refused = true;
    }
    check(implementation.name + ": " + c.what + " is refused", refused ? 0 : 1, 0);
}

// Operands between -1 and 1, and between `low` and `high`.
ggml_tensor * between(Builder & b, float low, float high, ggml_tensor * x) {
    return b.node(ggml_scale_bias(b.ctx, b.node(ggml_tanh(b.ctx, x)), (high - low) / 2, (high + low) / 2));
}

ggml_tensor * unit(Builder & b, ggml_tensor * x) {
    return b.node(ggml_rms_norm(b.ctx, b.node(ggml_scale(b.ctx, x, 1.0f)), 1e-3f));
}

// The first n elements of what a node computes; ours may hold more than ggml's.
ggml_tensor * first_of(Builder & b, ggml_tensor * y, int64_t n) {
    return b.node(ggml_cont(b.ctx, b.node(ggml_view_1d(b.ctx, y, n, 0))));
}

struct DeltaNetCase {
    int64_t dim, n_heads_qk, n_heads, n_tokens, n_sequences;
    bool vector_gate;
    bool last_state;  // read, too
    bool own;
};

ggml_tensor * delta_net(Builder & b, const DeltaNetCase & c) {
    const auto unit_vectors = [&](int64_t n_heads) {
        ggml_tensor * x = unit(b, b.input(true, {c.dim, n_heads, c.n_tokens, c.n_sequences}));
        return b.node(ggml_scale(b.ctx, x, 1.0f / std::sqrt(static_cast<float>(c.dim))));
    };
    ggml_tensor * q = unit_vectors(c.n_heads_qk);
    ggml_tensor * k = unit_vectors(c.n_heads_qk);
    ggml_tensor * v = b.input(true, {c.dim, c.n_heads, c.n_tokens, c.n_sequences});
    ggml_tensor * g =
        between(b, -0.7f, 0.0f, b.input(true, {c.vector_gate ? c.dim : 1, c.n_heads, c.n_tokens, c.n_sequences}));
    ggml_tensor * beta = between(b, 0.1f, 0.9f, b.input(true, {1, c.n_heads, c.n_tokens, c.n_sequences}));
    ggml_tensor * state = b.input(true, {c.dim, c.dim, c.n_heads, c.n_sequences});
    ggml_tensor * scan = ggml_gated_delta_net(b.ctx, q, k, v, g, beta, state, 1);
    const int64_t n = c.last_state ? ggml_nelements(scan) : ggml_nelements(v);
    return first_of(b, c.own ? b.own(scan) : b.node(scan), n);
}

struct SsmCase {
    int64_t n_state, head_dim, n_heads, n_groups, n_tokens, n_sequences;
    bool wide_a, own;
};

ggml_tensor * ssm_scan(Builder & b, const SsmCase & c) {
    ggml_tensor * states = b.input(true, {c.n_state, c.head_dim, c.n_heads, 5});
    ggml_tensor * x = b.input(true, {c.head_dim, c.n_heads, c.n_tokens, c.n_sequences});
    ggml_tensor * dt = b.input(true, {c.n_heads, c.n_tokens, c.n_sequences});
    ggml_tensor * a = between(b, -0.9f, -0.1f, b.input(true, {c.wide_a ? c.n_state : 1, c.n_heads}));
    // as parts of the rows of one tensor
    ggml_tensor * both = b.input(true, {2 * c.n_state * c.n_groups, c.n_tokens, c.n_sequences});
    const auto half = [&](int64_t i) {
        return b.node(ggml_view_4d(b.ctx, both, c.n_state, c.n_groups, c.n_tokens, c.n_sequences,
                                   c.n_state * sizeof(float), both->nb[1], both->nb[2],
                                   i * c.n_state * c.n_groups * sizeof(float)));
    };
    ggml_tensor * ids = b.input(false, {c.n_sequences}, GGML_TYPE_I32);
    ggml_tensor * scan = ggml_ssm_scan(b.ctx, states, x, dt, a, half(0), half(1), ids, 1);
    return c.own ? b.own(scan) : b.node(scan);
}

struct WkvCase {
    ggml_op op;
    int64_t dim, n_heads, n_tokens, n_sequences;
    bool own;
};

ggml_tensor * wkv(Builder & b, const WkvCase & c) {
    const auto input = [&] { return b.input(true, {c.dim, c.n_heads, c.n_tokens * c.n_sequences}); };
    ggml_tensor *r = input(), *v = input();
    ggml_tensor * k = b.node(ggml_scale(b.ctx, input(), 0.5f));
    ggml_tensor * w = between(b, 0.4f, 0.95f, input());
    ggml_tensor * state = b.input(true, {c.dim * c.dim * c.n_heads, c.n_sequences});
    ggml_tensor * scan = nullptr;
    if (c.op == GGML_OP_GATED_LINEAR_ATTN) {
        scan = ggml_gated_linear_attn(b.ctx, k, v, r, w, state, 0.7f);
    } else if (c.op == GGML_OP_RWKV_WKV6) {
        scan = ggml_rwkv_wkv6(b.ctx, k, v, r, b.input(true, {c.dim, c.n_heads}), w, state);
    } else {
        ggml_tensor *to = b.node(ggml_scale(b.ctx, unit(b, input()), 0.2f)), *from = unit(b, input());
        scan = ggml_rwkv_wkv7(b.ctx, r, w, k, v, from, to, state);
    }
    const int64_t n = ggml_nelements(scan);
    return first_of(b, c.own ? b.own(scan) : b.node(scan), n);
}

void add_scans(std::vector<Case> & list) {
    const auto add = [&](std::string name, double tolerance, std::function<ggml_tensor *(Builder &)> make) {
        list.push_back({std::move(name), tolerance, std::move(make)});
        list.back().scans = true;
        list.back().like_ggml = true;
    };
    const std::pair<const char *, DeltaNetCase> delta_nets[] = {
        {"gated_delta_net", {8, 3, 3, 5, 2, false, false, false}},
        {"gated_delta_net, shared queries and keys", {6, 2, 4, 4, 2, false, true, false}},
        {"gated_delta_net, vector gate", {6, 2, 4, 4, 2, true, true, false}},
        {"gated_delta_net, ggtune's", {6, 2, 4, 4, 2, false, true, true}},
        {"gated_delta_net, several blocks", {5, 1, 1, 70, 2, false, true, true}},
        {"gated_delta_net, vector gate, several blocks", {5, 1, 1, 70, 1, true, true, true}},
    };
    for (const auto & [name, c] : delta_nets) {
        add(name, 2e-3, [c = c](Builder & b) { return delta_net(b, c); });
    }
    const std::pair<const char *, SsmCase> ssm_scans[] = {
        {"ssm_scan", {6, 3, 4, 2, 5, 2, false, false}},
        {"ssm_scan, ggtune's", {6, 3, 4, 2, 5, 2, false, true}},
        {"ssm_scan, several blocks", {5, 2, 3, 1, 70, 1, false, true}},
        {"ssm_scan, a for each column", {6, 1, 4, 2, 5, 2, true, false}},
        {"ssm_scan, a for each column, ggtune's", {6, 2, 4, 2, 5, 2, true, true}},
        {"ssm_scan, a for each column, several blocks", {5, 1, 3, 1, 70, 1, true, true}},
    };
    for (const auto & [name, c] : ssm_scans) {
        add(name, 2e-3, [c = c](Builder & b) { return ssm_scan(b, c); });
    }
    const std::pair<const char *, ggml_op> wkvs[] = {{"gated_linear_attn", GGML_OP_GATED_LINEAR_ATTN},
                                                     {"rwkv_wkv6", GGML_OP_RWKV_WKV6},
                                                     {"rwkv_wkv7", GGML_OP_RWKV_WKV7}};
    for (const auto & [name, op] : wkvs) {
        // ggml's RWKV_WKV7 computes heads of whole vectors alone
        const bool whole_vectors = op == GGML_OP_RWKV_WKV7;
        const WkvCase c = whole_vectors ? WkvCase{op, 64, 1, 2, 2, false} : WkvCase{op, 6, 2, 5, 2, false};
        add(name, 2e-3, [c = c](Builder & b) { return wkv(b, c); });
        add(std::string(name) + ", ggtune's", 2e-3, [c = c](Builder & b) {
            WkvCase own = c;
            own.own = true;
            return wkv(b, own);
        });
        add(std::string(name) + ", several blocks", 2e-3,
            [op = op](Builder & b) { return wkv(b, {op, 5, 2, 70, 1, true}); });
        list.back().like_ggml = !whole_vectors;
    }
}

std::vector<Case> cases() {
    std::vector<Case> list;
    const auto add = [&](std::string name, double tolerance, std::function<ggml_tensor *(Builder &)> make,
                         float h = 4e-3f) { list.push_back({std::move(name), tolerance, std::move(make), h}); };
    constexpr double kLinear = 2e-4;  // exact but for rounding
    constexpr double kCurved = 1e-3;

    add("add", kLinear,
        [](Builder & b) { return b.node(ggml_add(b.ctx, b.input(true, {8, 3}), b.input(true, {8, 3}))); });
    add("add, repeated", kLinear,
        [](Builder & b) { return b.node(ggml_add(b.ctx, b.input(true, {8, 3, 2}), b.input(true, {8}))); });
    add("add to itself", kLinear, [](Builder & b) {
        ggml_tensor * x = b.node(ggml_scale(b.ctx, b.input(true, {8, 3}), 1.0f));
        return b.node(ggml_add(b.ctx, x, x));
    });
    add("sub", kLinear, [](Builder & b) { return b.node(ggml_sub(b.ctx, b.input(true, {8, 3}), b.input(true, {8}))); });
    add("mul", kCurved,
        [](Builder & b) { return b.node(ggml_mul(b.ctx, b.input(true, {8, 3}), b.input(true, {8, 3}))); });
    add("mul, repeated", kCurved,
        [](Builder & b) { return b.node(ggml_mul(b.ctx, b.input(true, {8, 3, 2}), b.input(true, {8, 1, 2}))); });
    add("div", 5e-3, [](Builder & b) {
        ggml_tensor * below = b.node(ggml_scale_bias(b.ctx, b.input(true, {8, 3}), 0.1f, 2.0f));
        return b.node(ggml_div(b.ctx, b.input(true, {8, 3}), below));
    });
    add("add_id", kLinear, [](Builder & b) {
        ggml_tensor * ids = b.input(false, {2, 4}, GGML_TYPE_I32);
        return b.node(ggml_add_id(b.ctx, b.input(true, {8, 2, 4}), b.input(false, {8, 5}), ids));
    });
    add("sqrt", kCurved, [](Builder & b) {
        ggml_tensor * x = b.node(ggml_scale_bias(b.ctx, b.input(true, {8, 3}), 0.1f, 2.0f));
        return b.node(ggml_sqrt(b.ctx, x));
    });
    add("scale", kLinear,
        [](Builder & b) { return b.node(ggml_scale_bias(b.ctx, b.input(true, {8, 3}), -1.7f, 0.3f)); });
    add("repeat", kLinear, [](Builder & b) {
        ggml_tensor * shape = ggml_new_tensor_3d(b.ctx, GGML_TYPE_F32, 8, 6, 2);
        return b.node(ggml_repeat(b.ctx, b.input(true, {8, 3}), shape));
    });
    add("repeat, all dimensions", kLinear, [](Builder & b) {
        ggml_tensor * shape = ggml_new_tensor_4d(b.ctx, GGML_TYPE_F32, 8, 6, 4, 6);
        return b.node(ggml_repeat(b.ctx, b.input(true, {4, 3, 2, 3}), shape));
    });
    add("mul_mat", kLinear,
        [](Builder & b) { return b.node(ggml_mul_mat(b.ctx, b.input(true, {12, 7}), b.input(true, {12, 5}))); });
    add("mul_mat, grouped", kLinear,
        [](Builder & b) { return b.node(ggml_mul_mat(b.ctx, b.input(true, {12, 7, 2}), b.input(true, {12, 5, 6}))); });
    add("mul_mat, permuted", kLinear, [](Builder & b) {
        ggml_tensor * w = b.node(ggml_permute(b.ctx, b.input(true, {6, 2, 7}), 0, 2, 1, 3));
        ggml_tensor * x = b.node(ggml_permute(b.ctx, b.input(true, {6, 4, 5}), 0, 2, 1, 3));
        return b.node(ggml_mul_mat(b.ctx, w, x));
    });
    add("mul_mat, one matrix for all", kLinear,
        [](Builder & b) { return b.node(ggml_mul_mat(b.ctx, b.input(true, {12, 7}), b.input(true, {12, 5, 2, 3}))); });
    add("mul_mat, grouped and stacked", kLinear, [](Builder & b) {
        return b.node(ggml_mul_mat(b.ctx, b.input(true, {12, 7, 2, 3}), b.input(true, {12, 5, 4, 3})));
    });
    add("mul_mat, frozen F32", kLinear,
        [](Builder & b) { return b.node(ggml_mul_mat(b.ctx, b.input(false, {12, 7}), b.input(true, {12, 5, 2}))); });
    // ggml rounds x to half precision: a wide step, which a linear function does not mind
    add(
        "mul_mat, frozen F16", 2e-3,
        [](Builder & b) {
            return b.node(ggml_mul_mat(b.ctx, b.input(false, {32, 7}, GGML_TYPE_F16), b.input(true, {32, 5})));
        },
        1.0f);
    add(
        "mul_mat, frozen stack of F16", 2e-3,
        [](Builder & b) {
            return b.node(
                ggml_mul_mat(b.ctx, b.input(false, {32, 7, 2, 3}, GGML_TYPE_F16), b.input(true, {32, 5, 4, 3})));
        },
        1.0f);
    add("mul_mat, ggtune's", kLinear, [](Builder & b) {
        ggml_tensor * w = b.input(true, {12, 7, 2});
        ggml_tensor * x = b.input(true, {12, 5, 4});
        return b.own(ggml_mul_mat(b.ctx, w, x));
    });
    // ids as fill() makes them: 0, 2, 4, 1, 3, 0, ...
    for (const bool own : {false, true}) {
        const std::string whose = own ? ", ggtune's" : "";
        const auto product = [own](Builder & b, ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids) {
            ggml_tensor * y = ggml_mul_mat_id(b.ctx, w, x, ids);
            return own ? b.own(y) : b.node(y);
        };
        add("mul_mat_id" + whose, kLinear, [product](Builder & b) {
            return product(b, b.input(true, {12, 7, 6}), b.input(true, {12, 2, 4}),
                           b.input(false, {2, 4}, GGML_TYPE_I32));
        });
        add("mul_mat_id, wide" + whose, kLinear, [product](Builder & b) {
            return product(b, b.input(true, {3, 11, 5}), b.input(true, {3, 2, 4}),
                           b.input(false, {2, 4}, GGML_TYPE_I32));
        });
        add("mul_mat_id, one x for all experts" + whose, kLinear, [product](Builder & b) {
            ggml_tensor * ids = b.input(false, {3, 6}, GGML_TYPE_I32);
            ggml_tensor * first = ggml_view_2d(b.ctx, ids, 2, 6, ids->nb[1], 0);
            return product(b, b.input(true, {12, 7, 5}), b.input(true, {12, 1, 6}), first);
        });
        add("mul_mat_id, frozen" + whose, kLinear, [product](Builder & b) {
            ggml_tensor * ids = b.input(false, {2, 6}, GGML_TYPE_I32);
            ggml_tensor * x = b.node(ggml_scale(b.ctx, b.input(true, {12, 1, 6}), 0.5f));
            ggml_tensor * up = product(b, b.input(false, {12, 7, 5}), x, ids);
            ggml_tensor * gate = product(b, b.input(false, {12, 7, 5}), x, ids);  // added to the gradient of x
            return product(b, b.input(false, {7, 12, 5}), b.node(ggml_add(b.ctx, up, gate)), ids);
        });
        add(
            "mul_mat_id, frozen F16" + whose, 2e-3,
            [product](Builder & b) {
                return product(b, b.input(false, {32, 7, 5}, GGML_TYPE_F16), b.input(true, {32, 2, 4}),
                               b.input(false, {2, 4}, GGML_TYPE_I32));
            },
            1.0f);
    }
    add("expert_lora_add", kLinear, [](Builder & b) {
        ggml_tensor * y = b.node(ggml_scale(b.ctx, b.input(true, {12, 2, 4}), 2.0f));
        ggml_tensor * ids = b.input(false, {2, 4}, GGML_TYPE_I32);
        return b.all(b.ops.expert_lora_add(y, b.input(true, {3, 12, 5}), b.input(true, {3, 2, 4}), ids, 0.7f));
    });
    for (const bool weighted : {true, false}) {
        add(weighted ? "sum of experts" : "sum of experts, no weights", kCurved, [weighted](Builder & b) {
            ggml_tensor * x = b.input(true, {12, 3, 5});
            ggml_tensor * weights = weighted ? b.input(true, {1, 3, 5}) : nullptr;
            if (b.ops.has_expert_sum()) {
                return b.all(b.ops.expert_sum(x, weights));
            }
            ggml_tensor * terms = weighted ? b.node(ggml_mul(b.ctx, x, weights)) : x;
            const auto term = [&](int k) {
                return b.node(ggml_view_2d(b.ctx, terms, 12, 5, terms->nb[2], k * terms->nb[1]));
            };
            ggml_tensor * two = b.node(ggml_add(b.ctx, term(0), term(1)));
            return b.node(ggml_add(b.ctx, two, term(2)));
        });
    }
    add("silu", kCurved, [](Builder & b) { return b.node(ggml_silu(b.ctx, b.input(true, {33, 5}))); });
    add("gelu", kCurved,
        [](Builder & b) { return b.own(ggml_unary(b.ctx, b.input(true, {33, 5}), GGML_UNARY_OP_GELU)); });
    add("gelu_erf", kCurved, [](Builder & b) { return b.node(ggml_gelu_erf(b.ctx, b.input(true, {33, 5}))); });
    add("gelu_quick", kCurved,
        [](Builder & b) { return b.own(ggml_unary(b.ctx, b.input(true, {33, 5}), GGML_UNARY_OP_GELU_QUICK)); });
    add("relu", 3e-2, [](Builder & b) { return b.node(ggml_relu(b.ctx, b.input(true, {33, 5}))); });  // a kink at 0
    add("tanh", kCurved, [](Builder & b) { return b.node(ggml_tanh(b.ctx, b.input(true, {33, 5}))); });
    add("sigmoid", kCurved, [](Builder & b) { return b.node(ggml_sigmoid(b.ctx, b.input(true, {33, 5}))); });
    add("exp", kCurved, [](Builder & b) { return b.node(ggml_exp(b.ctx, b.input(true, {33, 5}))); });
    add("sqr", kCurved, [](Builder & b) { return b.node(ggml_sqr(b.ctx, b.input(true, {33, 5}))); });
    add("xielu", 1e-4,
        [](Builder & b) { return b.node(ggml_xielu(b.ctx, b.input(true, {33, 5}), 0.7f, -0.4f, 0.3f, -1e-6f)); });
    add("softplus", kCurved, [](Builder & b) { return b.node(ggml_softplus(b.ctx, b.input(true, {33, 5}))); });
    // rounded to 0 by ggml, as is the root: no gradient instead of an infinite one
    add("root of a softplus of little", 1e-4, [](Builder & b) {
        ggml_tensor * little = b.node(ggml_scale_bias(b.ctx, b.input(true, {33, 5}), 1.0f, -50.0f));
        return b.node(ggml_sqrt(b.ctx, b.node(ggml_softplus(b.ctx, little))));
    });
    add("neg", kLinear, [](Builder & b) { return b.node(ggml_neg(b.ctx, b.input(true, {33, 5}))); });
    // small steps: none goes across 0
    add("abs", kCurved, [](Builder & b) { return b.node(ggml_abs(b.ctx, b.input(true, {33, 5}))); }, 1e-3f);
    add(
        "sgn", kCurved,
        [](Builder & b) {
            ggml_tensor * x = b.node(ggml_scale(b.ctx, b.input(true, {33, 5}), 1.0f));
            return b.node(ggml_mul(b.ctx, b.node(ggml_sgn(b.ctx, x)), x));
        },
        1e-3f);
    add("swiglu, split", kCurved,
        [](Builder & b) { return b.node(ggml_swiglu_split(b.ctx, b.input(true, {11, 5}), b.input(true, {11, 5}))); });
    add("swiglu, fused", kCurved, [](Builder & b) { return b.node(ggml_swiglu(b.ctx, b.input(true, {22, 5}))); });
    add("swiglu, swapped", kCurved,
        [](Builder & b) { return b.node(ggml_swiglu_swapped(b.ctx, b.input(true, {22, 5}))); });
    add("geglu, split", kCurved, [](Builder & b) { return own_glu(b, GGML_GLU_OP_GEGLU, false, false); });
    add("geglu, fused", kCurved, [](Builder & b) { return own_glu(b, GGML_GLU_OP_GEGLU, true, false); });
    add("geglu, swapped", kCurved, [](Builder & b) { return own_glu(b, GGML_GLU_OP_GEGLU, true, true); });
    add("geglu_quick", kCurved, [](Builder & b) { return own_glu(b, GGML_GLU_OP_GEGLU_QUICK, false, false); });
    add("geglu_erf", kCurved, [](Builder & b) {
        return b.node(ggml_geglu_erf_split(b.ctx, b.input(true, {11, 5}), b.input(true, {11, 5})));
    });
    add("reglu", 3e-2,
        [](Builder & b) { return b.node(ggml_reglu_split(b.ctx, b.input(true, {11, 5}), b.input(true, {11, 5}))); });
    for (const auto & [name, alpha, limit] : {std::tuple{"swiglu_oai", 1.702f, 0.9f}, {"swiglu_clamp", 0.0f, 1.1f}}) {
        const auto limited = [alpha, limit](Builder & b, ggml_tensor * gate, ggml_tensor * up) {
            return alpha != 0 ? ggml_swiglu_oai(b.ctx, gate, up, alpha, limit)
                              : ggml_swiglu_clamp(b.ctx, gate, up, limit);
        };
        // kinks at the limits: small steps
        add(
            std::string(name), kCurved,
            [limited](Builder & b) {
                ggml_tensor *gate = b.input(true, {11, 3, 5}), *up = b.input(true, {11, 3, 5});
                return b.node(limited(b, gate, up));
            },
            1e-3f);
        add(
            name + std::string(", ggtune's"), kCurved,
            [limited](Builder & b) {
                ggml_tensor *gate = b.input(true, {11, 3, 5}), *up = b.input(true, {11, 3, 5});
                return b.own(limited(b, gate, up));
            },
            1e-3f);
        add(
            name + std::string(", fused"), kCurved,
            [limited](Builder & b) { return b.own(limited(b, b.input(true, {22, 5}), nullptr)); }, 1e-3f);
        add(
            name + std::string(", swapped"), kCurved,
            [limited](Builder & b) {
                ggml_tensor * y = limited(b, b.input(true, {22, 5}), nullptr);
                y->op_params[1] = 1;
                return b.own(y);
            },
            1e-3f);
    }
    add("soft_max", 2e-3, [](Builder & b) {
        return b.node(ggml_soft_max_ext(b.ctx, b.input(true, {9, 5, 3}), b.input(false, {9, 5}), 0.7f, 0.0f));
    });
    add("soft_max, sinks", 2e-3, [](Builder & b) {
        ggml_tensor * y = ggml_soft_max_ext(b.ctx, b.input(true, {9, 5, 3}), b.input(false, {9, 5}), 0.7f, 0.0f);
        ggml_soft_max_add_sinks(y, b.input(false, {3}));
        return b.node(y);
    });
    // 5 tokens that all see each other, the sink of each head, and two heads for one of keys
    add("attention, sinks", kCurved, [](Builder & b) {
        constexpr int64_t kTokens = 5, kDim = 8, kDimV = 6, kHeads = 4, kHeadsKv = 2;
        ggml_tensor * q = b.input(true, {kDim, kTokens, kHeads});
        ggml_tensor * k = b.input(true, {kDim, kTokens, kHeadsKv});
        ggml_tensor * v = b.input(true, {kDimV, kTokens, kHeadsKv});
        ggml_tensor * sinks = b.input(false, {kHeads});
        if (b.ops.has_attention()) {
            const std::vector<int32_t> first(kTokens, 0), end(kTokens, kTokens);
            const KeyRanges keys = {b.integers(first), b.integers(end), first, end};
            return b.all(b.ops.attention(q, k, v, keys, {0.4f, 0.0f, 1.0f}, sinks));
        }
        ggml_tensor * weights = ggml_soft_max_ext(b.ctx, ggml_mul_mat(b.ctx, k, q), nullptr, 0.4f, 0.0f);
        ggml_soft_max_add_sinks(weights, sinks);
        return b.all(ggml_mul_mat(b.ctx, ggml_cont(b.ctx, ggml_transpose(b.ctx, v)), weights));
    });
    add("rms_norm", kCurved, [](Builder & b) { return b.node(ggml_rms_norm(b.ctx, b.input(true, {16, 5}), 1e-5f)); });
    add("norm", kCurved, [](Builder & b) { return b.node(ggml_norm(b.ctx, b.input(true, {16, 5}), 1e-5f)); });
    add("rms_norm, large epsilon", kCurved,
        [](Builder & b) { return b.node(ggml_rms_norm(b.ctx, b.input(true, {16, 5}), 0.5f)); });
    add("norm, large epsilon", kCurved,
        [](Builder & b) { return b.node(ggml_norm(b.ctx, b.input(true, {16, 5}), 0.5f)); });
    add("l2_norm", kCurved, [](Builder & b) { return b.node(ggml_l2_norm(b.ctx, b.input(true, {16, 5}), 1e-5f)); });
    add("l2_norm, below epsilon", kLinear,
        [](Builder & b) { return b.node(ggml_l2_norm(b.ctx, b.input(true, {16, 5}), 100.0f)); });
    for (const int mode : {GGML_ROPE_TYPE_NORMAL, GGML_ROPE_TYPE_NEOX}) {
        add("rope, mode " + std::to_string(mode), kLinear, [mode](Builder & b) {
            ggml_tensor * x = b.input(true, {16, 3, 5});
            return b.node(ggml_rope_ext(b.ctx, x, b.input(false, {5}, GGML_TYPE_I32), nullptr, 12, mode, 64, 10000.0f,
                                        0.5f, 1.0f, 1.2f, 32.0f, 1.0f));
        });
    }
    add("rope backwards, with an offset", kLinear, [](Builder & b) {
        ggml_tensor * x = b.input(true, {16, 3, 5});
        ggml_tensor * y = ggml_rope_ext_back(b.ctx, x, b.input(false, {5}, GGML_TYPE_I32), nullptr, 12,
                                             GGML_ROPE_TYPE_NEOX, 64, 10000.0f, 0.5f, 1.0f, 1.2f, 32.0f, 1.0f);
        return b.node(ggml_rope_set_offset(y, 4));
    });
    add("rope, frequency factors", kLinear, [](Builder & b) {
        ggml_tensor * factors = b.input(false, {8});
        return b.node(ggml_rope_ext(b.ctx, b.input(true, {16, 3, 5}), b.input(false, {5}, GGML_TYPE_I32), factors, 16,
                                    GGML_ROPE_TYPE_NEOX, 64, 10000.0f, 1.0f, 0.0f, 1.0f, 32.0f, 1.0f));
    });
    add("clamp", 5e-2, [](Builder & b) { return b.node(ggml_clamp(b.ctx, b.input(true, {33, 5}), -0.5f, 0.8f)); });
    add("cont, reshape", kLinear, [](Builder & b) {
        ggml_tensor * t =
            b.node(ggml_cont_2d(b.ctx, b.node(ggml_permute(b.ctx, b.input(true, {4, 3, 5}), 0, 2, 1, 3)), 20, 3));
        return b.node(ggml_reshape_3d(b.ctx, t, 4, 5, 3));
    });
    add("permute", kLinear, [](Builder & b) {
        ggml_tensor * t = b.node(ggml_permute(b.ctx, b.input(true, {4, 3, 5, 2}), 2, 0, 3, 1));
        return b.node(ggml_cont(b.ctx, t));
    });
    add("transpose", kLinear,
        [](Builder & b) { return b.node(ggml_cont(b.ctx, b.node(ggml_transpose(b.ctx, b.input(true, {4, 7, 3}))))); });
    add("view, rows", kLinear, [](Builder & b) {
        ggml_tensor * x = b.input(true, {10, 6});
        return b.node(ggml_cont(b.ctx, b.node(ggml_view_2d(b.ctx, x, 10, 3, x->nb[1], 2 * x->nb[1]))));
    });
    add("view, fused heads", kLinear, [](Builder & b) {
        ggml_tensor * x = b.node(ggml_scale(b.ctx, b.input(true, {12, 5}), 2.0f));
        ggml_tensor * q = b.node(ggml_view_3d(b.ctx, x, 4, 2, 5, 4 * sizeof(float), x->nb[1], 0));
        ggml_tensor * k = b.node(ggml_view_3d(b.ctx, x, 4, 1, 5, 4 * sizeof(float), x->nb[1], 8 * sizeof(float)));
        return b.node(ggml_mul(b.ctx, b.node(ggml_cont(b.ctx, q)), b.node(ggml_cont(b.ctx, k))));
    });
    add("view of a view", kLinear, [](Builder & b) {
        ggml_tensor * x = b.input(true, {10, 6});
        ggml_tensor * outer = b.node(ggml_view_2d(b.ctx, x, 8, 5, x->nb[1], x->nb[1] + 4));
        ggml_tensor * inner = b.node(ggml_view_2d(b.ctx, outer, 3, 4, outer->nb[1], outer->nb[1] + 8));
        return b.node(ggml_cont(b.ctx, inner));
    });
    add("view of a permuted tensor", kLinear, [](Builder & b) {
        ggml_tensor * x = b.node(ggml_permute(b.ctx, b.input(true, {4, 6, 3}), 1, 0, 2, 3));
        return b.node(
            ggml_cont(b.ctx, b.node(ggml_view_3d(b.ctx, x, 5, 4, 2, x->nb[1], x->nb[2], x->nb[0] + x->nb[2]))));
    });
    list.back().adds_elements = true;
    add("view of overlapping rows", kLinear, [](Builder & b) {
        return b.node(
            ggml_cont(b.ctx, b.node(ggml_view_2d(b.ctx, b.input(true, {10, 6}), 10, 5, 5 * sizeof(float), 0))));
    });
    list.back().adds_elements = true;
    add("view across a permuted tensor", kLinear, [](Builder & b) {
        ggml_tensor * x = b.node(ggml_permute(b.ctx, b.input(true, {4, 3, 5}), 0, 2, 1, 3));
        return b.node(ggml_cont(b.ctx, b.node(ggml_view_2d(b.ctx, x, 4, 13, x->nb[2], x->nb[2]))));
    });
    add("view of a permuted tensor, each element once", kLinear, [](Builder & b) {
        ggml_tensor * x = b.node(ggml_permute(b.ctx, b.input(true, {4, 6, 3}), 1, 0, 2, 3));
        return b.node(ggml_cont(b.ctx, b.node(ggml_view_3d(b.ctx, x, 3, 5, 2, x->nb[0], x->nb[2], x->nb[1]))));
    });
    add("get_rows", kLinear, [](Builder & b) {
        return b.node(ggml_get_rows(b.ctx, b.input(true, {10, 6}), b.input(false, {4}, GGML_TYPE_I32)));
    });
    add("get_rows, of each matrix its own", kLinear, [](Builder & b) {
        ggml_tensor * ids = b.input(false, {7, 3, 2}, GGML_TYPE_I32);  // some twice
        return b.node(ggml_get_rows(b.ctx, b.input(true, {10, 6, 3, 2}), ids));
    });
    // as the weights of experts: the first of the experts by score
    add("get_rows, single elements by a part of the ids", kLinear, [](Builder & b) {
        ggml_tensor * all = b.input(false, {5, 7}, GGML_TYPE_I32);
        ggml_tensor * ids = ggml_view_2d(b.ctx, all, 3, 7, all->nb[1], 0);
        return b.node(ggml_get_rows(b.ctx, b.input(true, {1, 5, 7}), ids));
    });
    add("hyper-connections, input", kCurved,
        [](Builder & b) { return b.node(ggml_dsv4_hc_pre(b.ctx, b.input(true, {6, 4, 5}), b.input(true, {4, 5}))); });
    add("hyper-connections, gated input", kCurved, [](Builder & b) {
        return b.node(ggml_dsv4_hc_pre_gated(b.ctx, b.input(true, {6, 3, 5}), b.input(true, {6, 3, 5}), 0.7f));
    });
    add("hyper-connections, output", kCurved, [](Builder & b) {
        ggml_tensor *x = b.input(true, {6, 5}), *residual = b.input(true, {6, 4, 5});
        return b.node(ggml_dsv4_hc_post(b.ctx, x, residual, b.input(true, {4, 5}), b.input(true, {4, 4, 5})));
    });
    add("hyper-connections, output without mixing", kCurved, [](Builder & b) {
        ggml_tensor *x = b.input(true, {6, 5}), *residual = b.input(true, {6, 3, 5});
        return b.node(ggml_dsv4_hc_post(b.ctx, x, residual, b.input(true, {3, 5}), nullptr));
    });
    for (const int n_iterations : {1, 3}) {
        add("hyper-connections, mixing " + std::to_string(n_iterations), kCurved, [n_iterations](Builder & b) {
            ggml_tensor *scale = b.input(false, {3}), *base = b.input(false, {24});
            return b.node(ggml_dsv4_hc_comb(b.ctx, b.input(true, {24, 5}), scale, base, 0.02f, n_iterations));
        });
    }
    for (int dim = 0; dim < GGML_MAX_DIMS; dim++) {
        add("concat, dimension " + std::to_string(dim), kLinear, [dim](Builder & b) {
            std::vector<int64_t> ne = {4, 3, 2, 5};
            ggml_tensor * x = b.input(true, ne);
            ne[dim] = 6;
            return b.node(ggml_concat(b.ctx, x, b.input(true, ne), dim));
        });
    }
    add("concat, transposed", kLinear, [](Builder & b) {
        ggml_tensor * y = b.node(ggml_concat(b.ctx, b.input(true, {4, 3}), b.input(true, {2, 3}), 0));
        return b.node(ggml_cont(b.ctx, b.node(ggml_transpose(b.ctx, y))));
    });
    // the gradient of one row of several: contiguous, but the strides of the dimensions of size 1 are the others'
    add("scale, then concat", kLinear, [](Builder & b) {
        ggml_tensor * x = b.node(ggml_scale(b.ctx, b.input(true, {8, 1}), -0.7f));
        return b.node(ggml_concat(b.ctx, x, b.input(true, {8, 3}), 1));
    });
    add("sum_rows", kLinear, [](Builder & b) { return b.node(ggml_sum_rows(b.ctx, b.input(true, {7, 3, 2}))); });
    add("sum_rows, transposed", kLinear, [](Builder & b) {
        ggml_tensor * sums = b.node(ggml_sum_rows(b.ctx, b.input(true, {7, 3, 2})));
        return b.node(ggml_cont(b.ctx, b.node(ggml_permute(b.ctx, sums, 0, 2, 1, 3))));
    });
    add("mean", kLinear, [](Builder & b) { return b.node(ggml_mean(b.ctx, b.input(true, {7, 3, 2}))); });
    add("cpy, another shape", kLinear, [](Builder & b) {
        ggml_tensor * x = b.node(ggml_transpose(b.ctx, b.input(true, {6, 4})));
        return b.node(ggml_cpy(b.ctx, x, b.input(false, {3, 8})));
    });
    add("cpy into a part", kLinear, [](Builder & b) {
        ggml_tensor * all = b.input(false, {10, 6});
        ggml_tensor * part = ggml_view_2d(b.ctx, all, 3, 4, all->nb[1], 2 * all->nb[1] + 4);
        return b.node(ggml_cpy(b.ctx, b.input(true, {3, 4}), part));
    });
    add("cast", kLinear, [](Builder & b) { return b.node(ggml_cast(b.ctx, b.input(true, {6, 4}), GGML_TYPE_F32)); });
    add("set", kLinear, [](Builder & b) {
        ggml_tensor * a = b.input(true, {10, 6, 2});
        ggml_tensor * part = b.input(true, {3, 2, 2});
        return b.node(ggml_set(b.ctx, a, part, 2 * a->nb[1], a->nb[2], a->nb[3], a->nb[1] + 2 * sizeof(float)));
    });
    add("set, one row", kLinear, [](Builder & b) {
        return b.node(ggml_set_1d(b.ctx, b.input(true, {10, 6}), b.input(false, {3}), 4 * sizeof(float)));
    });
    add("ssm_conv", kLinear,
        [](Builder & b) { return b.node(ggml_ssm_conv(b.ctx, b.input(true, {12, 19, 2}), b.input(false, {4, 19}))); });
    add("ssm_conv, ggtune's", kLinear,
        [](Builder & b) { return b.own(ggml_ssm_conv(b.ctx, b.input(true, {72, 19, 2}), b.input(false, {3, 19}))); });
    list.back().like_ggml = true;
    for (const bool own : {false, true}) {
        add(own ? "ssm_conv behind a state, ggtune's" : "ssm_conv behind a state", kLinear, [own](Builder & b) {
            ggml_tensor *state = b.input(true, {3, 19, 2}), *rows = b.input(true, {22, 9, 2});
            // a part of each row
            ggml_tensor * x = b.node(ggml_view_3d(b.ctx, rows, 19, 9, 2, rows->nb[1], rows->nb[2], 8));
            ggml_tensor * all = ggml_concat(b.ctx, state, ggml_transpose(b.ctx, x), 0);
            ggml_tensor * y = ggml_ssm_conv(b.ctx, all, b.input(false, {4, 19}));
            return own ? b.own(y) : b.all(y);
        });
        list.back().like_ggml = true;
    }
    add_scans(list);
    add("dropout", kLinear, [](Builder & b) { return b.all(b.ops.dropout(b.input(true, {33, 5}), {7, 3, 0.3f})); });
    return list;
}

}  // namespace

int main() {
    for (const Implementation & implementation : implementations()) {
        for (const Case & c : cases()) {
            if (c.like_ggml) {
                compare_with_ggml(c, implementation);
            }
            if ((c.adds_elements && !implementation.adds_elements) || (c.scans && !implementation.scans)) {
                expect_refusal(c, implementation);
            } else {
                run(c, implementation);
            }
        }
    }
    return finish();
}
