// Makers of ggml's own nodes where finite differences do not reach: limits, tails and zero, the loss of improbable
// targets, attention in stretches, and what backends need to be made another way.
#include <ggml-cpp.h>

#include <cmath>
#include <functional>
#include <numeric>

#include "check.h"
#include "engine/autodiff.h"
#include "engine/executor.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/ggml/ggml_ops.h"

namespace {

using namespace ggtune;
using namespace ggtune::test;

using Values = std::vector<float>;

// Inputs in memory of their own, and a node that is made of them.
class Computation {
  public:
    explicit Computation(BackendTraits traits = {}) : ggml(context_.get(), traits) {}

    ggml_tensor * floats(const std::vector<int64_t> & ne, const Values & values) {
        ggml_tensor * t = ggml_new_tensor(context_.get(), GGML_TYPE_F32, static_cast<int>(ne.size()), ne.data());
        return filled(t, values.data());
    }
    ggml_tensor * quantized(const std::vector<int64_t> & ne, const Values & values) {
        ggml_tensor * t = ggml_new_tensor(context_.get(), GGML_TYPE_Q8_0, static_cast<int>(ne.size()), ne.data());
        std::vector<uint8_t> bytes(ggml_nbytes(t));
        ggml_quantize_chunk(t->type, values.data(), bytes.data(), 0, ggml_nrows(t), t->ne[0], nullptr);
        return filled(t, bytes.data());
    }
    // What a quantized input holds.
    Values dequantized(const ggml_tensor * t) const {
        const auto found =
            std::find_if(contents_.begin(), contents_.end(), [&](const auto & content) { return content.first == t; });
        Values values(ggml_nelements(t));
        ggml_get_type_traits(t->type)->to_float(found->second.data(), values.data(), ggml_nelements(t));
        return values;
    }
    ggml_tensor * integers(const std::vector<int32_t> & values) {
        ggml_tensor * t = ggml_new_tensor_1d(context_.get(), GGML_TYPE_I32, values.size());
        return filled(t, values.data());
    }
    // The values of the nodes, which are computed one after another.
    std::vector<Values> compute(const std::vector<ggml_tensor *> & nodes) {
        ggml_cgraph * graph = graph_of(nodes);
        Executor executor(2);
        executor.allocate(graph);
        for (const auto & [tensor, bytes] : contents_) {
            if (tensor->buffer != nullptr) {
                ggml_backend_tensor_set(tensor, bytes.data(), 0, bytes.size());
            }
        }
        for (const Ops::HostInput & input : ggml.host_inputs()) {
            ggml_backend_tensor_set(input.tensor, input.bytes.data(), 0, input.bytes.size());
        }
        executor.compute(graph, 0, ggml_graph_n_nodes(graph));
        std::vector<Values> results;
        for (const ggml_tensor * node : nodes) {
            results.emplace_back(ggml_nelements(node));
            ggml_backend_tensor_get(node, results.back().data(), 0, ggml_nbytes(node));
        }
        return results;
    }

    size_t measure(const std::vector<ggml_tensor *> & nodes) { return Executor(1).measure(graph_of(nodes)); }
    ggml_cgraph * graph_of(const std::vector<ggml_tensor *> & nodes) {
        ggml_cgraph * graph = ggml_new_graph_custom(context_.get(), kMaxNodes, false);
        for (ggml_tensor * node : nodes) {
            ggml_set_output(node);
            ggml_build_forward_expand(graph, node);
        }
        return graph;
    }
    // d(sum of dy y)/d of each of the leaves, by the rules of `ops`.
    std::vector<ggml_tensor *> gradients(Ops & ops, ggml_tensor * y, ggml_tensor * dy,
                                         const std::vector<ggml_tensor *> & leaves) {
        Implementations implementations(ops, true);
        Autodiff ad(implementations);
        std::vector<ggml_tensor *> sums;
        for (ggml_tensor * leaf : leaves) {
            sums.push_back(floats({leaf->ne, leaf->ne + GGML_MAX_DIMS}, Values(ggml_nelements(leaf), 0.0f)));
            ad.set_trainable(leaf, sums.back());
        }
        ggml_cgraph * graph = graph_of({y});
        const std::vector<ggml_tensor *> nodes(ggml_graph_nodes(graph),
                                               ggml_graph_nodes(graph) + ggml_graph_n_nodes(graph));
        ad.trace(nodes);
        ad.add(y, dy);
        ad.backward(nodes);
        const std::vector<ggml_tensor *> results = ad.take_results();
        std::vector<ggml_tensor *> in_order;
        for (ggml_tensor * sum : sums) {
            in_order.push_back(*std::find_if(results.begin(), results.end(),
                                             [&](const ggml_tensor * result) { return result->view_src == sum; }));
        }
        return in_order;
    }

