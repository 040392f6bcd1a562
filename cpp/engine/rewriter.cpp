#include "engine/rewriter.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>

#include "engine/autodiff.h"

namespace ggtune {

namespace {

float param(const ggml_tensor * node, int index) {
    float value;
    std::memcpy(&value, node->op_params + index, sizeof(value));
    return value;
}

bool is_op(const ggml_tensor * node, ggml_op op) {
    return node != nullptr && node->op == op;
}

bool is_float_product(const ggml_tensor * node) {
    return is_op(node, GGML_OP_MUL_MAT) && node->src[0]->type == GGML_TYPE_F32 && node->src[1]->type == GGML_TYPE_F32;
}

// multiplication by a number, without an addition
bool is_multiple(const ggml_tensor * node) {
    return is_op(node, GGML_OP_SCALE) && param(node, 1) == 0.0f;
}

// heads with contiguous elements, [head_dim, T, heads]
bool is_heads(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 && t->ne[3] == 1 && t->nb[0] == sizeof(float);
}

// Contiguous copies that a new node has put between itself and its operands are nodes like all others.
void push_copies(std::vector<ggml_tensor *> & nodes, ggml_tensor * node,
                 std::initializer_list<const ggml_tensor *> operands) {
    for (ggml_tensor * src : node->src) {
        if (src != nullptr && std::find(operands.begin(), operands.end(), src) == operands.end()) {
            nodes.push_back(src);
        }
    }
}

}  // namespace

Rewriter::Rewriter(GraphOps & ops_, const ForwardGraph & forward_, const Adapter & adapter,
                   const DropoutOptions & dropout_, Precision precision_)
    : ops(ops_), forward(forward_), dropout(dropout_), precision(precision_) {
    for (size_t i = 0; i < adapter.pairs().size(); i++) {
        lora_a[adapter.pairs()[i].a] = i;
        lora_b.insert(adapter.pairs()[i].b);
    }
}

ggml_tensor * Rewriter::current(ggml_tensor * node) const {
    const auto it = replaced.find(node);
    return it != replaced.end() ? it->second : node;
}

void Rewriter::count_uses(const std::vector<ggml_tensor *> & nodes) {
    for (const ggml_tensor * node : nodes) {
        for (const ggml_tensor * src : node->src) {
            n_uses[src]++;
        }
    }
}

bool Rewriter::used_once(const ggml_tensor * node) const {
    const auto it = n_uses.find(node);
    return it != n_uses.end() && it->second == 1;
}

bool Rewriter::find_ranges(const ggml_tensor * mask, int64_t n_tokens, size_t & index) {
    const auto known = ranges_of_mask.find(mask);
    if (known != ranges_of_mask.end()) {
        index = known->second;
        return true;
    }
    KeyRanges found;
    if (!forward.visible_keys(mask, found.first_values, found.end_values)) {
        return false;
    }
    for (ggml_tensor ** t : {&found.first, &found.end}) {
        *t = ggml_new_tensor_1d(ops.ctx, GGML_TYPE_I32, n_tokens);
        ggml_set_input(*t);
    }
    index = ranges.size();
    ranges_of_mask[mask] = index;
    ranges.push_back(std::move(found));
    return true;
}

// llama.cpp's attention without its own fused op ends in cont(permute(v^T softmax(scale cap(k^T q) + mask))).
std::optional<Rewriter::Attention> Rewriter::match_attention(const ggml_tensor * node) {
    static const int32_t swap_tokens_and_heads[4] = {0, 2, 1, 3};
    const ggml_tensor * permuted = is_op(node, GGML_OP_CONT) ? node->src[0] : nullptr;
    if (!is_op(permuted, GGML_OP_PERMUTE) ||
        std::memcmp(permuted->op_params, swap_tokens_and_heads, sizeof(swap_tokens_and_heads)) != 0) {
        return std::nullopt;
    }
    const ggml_tensor * kqv = permuted->src[0];
    if (!is_float_product(kqv) || !is_op(kqv->src[0], GGML_OP_CONT) || !is_op(kqv->src[0]->src[0], GGML_OP_TRANSPOSE)) {
        return std::nullopt;
    }
    const ggml_tensor * softmax = kqv->src[1];
    const bool plain = is_op(softmax, GGML_OP_SOFT_MAX) && softmax->src[1] != nullptr && softmax->src[2] == nullptr;
    if (!plain || param(softmax, 1) != 0.0f) {
        return std::nullopt;
    }
    Attention found;
    found.inner = {permuted, kqv, kqv->src[0], kqv->src[0]->src[0], softmax};
    found.params = {1.0f, 0.0f, param(softmax, 0)};
    const ggml_tensor * kq = softmax->src[0];
    if (is_multiple(kq)) {
        const ggml_tensor * tanh = kq->src[0];
        if (!is_op(tanh, GGML_OP_UNARY) || ggml_get_unary_op(tanh) != GGML_UNARY_OP_TANH ||
            !is_multiple(tanh->src[0])) {
            return std::nullopt;
        }
        const ggml_tensor * inner = tanh->src[0];
        found.params.softcap = param(kq, 0);
        found.params.pre_scale = param(inner, 0) * found.params.softcap;
        found.inner.insert(found.inner.end(), {kq, tanh, inner});
        kq = inner->src[0];
    }
    if (!is_float_product(kq)) {
        return std::nullopt;
    }
    found.inner.push_back(kq);
    found.q = kq->src[1];
    found.k = kq->src[0];
    found.v = kqv->src[0]->src[0]->src[0];
    if (!is_heads(found.q) || !is_heads(found.k) || !is_heads(found.v) || found.k->ne[1] != found.q->ne[1] ||
        found.v->ne[2] != found.k->ne[2]) {
        return std::nullopt;
    }
    if (!std::all_of(found.inner.begin(), found.inner.end(), [&](const ggml_tensor * t) { return used_once(t); }) ||
        !find_ranges(softmax->src[1], found.q->ne[1], found.ranges)) {
        return std::nullopt;
    }
    return found;
}

// llama.cpp adds LoRA products as add(w x, scale(b (a x)))
const ggml_tensor * Rewriter::low_rank_product(const ggml_tensor * sum) const {
    const ggml_tensor * scaled = is_op(sum, GGML_OP_ADD) ? sum->src[1] : nullptr;
    const ggml_tensor * product = scaled != nullptr && is_multiple(scaled) ? scaled->src[0] : nullptr;
    const bool fits = is_float_product(product) && lora_b.count(product->src[0]) != 0 && ggml_is_matrix(product) &&
                      used_once(product) && used_once(scaled) && used_once(sum->src[0]);
    return fits ? product : nullptr;
}

void Rewriter::use_current_operands(ggml_tensor * node) {
    for (ggml_tensor *& src : node->src) {
        src = src != nullptr ? current(src) : nullptr;
    }
    if (node->view_src != nullptr && current(node->view_src) != node->view_src) {
        // ggml's allocator wants views of what owns the memory, never of views
        ggml_tensor * now = current(node->view_src);
        node->view_offs += now->view_src != nullptr ? now->view_offs : 0;
        node->view_src = now->view_src != nullptr ? now->view_src : now;
    }
}

// x for int8 products with weights of a type: quantized once for all of them, by a node that is added to `nodes`.
ggml_tensor * Rewriter::quantized_rows(ggml_tensor * x, ggml_type weight_type, std::vector<ggml_tensor *> & nodes) {
    const int64_t block = GraphOps::int8_activation_block(weight_type);
    ggml_tensor *& rows = quantized[{x, block}];
    if (rows == nullptr) {
        rows = ops.int8_quantize(x, block);
        push_copies(nodes, rows, {x});
        nodes.push_back(rows);
    }
    return rows;
}

ggml_tensor * Rewriter::packed_rows(ggml_tensor * x, std::vector<ggml_tensor *> & nodes) {
    ggml_tensor *& rows = packed[x];
    if (rows == nullptr) {
        rows = ops.bf16_pack(x);
        push_copies(nodes, rows, {x});
        nodes.push_back(rows);
    }
    return rows;
}

bool Rewriter::is_bf16_sum(const ggml_tensor * sum) const {
    const ggml_tensor * base = sum->src[0];
    return precision == Precision::automatic && is_op(base, GGML_OP_MUL_MAT) &&
           ops.can_bf16_product(base->src[0], base->src[1]);
}

// w x + scale b h as one node. What it is made of has its operands already.
ggml_tensor * Rewriter::bf16_lora(const ggml_tensor * sum, const ggml_tensor * product,
                                  std::vector<ggml_tensor *> & nodes) {
    ggml_tensor *w = sum->src[0]->src[0], *x = sum->src[0]->src[1];
    ggml_tensor *b = product->src[0], *h = product->src[1];
    const float scale = param(sum->src[1], 0);
    ggml_tensor * packed_x = packed_rows(x, nodes);
    ggml_tensor * packed_h = ops.bf16_pack(h, scale);
    push_copies(nodes, packed_h, {h});
    nodes.push_back(packed_h);
    // with dropout, a is applied to another x
    ggml_tensor * a = bf16_inner.count(h) != 0 ? h->src[0] : nullptr;
    return ops.bf16_lora(w, x, packed_x, a, b, h, packed_h, scale);
}

// The node that does what ggml's does, but better; nullptr where ggml's will do. What it needs beside the operands of
// ggml's is added to `nodes`.
ggml_tensor * Rewriter::own_node(ggml_tensor * node, std::vector<ggml_tensor *> & nodes) {
    ggml_tensor * own = nullptr;
    Activation f;
    const bool from_table = activation_of(node, f) && (f == Activation::gelu || f == Activation::gelu_quick);
    ggml_tensor *w = node->src[0], *x = node->src[1];
    if (is_op(node, GGML_OP_UNARY) && from_table) {
        own = ops.activation(f, w);
    } else if (is_op(node, GGML_OP_GLU) && from_table) {
        own = ops.glu(f, w, x, x == nullptr && node->op_params[1] != 0);
    } else if (bf16_inner.count(node) != 0) {
        own = ops.bf16_product(w, x, packed_rows(x, nodes));
        bf16_inner.insert(own);
        return own;
    } else if (is_float_product(node)) {
        own = ops.matmul(w, x);
    } else if (is_op(node, GGML_OP_MUL_MAT) && precision == Precision::f32 && GraphOps::can_weight_forward(w, x)) {
        own = ops.weight_forward(w, x);
    } else if (is_op(node, GGML_OP_MUL_MAT) && precision == Precision::automatic && ops.can_bf16_product(w, x)) {
        return ops.bf16_product(w, x, packed_rows(x, nodes));
    } else if (is_op(node, GGML_OP_MUL_MAT) && precision == Precision::automatic && GraphOps::can_int8_product(w, x)) {
        return ops.int8_product(w, x, quantized_rows(x, w->type, nodes));
    }
    if (own != nullptr) {
        push_copies(nodes, own, {w, x});
    }
    return own;
}

void Rewriter::rewrite(std::vector<ggml_tensor *> & nodes) {
    count_uses(nodes);
    quantized.clear();
    packed.clear();
    // what is fused is found on llama.cpp's own nodes, before any of them changes
    std::unordered_map<const ggml_tensor *, Attention> attentions;
    std::unordered_map<const ggml_tensor *, const ggml_tensor *> low_rank_products;
    std::unordered_set<const ggml_tensor *> superfluous;
    std::unordered_set<const ggml_tensor *> bf16_sums;
    // a model of float32 weights stays exact
    const bool rounds = std::any_of(nodes.begin(), nodes.end(), [&](const ggml_tensor * node) {
        return is_op(node, GGML_OP_MUL_MAT) && ops.can_bf16_product(node->src[0], node->src[1]);
    });
    for (const ggml_tensor * node : nodes) {
        if (precision == Precision::llama_cpp) {
            break;
        }
        if (auto attention = match_attention(node)) {
            attention->params.bf16 = rounds;
            superfluous.insert(attention->inner.begin(), attention->inner.end());
            attentions[node] = std::move(*attention);
        } else if (const ggml_tensor * product = low_rank_product(node)) {
            superfluous.insert({product, node->src[1]});
            low_rank_products[node] = product;
            if (is_bf16_sum(node)) {
                const ggml_tensor *base = node->src[0], *h = product->src[1];
                superfluous.insert(base);
                bf16_sums.insert(node);
                if (dropout.p == 0 && is_float_product(h) && lora_a.count(h->src[0]) != 0 && used_once(h) &&
                    h->src[1] == base->src[1]) {
                    bf16_inner.insert(h);
                }
            }
        }
    }
    std::vector<ggml_tensor *> result;
    for (ggml_tensor * node : nodes) {
        use_current_operands(node);
        if (superfluous.count(node) != 0) {
            continue;
        }
        ggml_tensor * own = nullptr;
        if (const auto found = attentions.find(node); found != attentions.end()) {
            const Attention & a = found->second;
            const KeyRanges & keys = ranges[a.ranges];
            const GraphOps::AttentionNodes made = ops.attention(a.q, a.k, a.v, keys.first, keys.end, a.params);
            result.push_back(made.packed);
            own = made.out;
        } else if (const auto product = low_rank_products.find(node); product != low_rank_products.end()) {
            const ggml_tensor * inner = product->second;
            own = bf16_sums.count(node) != 0
                      ? bf16_lora(node, inner, result)
                      : ops.lora_add(node->src[0], inner->src[0], inner->src[1], param(node->src[1], 0));
        } else {
            const auto a = lora_a.find(node->src[0]);
            if (is_op(node, GGML_OP_MUL_MAT) && a != lora_a.end() && dropout.p > 0) {
                ggml_tensor * x = node->src[1];
                node->src[1] = ops.dropout(x, {dropout.seed, dropout.counter * lora_a.size() + a->second, dropout.p});
                push_copies(result, node->src[1], {x});
                result.push_back(node->src[1]);
            }
            own = precision == Precision::llama_cpp ? nullptr : own_node(node, result);
            if (own != nullptr) {
                ops.set_replaced(own, node);
            }
        }
        if (own != nullptr) {
            ggml_set_name(own, node->name);
            replaced[node] = own;
        }
        result.push_back(own != nullptr ? own : node);
    }
    nodes = std::move(result);
}

}  // namespace ggtune
