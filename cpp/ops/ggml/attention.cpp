// Attention, a stretch of rows at a time.
#include <algorithm>
#include <limits>

#include "ops/ggml/ggml_ops.h"

namespace ggtune {

namespace {

// Short samples are taken together up to so many rows: what is computed for nothing costs less than more nodes do.
constexpr int64_t kRowsTogether = 128;
constexpr int64_t kLeastRows = 8;

// rows [begin, begin + n) of t ne = [width, T, heads], contiguous
ggml_tensor * rows_of(ggml_context * ctx, ggml_tensor * t, int64_t begin, int64_t n) {
    return ggml_view_3d(ctx, t, t->ne[0], n, t->ne[2], t->nb[1], t->nb[2], begin * t->nb[1]);
}

}  // namespace

std::vector<GgmlOps::RowStretch> GgmlOps::stretches_of(const KeyRanges & keys, int64_t n_heads) {
    const auto n_tokens = static_cast<int64_t>(keys.first_values.size());
    const auto starts_sample = [&](int64_t row) { return keys.first_values[row] == row; };
    const auto bytes = [&](int64_t n_rows, int64_t n_keys) {
        return n_rows * n_keys * n_heads * static_cast<int64_t>(sizeof(float));
    };
    std::vector<RowStretch> stretches;
    for (int64_t row = 0; row < n_tokens;) {
        RowStretch stretch = {row, 0, keys.first_values[row], 0, nullptr};
        int64_t end = row;
        while (end < n_tokens) {
            if (end > row && starts_sample(end)) {
                int64_t end_of_sample = end + 1;
                while (end_of_sample < n_tokens && end_of_sample - row <= kRowsTogether &&
                       !starts_sample(end_of_sample)) {
                    end_of_sample++;
                }
                if (end_of_sample - row > kRowsTogether) {
                    break;
                }
            }
            const int64_t key = std::min<int64_t>(stretch.key, keys.first_values[end]);
            const int64_t n_keys = std::max<int64_t>(stretch.key + stretch.n_keys, keys.end_values[end]) - key;
            if (end - row >= kLeastRows && bytes(end + 1 - row, n_keys) > traits_.max_score_bytes) {
                break;
            }
            stretch.key = key;
            stretch.n_keys = n_keys;
            end++;
        }
        stretch.n_rows = end - row;
        stretch.mask = mask_of(keys, stretch);
        stretches.push_back(stretch);
        row = end;
    }
    return stretches;
}

// Equal ones are one: of a batch of equally long samples, of all layers.
ggml_tensor * GgmlOps::mask_of(const KeyRanges & keys, const RowStretch & stretch) {
    std::vector<int64_t> content = {stretch.n_keys};
    for (int64_t row = stretch.row; row < stretch.row + stretch.n_rows; row++) {
        content.push_back(keys.first_values[row] - stretch.key);
        content.push_back(keys.end_values[row] - stretch.key);
    }
    ggml_tensor *& mask = masks_[content];
    if (mask == nullptr) {
        const ggml_fp16_t seen = ggml_fp32_to_fp16(0.0f);
        const ggml_fp16_t hidden = ggml_fp32_to_fp16(-std::numeric_limits<float>::infinity());
        std::vector<ggml_fp16_t> values(stretch.n_keys * stretch.n_rows, hidden);
        for (int64_t i = 0; i < stretch.n_rows; i++) {
            std::fill(values.begin() + i * stretch.n_keys + content[1 + 2 * i],
                      values.begin() + i * stretch.n_keys + content[2 + 2 * i], seen);
        }
        const int64_t ne[4] = {stretch.n_keys, stretch.n_rows, 1, 1};
        mask = host_input(GGML_TYPE_F16, ne, values.data());
    }
    return mask;
}

// q and k contiguous
GgmlOps::Scores GgmlOps::scores_of(const Attention & attention, const RowStretch & stretch, ggml_tensor * q,
                                   ggml_tensor * k, ggml_tensor * sinks,
                                   const std::vector<ggml_tensor *> & after) const {
    const AttentionParams & params = attention.params;
    ggml_tensor * k_seen = rows_of(ctx, k, stretch.key, stretch.n_keys);
    std::copy(after.begin(), after.end(), k_seen->src + 1);  // a view's further operands say when, nothing else
    ggml_tensor * scores = multiplied(k_seen, rows_of(ctx, q, stretch.row, stretch.n_rows));
    Scores result = {nullptr, nullptr};
    float scale = params.pre_scale * params.post_scale;
    if (params.softcap != 0.0f) {
        result.tanh = ggml_tanh(ctx, ggml_scale(ctx, scores, params.pre_scale / params.softcap));
        scores = result.tanh;
        scale = params.softcap * params.post_scale;
    }
    result.probabilities = ggml_soft_max_ext(ctx, scores, stretch.mask, scale, 0.0f);
    if (sinks != nullptr) {
        ggml_soft_max_add_sinks(result.probabilities, sinks);
    }
    return result;
}

ggml_tensor * GgmlOps::attention(ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, const KeyRanges & keys,
                                 const AttentionParams & params, ggml_tensor * sinks) {
    static const Op op = {"attention", attention_rule, Rows::together};
    const Attention attention = {stretches_of(keys, q->ne[2]), params, sinks != nullptr};
    ggml_tensor *q_rows = contiguous(q), *k_rows = contiguous(k), *v_rows = contiguous(v);
    const int64_t n_tokens = q->ne[1], width = v->ne[0] * q->ne[2];
    ggml_tensor * out = nullptr;
    if (attention.stretches.size() > 1) {
        out = zeros_after(q_rows, ggml_new_tensor_2d(ctx, GGML_TYPE_F32, width, n_tokens));
    }
    for (const RowStretch & stretch : attention.stretches) {
        ggml_tensor * p = scores_of(attention, stretch, q_rows, k_rows, sinks, {}).probabilities;
        ggml_tensor * seen = transposed(rows_of(ctx, v_rows, stretch.key, stretch.n_keys));
        ggml_tensor * by_heads = multiplied(seen, p);  // ne = [head_dim_v, n_rows, n_head]
        ggml_tensor * rows =
            ggml_reshape_2d(ctx, ggml_cont(ctx, ggml_permute(ctx, by_heads, 0, 2, 1, 3)), width, stretch.n_rows);
        out = out != nullptr ? ggml_set_2d_inplace(ctx, out, rows, out->nb[1], stretch.row * out->nb[1]) : rows;
    }
    std::vector<ggml_tensor *> operands = {q, k, v};
    if (sinks != nullptr) {
        operands.push_back(sinks);
    }
    return standing_for(ctx, out, operands, keep_node(op, attention));
}

void GgmlOps::attention_rule(const BackwardStep & s) {
    const auto & attention = *static_cast<const Attention *>(custom_node(s.y)->params);
    static_cast<GgmlOps &>(s.ops).attention_dx(s, attention);
}

void GgmlOps::attention_dx(const BackwardStep & s, const Attention & attention) {
    const AttentionParams & params = attention.params;
    ggml_tensor *q = operand_behind(s.y, 0), *k = operand_behind(s.y, 1), *v = operand_behind(s.y, 2);
    ggml_tensor * sinks = attention.has_sinks ? operand_behind(s.y, 3) : nullptr;
    ggml_tensor *q_rows = contiguous(q), *k_rows = contiguous(k), *v_rows = contiguous(v);
    ggml_tensor * dy = contiguous(s.dy);
    const bool whole = attention.stretches.size() == 1;
    ggml_tensor *dq = nullptr, *dk = nullptr, *dv = nullptr;
    // a part of the gradient of an operand that is contiguous, where other parts may be added to the same rows
    const auto put = [&](ggml_tensor *& sum, const ggml_tensor * operand, ggml_tensor * part, int64_t row, bool adds) {
        if (whole) {
            sum = part;
            return;
        }
        sum = sum != nullptr ? sum : zeros_after(dy, operand);
        const size_t at = row * sum->nb[1];
        sum = adds ? ggml_acc_inplace(ctx, sum, part, sum->nb[1], sum->nb[2], sum->nb[3], at)
                   : ggml_set_inplace(ctx, sum, part, sum->nb[1], sum->nb[2], sum->nb[3], at);
    };
    for (const RowStretch & stretch : attention.stretches) {
        // not before all gradients of the stretch in front: else the scores of all wait for the last one of them
        std::vector<ggml_tensor *> before;
        for (ggml_tensor * sum : {dq, dk, dv}) {
            if (sum != nullptr) {
                before.push_back(sum);
            }
        }
        const Scores scores = scores_of(attention, stretch, q_rows, k_rows, sinks, before);
        ggml_tensor * rows = ggml_view_3d(ctx, dy, v->ne[0], q->ne[2], stretch.n_rows, v->ne[0] * sizeof(float),
                                          dy->nb[1], stretch.row * dy->nb[1]);
        ggml_tensor * d_out = ggml_cont(ctx, ggml_permute(ctx, rows, 0, 2, 1, 3));  // [head_dim_v, n_rows, n_head]
        ggml_tensor * k_seen = rows_of(ctx, k_rows, stretch.key, stretch.n_keys);
        ggml_tensor * v_seen = rows_of(ctx, v_rows, stretch.key, stretch.n_keys);
        if (s.needs(v)) {
            put(dv, v, matmul_dw(v_seen, d_out, scores.probabilities, 1.0f, nullptr), stretch.key, true);
        }
        if (!s.needs(q) && !s.needs(k)) {
            continue;
        }
        ggml_tensor * dp = multiplied(v_seen, d_out);
        const float scale =
            scores.tanh != nullptr ? params.softcap * params.post_scale : params.pre_scale * params.post_scale;
        ggml_tensor * d_scores = softmax_dx(scores.probabilities, dp, scale);
        if (scores.tanh != nullptr) {
            d_scores = ggml_scale(ctx, ggml_mul(ctx, d_scores, one_minus(ggml_sqr(ctx, scores.tanh))),
                                  params.pre_scale / params.softcap);
        }
        if (s.needs(q)) {
            put(dq, q, matmul_dx(k_seen, d_scores, 1.0f, nullptr), stretch.row, false);
        }
        if (s.needs(k)) {
            ggml_tensor * q_stretch = rows_of(ctx, q_rows, stretch.row, stretch.n_rows);
            put(dk, k, matmul_dw(k_seen, q_stretch, d_scores, 1.0f, nullptr), stretch.key, true);
        }
    }
    for (const auto & [operand, gradient] : {std::pair(q, dq), std::pair(k, dk), std::pair(v, dv)}) {
        if (gradient != nullptr) {
            s.gradients.add_own(operand, gradient);
        }
    }
}

}  // namespace ggtune