  private:
    static constexpr size_t kMaxNodes = 8192;

    ggml_tensor * filled(ggml_tensor * t, const void * values) {
        ggml_set_input(t);
        const auto * bytes = static_cast<const uint8_t *>(values);
        contents_.push_back({t, {bytes, bytes + ggml_nbytes(t)}});
        return t;
    }

    const ggml_context_ptr context_{ggml_init({16 << 20, nullptr, true})};
    std::vector<std::pair<ggml_tensor *, std::vector<uint8_t>>> contents_;

  public:
    CpuOps cpu{context_.get()};
    GgmlOps ggml;
};

void test_derivatives_at_zero_and_far_out() {
    const Values x = {0.0f, -0.0f, 1e-30f, -1e-30f, 1e-12f, -1e-12f, 3.0f, -3.0f, 12.0f, -12.0f, 80.0f, -80.0f};
    for (const auto & [name, f] :
         std::initializer_list<std::pair<const char *, Activation>>{{"silu", Activation::silu},
                                                                    {"gelu", Activation::gelu},
                                                                    {"gelu_erf", Activation::gelu_erf},
                                                                    {"gelu_quick", Activation::gelu_quick},
                                                                    {"relu", Activation::relu},
                                                                    {"tanh", Activation::tanh},
                                                                    {"sigmoid", Activation::sigmoid},
                                                                    {"sqr", Activation::sqr}}) {
        Computation c;
        const auto n = static_cast<int64_t>(x.size());
        ggml_tensor * at = c.floats({n}, x);
        ggml_tensor * dy = c.floats({n}, Values(n, 1.0f));
        const auto found = c.compute({c.ggml.activation_dx(f, at, dy), c.cpu.activation_dx(f, at, dy)});
        double largest = 0;
        for (int64_t i = 0; i < n; i++) {
            const double difference = std::abs(found[0][i] - static_cast<double>(found[1][i]));
            largest = std::isnan(difference) ? NAN : std::max(largest, difference);
        }
        check(std::string(name) + ": derivative at zero and far out", largest, 1e-6);
    }
}

void test_limits_belong_to_the_range() {
    Computation c;
    ggml_tensor * x = c.floats({5}, {-2.0f, -1.0f, 0.0f, 0.5f, 0.6f});
    ggml_tensor * dy = c.floats({5}, {1.0f, 2.0f, 3.0f, 4.0f, 5.0f});
    const auto found = c.compute({c.ggml.clamp_dx(x, dy, -1.0f, 0.5f), c.ggml.clamp_dx(x, dy, -INFINITY, INFINITY)});
    check("clamp: at the limits", found[0] == Values{0.0f, 2.0f, 3.0f, 4.0f, 0.0f} ? 0 : 1, 0);
    check("clamp: no limits", found[1] == Values{1.0f, 2.0f, 3.0f, 4.0f, 5.0f} ? 0 : 1, 0);
}

// Targets from likely to impossible for a float: log p = -200.
void test_loss() {
    constexpr int64_t kNVocab = 50, kNRows = 4;
    Values logits = random_values(kNVocab * kNRows, 3, 3.0f);
    const std::vector<int32_t> targets = {7, 0, 49, 20};
    const Values weights = {1.0f, -0.5f, 2.0f, 0.25f};
    logits[0 * kNVocab + 7] = 30.0f;
    logits[2 * kNVocab + 49] = -200.0f;
    for (int64_t i = 0; i < kNVocab; i++) {
        logits[3 * kNVocab + i] += 5000.0f;  // what is common to a row counts nothing
    }
    std::vector<double> log_probs, gradient;
    for (int64_t row = 0; row < kNRows; row++) {
        const float * of_row = logits.data() + row * kNVocab;
        const double largest = *std::max_element(of_row, of_row + kNVocab);
        double sum = 0;
        for (int64_t i = 0; i < kNVocab; i++) {
            sum += std::exp(of_row[i] - largest);
        }
        log_probs.push_back(of_row[targets[row]] - largest - std::log(sum));
        for (int64_t i = 0; i < kNVocab; i++) {
            gradient.push_back(weights[row] * (std::exp(of_row[i] - largest) / sum - (i == targets[row])));
        }
    }
    Computation c;
    ggml_tensor * l = c.floats({kNVocab, kNRows}, logits);
    ggml_tensor * t = c.integers(targets);
    ggml_tensor * w = c.floats({kNRows}, weights);
    ggml_tensor * values = c.ggml.log_probabilities(l, t);
    const auto found = c.compute({values, c.ggml.cross_entropy_dx(l, t, w, values)});
    for (int64_t row = 0; row < kNRows; row++) {
        check("log p of row " + std::to_string(row), std::abs(found[0][row] - log_probs[row]),
              1e-6 * std::max(1.0, std::abs(log_probs[row])));
    }
    check("gradient of the logits", relative_difference(found[1], gradient), 1e-6);
}

// Samples one after another; window 0: none.
KeyRanges ranges_of(Computation & c, const std::vector<int32_t> & lengths, int32_t window) {
    KeyRanges keys;
    int32_t begin = 0;
    for (const int32_t length : lengths) {
        for (int32_t row = begin; row < begin + length; row++) {
            keys.first_values.push_back(window > 0 ? std::max(begin, row + 1 - window) : begin);
            keys.end_values.push_back(row + 1);
        }
        begin += length;
    }
    keys.first = c.integers(keys.first_values);
    keys.end = c.integers(keys.end_values);
    return keys;
}

struct AttentionCase {
    std::string what;
    std::vector<int32_t> lengths;
    int64_t n_head = 4, n_head_kv = 2, head_dim = 8, head_dim_v = 8;
    int32_t window = 0;
    AttentionParams params = {1.0f, 0.0f, 0.35f};
    bool sinks = false;
};

struct MadeAttention {
    ggml_tensor *q, *k, *v, *dy;
    KeyRanges keys;
    ggml_tensor * sinks;
};

MadeAttention make_attention(Computation & c, const AttentionCase & a) {
    const int64_t n = std::accumulate(a.lengths.begin(), a.lengths.end(), int64_t{0});
    // token by token, as the projections leave them
    const auto heads = [&](int64_t width, int64_t n_heads, uint32_t seed) {
        return c.floats({width, n_heads, n}, random_values(width * n_heads * n, seed));
    };
    MadeAttention made = {heads(a.head_dim, a.n_head, 1),      heads(a.head_dim, a.n_head_kv, 2),
                          heads(a.head_dim_v, a.n_head_kv, 3), nullptr,
                          ranges_of(c, a.lengths, a.window),   nullptr};
    made.dy = c.floats({a.head_dim_v * a.n_head, n}, random_values(a.head_dim_v * a.n_head * n, 4));
    if (a.sinks) {
        made.sinks = c.floats({a.n_head}, random_values(a.n_head, 5));
    }
    return made;
}

ggml_tensor * attention_by(Ops & ops, const MadeAttention & m, const AttentionParams & params) {
    const auto by_heads = [&](ggml_tensor * t) { return ggml_permute(ops.ctx, t, 0, 2, 1, 3); };
    return ops.attention(by_heads(m.q), by_heads(m.k), by_heads(m.v), m.keys, params, m.sinks);
}

int64_t largest_scores(ggml_cgraph * graph) {
    int64_t largest = 0;
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        const ggml_tensor * node = ggml_graph_node(graph, i);
        largest = node->op == GGML_OP_SOFT_MAX ? std::max(largest, node->ne[0] * node->ne[1]) : largest;
    }
    return largest;
}

