#include "engine/rewriter.h"

#include <algorithm>
#include <cstring>

namespace ggtune {

namespace {

bool is_op(const ggml_tensor * node, ggml_op op) {
    return node != nullptr && node->op == op;
}

bool has_float_operands(const ggml_tensor * node) {
    return node->src[0]->type == GGML_TYPE_F32 && node->src[1]->type == GGML_TYPE_F32;
}

bool is_float_product(const ggml_tensor * node) {
    return is_op(node, GGML_OP_MUL_MAT) && has_float_operands(node);
}

// by the matrices of experts
bool is_float_expert_product(const ggml_tensor * node) {
    return is_op(node, GGML_OP_MUL_MAT_ID) && has_float_operands(node);
}

// multiplication by a number, without an addition
bool is_multiple(const ggml_tensor * node) {
    return is_op(node, GGML_OP_SCALE) && float_param(node, 1) == 0.0f;
}

// a leaf with contiguous elements, or nothing
bool is_frozen_row(const ggml_tensor * t) {
    return t == nullptr || (t->op == GGML_OP_NONE && t->type == GGML_TYPE_F32 && t->nb[0] == sizeof(float));
}

// heads with contiguous elements, [head_dim, T, heads]
bool is_heads(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 && t->ne[3] == 1 && t->nb[0] == sizeof(float);
}

}  // namespace

Rewriter::Rewriter(Implementations & implementations, const ForwardGraph & forward, const Adapter & adapter,
                   const DropoutOptions & dropout, Precision precision,
                   const std::unordered_map<const ggml_tensor *, ggml_tensor *> & in_place_of)
    : implementations_(implementations),
      forward_(forward),
      dropout_(dropout),
      precision_(precision),
      replaced_(in_place_of) {
    for (size_t i = 0; i < adapter.pairs().size(); i++) {
        lora_a_[adapter.pairs()[i].a] = i;
        lora_b_.insert(adapter.pairs()[i].b);
    }
}

ggml_tensor * Rewriter::current(ggml_tensor * node) const {
    const auto it = replaced_.find(node);
    return it != replaced_.end() ? it->second : node;
}

void Rewriter::count_uses(const std::vector<ggml_tensor *> & nodes) {
    for (const ggml_tensor * node : nodes) {
        for (const ggml_tensor * src : node->src) {
            n_uses_[src]++;
        }
    }
}

int64_t Rewriter::n_uses(const ggml_tensor * node) const {
    const auto it = n_uses_.find(node);
    return it != n_uses_.end() ? it->second : 0;
}

bool Rewriter::find_ranges(const ggml_tensor * mask, int64_t n_tokens, size_t & index) {
    const auto known = ranges_of_mask_.find(mask);
    if (known != ranges_of_mask_.end()) {
        index = known->second;
        return true;
    }
    KeyRanges found;
    if (!forward_.visible_keys(mask, found.first_values, found.end_values)) {
        return false;
    }
    for (ggml_tensor ** t : {&found.first, &found.end}) {
        *t = ggml_new_tensor_1d(implementations_.otherwise.ctx, GGML_TYPE_I32, n_tokens);
        ggml_set_input(*t);
    }
    index = ranges_.size();
    ranges_of_mask_[mask] = index;
    ranges_.push_back(std::move(found));
    return true;
}

// llama.cpp's attention without its own fused op ends in cont(permute(v^T softmax(scale cap(k^T q) + mask))).
std::optional<Rewriter::Attention> Rewriter::match_attention(const ggml_tensor * node) {
    static const int32_t swap_tokens_and_heads[4] = {0, 2, 1, 3};
    const ggml_tensor * permuted = is_op(node, GGML_OP_CONT) ? node->src[0] : nullptr;
    if (!implementations_.of(node).has_attention() || !is_op(permuted, GGML_OP_PERMUTE) ||
        std::memcmp(permuted->op_params, swap_tokens_and_heads, sizeof(swap_tokens_and_heads)) != 0) {
        return std::nullopt;
    }
    const ggml_tensor * kqv = permuted->src[0];
    if (!is_float_product(kqv) || !is_op(kqv->src[0], GGML_OP_CONT) || !is_op(kqv->src[0]->src[0], GGML_OP_TRANSPOSE)) {
        return std::nullopt;
    }
    const ggml_tensor * softmax = kqv->src[1];
    const bool plain = is_op(softmax, GGML_OP_SOFT_MAX) && softmax->src[1] != nullptr;
    if (!plain || float_param(softmax, 1) != 0.0f || !is_frozen_row(softmax->src[2])) {
        return std::nullopt;
    }
    Attention found;
    found.inner = {permuted, kqv, kqv->src[0], kqv->src[0]->src[0], softmax};
    found.params = {1.0f, 0.0f, float_param(softmax, 0)};
    const ggml_tensor * kq = softmax->src[0];
    if (is_multiple(kq)) {
        const ggml_tensor * tanh = kq->src[0];
        if (!is_op(tanh, GGML_OP_UNARY) || ggml_get_unary_op(tanh) != GGML_UNARY_OP_TANH ||
            !is_multiple(tanh->src[0])) {
            return std::nullopt;
        }
        const ggml_tensor * inner = tanh->src[0];
        found.params.softcap = float_param(kq, 0);
        found.params.pre_scale = float_param(inner, 0) * found.params.softcap;
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
    found.sinks = softmax->src[2];
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

// llama.cpp adds up the results of a token's experts as add(... add(view, view) ..., view) of mul(results, weights), a
// view for each expert in turn, or of the results alone.
std::optional<Rewriter::ExpertSum> Rewriter::match_expert_sum(const ggml_tensor * node) const {
    const ggml_tensor * last = is_op(node, GGML_OP_ADD) ? node->src[1] : nullptr;
    if (!implementations_.of(node).has_expert_sum() || !is_op(last, GGML_OP_VIEW)) {
        return std::nullopt;
    }
    ggml_tensor * terms = last->src[0];
    const int64_t n_used = terms->ne[1];
    if (n_used < 2 || n_uses(terms) != n_used || terms->type != GGML_TYPE_F32 || terms->ne[3] != 1 ||
        !ggml_is_contiguous(terms) || terms->view_src != nullptr) {
        return std::nullopt;
    }
    const auto shows = [&](const ggml_tensor * view, int64_t expert) {
        return is_op(view, GGML_OP_VIEW) && view->src[0] == terms && view->type == GGML_TYPE_F32 && used_once(view) &&
               view->ne[0] == terms->ne[0] && view->ne[1] == terms->ne[2] && ggml_nrows(view) == view->ne[1] &&
               view->nb[1] == terms->nb[2] && view->view_offs == expert * terms->nb[1];
    };
    ExpertSum found = {terms, false, {}};
    const ggml_tensor * sum = node;
    for (int64_t expert = n_used - 1; expert > 0; expert--) {
        if (!is_op(sum, GGML_OP_ADD) || (sum != node && !used_once(sum)) || !shows(sum->src[1], expert)) {
            return std::nullopt;
        }
        found.inner.insert(found.inner.end(), {sum, sum->src[1]});
        sum = sum->src[0];
    }
    if (!shows(sum, 0)) {
        return std::nullopt;
    }
    found.inner.push_back(sum);
    found.inner.erase(found.inner.begin());  // the node itself
    const ggml_tensor * weights = is_op(terms, GGML_OP_MUL) ? terms->src[1] : nullptr;
    found.weighted = weights != nullptr && terms->src[0]->type == GGML_TYPE_F32 && weights->type == GGML_TYPE_F32 &&
                     weights->ne[0] == 1 && weights->ne[1] == n_used && weights->ne[2] == terms->ne[2];
    if (found.weighted) {
        found.inner.push_back(terms);
    }
    return found;
}

// llama.cpp adds LoRA products as add(w x, scale(b (a x)))
const ggml_tensor * Rewriter::low_rank_product(const ggml_tensor * sum) const {
    const ggml_tensor * scaled = is_op(sum, GGML_OP_ADD) ? sum->src[1] : nullptr;
    const ggml_tensor * product = scaled != nullptr && is_multiple(scaled) ? scaled->src[0] : nullptr;
    const bool multiplies = (is_float_product(product) && ggml_is_matrix(product)) || is_float_expert_product(product);
    const bool fits = multiplies && lora_b_.count(product->src[0]) != 0 && used_once(product) && used_once(scaled) &&
                      used_once(sum->src[0]);
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

void Rewriter::list(ggml_tensor * node, const ggml_tensor * in_place_of, std::vector<ggml_tensor *> & nodes) {
    if (node->op == GGML_OP_NONE || !listed_.insert(node).second) {
        return;
    }
    for (ggml_tensor * src : node->src) {
        if (src != nullptr) {
            list(src, in_place_of, nodes);
        }
    }
    if (node != in_place_of) {
        implementations_.assign(node, implementations_.of(in_place_of), implementations_.layer_of(in_place_of));
    }
    nodes.push_back(node);
}

bool Rewriter::joins(const ggml_tensor * sum) const {
    const ggml_tensor * base = sum->src[0];
    return is_op(base, GGML_OP_MUL_MAT) && implementations_.of(sum).joins_lora(base->src[0], base->src[1]);
}

// What it is made of has its operands already.
ggml_tensor * Rewriter::lora_sum(const ggml_tensor * sum, const ggml_tensor * product) {
    Ops & ops = implementations_.of(sum);
    ggml_tensor *base = sum->src[0], *b = product->src[0], *h = product->src[1];
    const float scale = float_param(sum->src[1], 0);
    if (is_op(product, GGML_OP_MUL_MAT_ID)) {
        return ops.expert_lora_add(base, b, h, product->src[2], scale);
    }
    if (joined_sums_.count(sum) == 0) {
        return ops.lora_add(base, b, h, scale);
    }
    ggml_tensor * a = joined_inner_.count(h) != 0 ? h->src[0] : nullptr;
    return ops.lora_product(base->src[0], base->src[1], a, b, h, scale);
}

// The node that does what ggml's does, but better; nullptr where ggml's will do.
ggml_tensor * Rewriter::own_node(ggml_tensor * node) {
    Ops & ops = implementations_.of(node);
    if (joined_inner_.count(node) == 0) {
        return ops.replacement(node);
    }
    ggml_tensor * own = ops.low_rank(node->src[0], node->src[1]);
    joined_inner_.insert(own);
    return own;
}

void Rewriter::rewrite(std::vector<ggml_tensor *> & nodes) {
    count_uses(nodes);
    for (Ops * ops : implementations_.all()) {
        ops->begin_stretch(nodes);
    }
    // what is fused is found on llama.cpp's own nodes, before any of them changes
    std::unordered_map<const ggml_tensor *, Attention> attentions;
    std::unordered_map<const ggml_tensor *, ExpertSum> expert_sums;
    std::unordered_map<const ggml_tensor *, const ggml_tensor *> low_rank_products;
    std::unordered_set<const ggml_tensor *> superfluous;
    for (const ggml_tensor * node : nodes) {
        if (precision_ == Precision::llama_cpp) {
            break;
        }
        if (auto attention = match_attention(node)) {
            superfluous.insert(attention->inner.begin(), attention->inner.end());
            attentions[node] = std::move(*attention);
        } else if (auto sum = match_expert_sum(node)) {
            superfluous.insert(sum->inner.begin(), sum->inner.end());
            expert_sums[node] = std::move(*sum);
        } else if (const ggml_tensor * product = low_rank_product(node)) {
            superfluous.insert({product, node->src[1]});
            low_rank_products[node] = product;
            if (joins(node)) {
                const ggml_tensor *base = node->src[0], *h = product->src[1];
                superfluous.insert(base);
                joined_sums_.insert(node);
                // with dropout, a is applied to another x
                if (dropout_.p == 0 && is_float_product(h) && lora_a_.count(h->src[0]) != 0 && used_once(h) &&
                    h->src[1] == base->src[1]) {
                    joined_inner_.insert(h);
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
        Ops & ops = implementations_.of(node);
        ggml_tensor * own = nullptr;
        if (const auto found = attentions.find(node); found != attentions.end()) {
            const Attention & a = found->second;
            own = ops.attention(a.q, a.k, a.v, ranges_[a.ranges], a.params, a.sinks);
        } else if (const auto sum = expert_sums.find(node); sum != expert_sums.end()) {
            const ggml_tensor * terms = sum->second.terms;
            own = sum->second.weighted ? ops.expert_sum(terms->src[0], terms->src[1])
                                       : ops.expert_sum(current(sum->second.terms), nullptr);
        } else if (const auto product = low_rank_products.find(node); product != low_rank_products.end()) {
            own = lora_sum(node, product->second);
        } else {
            const auto a = lora_a_.find(node->src[0]);
            const bool multiplies = is_op(node, GGML_OP_MUL_MAT) || is_op(node, GGML_OP_MUL_MAT_ID);
            if (multiplies && a != lora_a_.end() && dropout_.p > 0) {
                node->src[1] = ops.dropout(node->src[1],
                                           {dropout_.seed, dropout_.counter * lora_a_.size() + a->second, dropout_.p});
            }
            own = precision_ == Precision::llama_cpp ? nullptr : own_node(node);
        }
        if (own != nullptr) {
            ggml_set_name(own, node->name);
            replaced_[node] = own;
        }
        list(own != nullptr ? own : node, node, result);
    }
    nodes = std::move(result);
}

}  // namespace ggtune