// The kernels of the CPU, which see one row at a time, are what stretches have to agree with.
void test_attention_in_stretches() {
    const AttentionParams capped = {0.3f, 5.0f, 1.0f};
    const std::vector<AttentionCase> cases = {
        {"one sample", {90}},
        {"packed samples", {70, 3, 90, 1, 1, 60}},
        {"a window", {150, 40}, 4, 2, 8, 8, 12},
        {"capped scores", {70, 90}, 4, 2, 8, 8, 0, capped},
        {"sinks", {70, 20, 90}, 4, 2, 8, 8, 0, {1.0f, 0.0f, 0.35f}, true},
        {"values of another width", {70, 90}, 6, 2, 8, 4, 30, capped, true},
        {"a head of keys for all", {70, 90}, 5, 1, 16, 8, 0},
        {"a head of keys for each", {64, 64, 64}, 3, 3, 8, 16, 20},
    };
    BackendTraits long_rows;
    BackendTraits short_rows;
    short_rows.max_score_bytes = 1;  // as few rows as there may be
    BackendTraits as_cuda;
    as_cuda.max_score_bytes = 50 * 50 * 4 * 4;
    as_cuda.has_norm_back = true;
    as_cuda.has_fast_out_prod = true;
    BackendTraits as_vulkan = as_cuda;
    as_vulkan.has_fast_out_prod = false;
    as_vulkan.wants_contiguous_operands = true;
    for (const AttentionCase & a : cases) {
        for (const auto & [name, traits] : std::initializer_list<std::pair<const char *, BackendTraits>>{
                 {"", long_rows}, {", few rows", short_rows}, {", CUDA", as_cuda}, {", Vulkan", as_vulkan}}) {
            Computation c(traits);
            const MadeAttention m = make_attention(c, a);
            std::vector<ggml_tensor *> nodes;
            for (Ops * ops : {static_cast<Ops *>(&c.ggml), static_cast<Ops *>(&c.cpu)}) {
                ggml_tensor * y = attention_by(*ops, m, a.params);
                nodes.push_back(y);
                const auto gradients = c.gradients(*ops, y, m.dy, {m.q, m.k, m.v});
                nodes.insert(nodes.end(), gradients.begin(), gradients.end());
            }
            const auto found = c.compute(nodes);
            const char * parts[] = {"result", "dq", "dk", "dv"};
            for (size_t i = 0; i < 4; i++) {
                check("attention, " + a.what + name + ": " + parts[i], relative_difference(found[i], found[4 + i]),
                      1e-5);
            }
        }
    }
}

// Of 32 samples of 64 tokens, forward and back: no scores of all rows against all keys.
void test_attention_of_packed_samples_needs_little_memory() {
    AttentionCase a = {"", std::vector<int32_t>(32, 64), 8, 4, 16, 16};
    Computation c;
    const MadeAttention m = make_attention(c, a);
    ggml_tensor * y = attention_by(c.ggml, m, a.params);
    std::vector<ggml_tensor *> nodes = c.gradients(c.ggml, y, m.dy, {m.q, m.k, m.v});
    nodes.push_back(y);
    check("scores of packed samples", static_cast<double>(largest_scores(c.graph_of(nodes))), 128 * 128);
    const double all_scores = 2048.0 * 2048 * a.n_head * sizeof(float);
    check("memory for packed samples", static_cast<double>(c.measure(nodes)) / all_scores, 0.1);
}

// A long sample: scores of as many rows as their limit allows, of no keys that a window hides.
void test_scores_stay_within_their_limit() {
    BackendTraits traits;
    traits.max_score_bytes = 1 << 20;
    for (const int32_t window : {0, 64}) {
        AttentionCase a = {"", {2048}, 8, 4, 16, 16, window};
        Computation c(traits);
        const MadeAttention m = make_attention(c, a);
        ggml_tensor * y = attention_by(c.ggml, m, a.params);
        std::vector<ggml_tensor *> nodes = c.gradients(c.ggml, y, m.dy, {m.q, m.k, m.v});
        nodes.push_back(y);
        ggml_cgraph * graph = c.graph_of(nodes);
        const double bytes = static_cast<double>(largest_scores(graph)) * a.n_head * sizeof(float);
        const std::string of = window > 0 ? ", windowed" : "";
        check("scores of a long sample" + of, bytes, static_cast<double>(traits.max_score_bytes));
        int n_stretches = 0;
        for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
            n_stretches += ggml_graph_node(graph, i)->op == GGML_OP_SOFT_MAX ? 1 : 0;
        }
        // forward and back; without a window the scores are 128 times the limit, half of them hidden
        check("stretches of a long sample" + of, n_stretches, 2 * (window > 0 ? 20 : 90));
        // nor of more than one of the stretches at a time
        const double all_scores = 2048.0 * 2048 * a.n_head * sizeof(float);
        check("memory for a long sample" + of, static_cast<double>(c.measure(nodes)) / all_scores, 0.25);
    }
}

// As many nodes as a graph is given room for, of samples that can't be taken together.
void test_nodes_of_attention_are_counted() {
    AttentionCase a = {"", std::vector<int32_t>(20, 65)};
    BackendTraits traits;
    traits.max_score_bytes = 60 * 60 * 4 * 4;
    for (const bool capped : {false, true}) {
        a.params.softcap = capped ? 5.0f : 0.0f;
        Computation c(traits);
        const MadeAttention m = make_attention(c, a);
        const int64_t n = m.q->ne[2];
        ggml_tensor * ggmls = ggml_soft_max(c.ggml.ctx, ggml_new_tensor_3d(c.ggml.ctx, GGML_TYPE_F32, n, n, a.n_head));
        ggml_tensor * y = attention_by(c.ggml, m, a.params);
        ggml_cgraph * graph = c.graph_of(c.gradients(c.ggml, y, m.dy, {m.q, m.k, m.v}));
        const int64_t again = ggml_graph_n_nodes(c.graph_of({y}));
        check("nodes of attention", static_cast<double>(ggml_graph_n_nodes(graph) + again),
              static_cast<double>(GgmlOps::max_nodes(ggmls, traits)));
    }
}

// Vulkan and CUDA take an index apart by the strides of SET and ACC from the last dimension on.
void test_strides_of_set_grow() {
    const std::vector<std::pair<std::string, std::function<ggml_tensor *(ggml_context *, ggml_tensor *)>>> views = {
        {"a part",
         [](ggml_context * ctx, ggml_tensor * t) {
             return ggml_view_3d(ctx, t, 3, 4, 5, t->nb[1], t->nb[2], t->nb[1] + t->nb[0]);
         }},
        {"a part of a permuted tensor",
         [](ggml_context * ctx, ggml_tensor * t) {
             ggml_tensor * permuted = ggml_permute(ctx, t, 0, 2, 1, 3);
             return ggml_view_3d(ctx, permuted, 3, 5, 4, permuted->nb[1], permuted->nb[2], permuted->nb[2]);
         }},
        {"dimensions in another order",
         [](ggml_context * ctx, ggml_tensor * t) {
             return ggml_view_3d(ctx, t, 3, 5, 4, t->nb[2], t->nb[1], t->nb[1]);
         }},
        {"rows of one dimension",
         [](ggml_context * ctx, ggml_tensor * t) {
             return ggml_view_4d(ctx, t, 3, 1, 6, 1, t->nb[0], t->nb[2], t->nb[1], t->nb[1]);
         }},
        {"every other element",
         [](ggml_context * ctx, ggml_tensor * t) {
             return ggml_view_3d(ctx, t, 1, 3, 6, 2 * t->nb[0], t->nb[2], t->nb[1]);
         }},
        {"columns",
         [](ggml_context * ctx, ggml_tensor * t) {
             ggml_tensor * turned = ggml_transpose(ctx, t);
             return ggml_view_3d(ctx, turned, 3, 5, 6, turned->nb[0], turned->nb[2], turned->nb[1]);
         }},
    };
    for (const auto & [what, view] : views) {
        Computation c;
        ggml_tensor * source = c.floats({8, 5, 6}, random_values(8 * 5 * 6, 1));
        ggml_tensor * shown = view(c.ggml.ctx, source);
        ggml_tensor * from = shown->src[0];
        ggml_tensor * dy = c.floats({shown->ne, shown->ne + GGML_MAX_DIMS}, random_values(ggml_nelements(shown), 2));
        ggml_tensor * dx = c.ggml.view_dx(from, shown, dy);
        const auto found = c.compute({dx, c.cpu.view_dx(from, shown, dy)});
        check("view, " + what, same_bits(found[0], found[1]) ? 0 : 1, 0);
        if (dx->op == GGML_OP_SET) {
            const int32_t * nb = dx->op_params;
            const ggml_tensor * part = dx->src[1];
            const bool grow = nb[0] >= static_cast<int32_t>(part->ne[0] * sizeof(float)) &&
                              nb[1] >= nb[0] * part->ne[1] && nb[2] >= nb[1] * part->ne[2];
            check("view, " + what + ": strides grow", grow ? 0 : 1, 0);
        } else {
            check("view, " + what + ": rows are set", dx->src[0]->op == GGML_OP_SET_ROWS ? 0 : 1, 0);
        }
    }
}

// What is larger than a backend's SET and SILU_BACK take is made another way.
void test_large_tensors_are_made_another_way() {
    BackendTraits small;
    small.max_flat_elements = 100;
    Computation c(small);
    ggml_tensor * x = c.floats({10, 12}, random_values(120, 1));
    ggml_tensor * shown = ggml_view_2d(c.ggml.ctx, x, 5, 12, x->nb[1], 2 * x->nb[0]);
    ggml_tensor * dy = c.floats({10, 12}, random_values(120, 2));
    ggml_tensor * d_shown = c.floats({5, 12}, random_values(60, 3));
    const std::vector<ggml_tensor *> made = {
        c.ggml.activation_dx(Activation::silu, x, dy), c.ggml.view_dx(x, shown, d_shown),
        c.cpu.activation_dx(Activation::silu, x, dy), c.cpu.view_dx(x, shown, d_shown)};
    const auto found = c.compute(made);
    check("silu of many elements", relative_difference(found[0], found[2]), 1e-6);
    check("a view of many elements", same_bits(found[1], found[3]) ? 0 : 1, 0);
    ggml_cgraph * graph = c.graph_of({made[0], made[1]});
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        const ggml_tensor * node = ggml_graph_node(graph, i);
        check(std::string("within limits: ") + ggml_op_desc(node), is_within_limits(small, node) ? 0 : 1, 0);
    }
    ggml_tensor * set = ggml_set_2d(c.ggml.ctx, x, d_shown, x->nb[1], 0);
    check("a limit that is known", is_within_limits(small, set) ? 1 : 0, 0);
}

// A weight of q8_0 in several tiles, the last of them a single row.
void test_products_with_quantized_weights() {
    constexpr int64_t kIn = 64, kOut = 10, kRows = 7;
    const Values w = random_values(kIn * kOut, 1), x = random_values(kIn * kRows, 2),
                 dy = random_values(kOut * kRows, 3);
    BackendTraits exact;
    exact.exact = true;
    exact.max_tile_bytes = 3 * kIn * sizeof(float);
    BackendTraits with_out_prod = exact;
    with_out_prod.has_fast_out_prod = true;
    for (const auto & [name, traits] : std::initializer_list<std::pair<const char *, BackendTraits>>{
             {"exact", exact}, {"exact, out_prod", with_out_prod}}) {
        Computation c(traits);
        ggml_tensor * weight = c.quantized({kIn, kOut}, w);
        ggml_tensor * rows = c.floats({kIn, kRows}, x);
        ggml_tensor * plain = ggml_mul_mat(c.ggml.ctx, weight, rows);
        ggml_tensor * y = c.ggml.replacement(plain);
        check(std::string(name) + ": the copy is one of floats", y->src[1]->type == GGML_TYPE_F32 ? 0 : 1, 0);
        ggml_tensor * gradient = c.floats({kOut, kRows}, dy);
        std::vector<ggml_tensor *> nodes = c.gradients(c.ggml, y, gradient, {rows});
        ggml_cgraph * graph = c.graph_of(nodes);
        for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
            const ggml_tensor * node = ggml_graph_node(graph, i);
            if (node->op == GGML_OP_OUT_PROD) {
                check(std::string(name) + ": rows of a transpose", node->src[1]->ne[1] > 1 ? 0 : 1, 0);
            }
        }
        nodes.push_back(y);
        const auto found = c.compute(nodes);
        const Values floats = c.dequantized(weight);
        std::vector<double> expected(kOut * kRows), expected_dx(kIn * kRows);
        for (int64_t t = 0; t < kRows; t++) {
            for (int64_t o = 0; o < kOut; o++) {
                for (int64_t i = 0; i < kIn; i++) {
                    expected[t * kOut + o] += static_cast<double>(floats[o * kIn + i]) * x[t * kIn + i];
                    expected_dx[t * kIn + i] += static_cast<double>(floats[o * kIn + i]) * dy[t * kOut + o];
                }
            }
        }
        check(std::string(name) + ": product", relative_difference(found[1], expected), 1e-6);
        check(std::string(name) + ": gradient", relative_difference(found[0], expected_dx), 1e-6);
    }
}

// Of eight products one after another, each with a tile of 1 MiB: not all tiles are there from the start.
void test_tiles_are_made_when_they_are_needed() {
    constexpr int64_t kWidth = 512, kRows = 4;
    BackendTraits exact;
    exact.exact = true;
    Computation c(exact);
    ggml_tensor * weight = c.quantized({kWidth, kWidth}, random_values(kWidth * kWidth, 1));
    ggml_tensor * x = c.floats({kWidth, kRows}, random_values(kWidth * kRows, 2));
    ggml_tensor * y = x;
    for (int i = 0; i < 8; i++) {
        y = c.ggml.replacement(ggml_mul_mat(c.ggml.ctx, weight, y));
    }
    constexpr double kTileBytes = kWidth * kWidth * sizeof(float);
    check("tiles, forward", static_cast<double>(c.measure({y})) / kTileBytes, 2);
    ggml_tensor * dy = c.floats({kWidth, kRows}, random_values(kWidth * kRows, 3));
    check("tiles, backward", static_cast<double>(c.measure(c.gradients(c.ggml, y, dy, {x}))) / kTileBytes, 3);
}

}  // namespace

int main() {
    test_derivatives_at_zero_and_far_out();
    test_limits_belong_to_the_range();
    test_loss();
    test_attention_in_stretches();
    test_attention_of_packed_samples_needs_little_memory();
    test_scores_stay_within_their_limit();
    test_nodes_of_attention_are_counted();
    test_strides_of_set_grow();
    test_large_tensors_are_made_another_way();
    test_products_with_quantized_weights();
    test_tiles_are_made_when_they_are_needed();
    return finish();
}
