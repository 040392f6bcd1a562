// Nodes of ggtune's own in a ggml graph: custom CPU operations that run the kernels of cpp/kernels.
//
// Symbols: T tokens, shapes in ggml order (ne[0] runs fastest). d<name> is the gradient of the loss with respect to
// <name>.
#pragma once

#include <ggml.h>

#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/activations.h"
#include "kernels/dropout.h"

namespace ggtune {

using kernels::Activation;

// Makes nodes in one ggml context and keeps their parameters alive.
class GraphOps {
  public:
    // For profiles: what a node does, custom operations by their own names.
    static std::string describe(const ggml_tensor * node);

    // may_round: operands of products may be rounded, to bf16 or to integers, where that is faster.
    explicit GraphOps(ggml_context * ctx_, bool may_round_ = false);
    GraphOps(const GraphOps &) = delete;
    GraphOps & operator=(const GraphOps &) = delete;

    ggml_context * const ctx;
    const bool may_round;
    const bool bf16;  // to bf16, on the CPU's matrix unit

    // t, or a contiguous copy of it
    ggml_tensor * contiguous(ggml_tensor * t);
    // a tensor to be filled in parts
    ggml_tensor * zeros_like(const ggml_tensor * t);

    // y[o, t, ...] = sum_i w[i, o, ...] x[i, t, ...], F32, with ggml's broadcast of w over the outer dimensions of x
    ggml_tensor * matmul(ggml_tensor * w, ggml_tensor * x);
    // y[o, t] for a frozen matrix w of any type, in float32
    static bool can_weight_forward(const ggml_tensor * w, const ggml_tensor * x);
    ggml_tensor * weight_forward(ggml_tensor * w, ggml_tensor * x);
    // The same by int8 dot products with rounded activations, as ggml does it but for all tokens at a time; only where
    // the type, the CPU and the number of rows make that the fastest way.
    static bool can_int8_product(const ggml_tensor * w, const ggml_tensor * x);
    // `quantized` is what int8_quantize() makes of x for int8_activation_block(w->type).
    ggml_tensor * int8_product(ggml_tensor * w, ggml_tensor * x, ggml_tensor * quantized);
    ggml_tensor * int8_quantize(ggml_tensor * x, int64_t activation_block);
    static int64_t int8_activation_block(ggml_type type);
    // y = w x in bf16 with sums in float32, w of any type but F32, whose products stay exact; `packed` is what bf16_pack() makes of x.
    bool can_bf16_product(const ggml_tensor * w, const ggml_tensor * x) const;
    ggml_tensor * bf16_product(ggml_tensor * w, ggml_tensor * x, ggml_tensor * packed);
    ggml_tensor * bf16_pack(ggml_tensor * x, float scale = 1.0f);
    // y = w x + scale b h with h = a x, of which `packed_h` is bf16_pack(h, scale).
    ggml_tensor * bf16_lora(ggml_tensor * w, ggml_tensor * x, ggml_tensor * packed, ggml_tensor * a, ggml_tensor * b,
                            ggml_tensor * h, ggml_tensor * packed_h, float scale);
    // ne[1] of a node when its operands are cut to so many rows
    int64_t cut_rows(const ggml_tensor * node, int64_t n_rows) const;
    // y + scale * b h, written over y: the end of a LoRA product. b ne = [rank, o], h ne = [rank, t], y ne = [o, t]
    ggml_tensor * lora_add(ggml_tensor * y, ggml_tensor * b, ggml_tensor * h, float scale);

    // The gradients of products are multiplied by `scale` and added to `accumulator` in place where there is one.
    // dx[i, t, ...], w F32
    ggml_tensor * matmul_dx(ggml_tensor * w, ggml_tensor * dy, float scale, ggml_tensor * accumulator);
    // dw[i, o, ...]
    ggml_tensor * matmul_dw(ggml_tensor * w, ggml_tensor * x, ggml_tensor * dy, float scale, ggml_tensor * accumulator);
    // dx[i, t] for a frozen matrix w of any type, ne = [i, o]
    ggml_tensor * weight_dx(ggml_tensor * w, ggml_tensor * dy, const int64_t ne_x[4], ggml_tensor * accumulator);
    // The same in bf16, and the gradient of bf16_lora() with respect to x: w^T dy + scale a^T dh. dh ne = [rank, t]
    ggml_tensor * bf16_dx(ggml_tensor * w, ggml_tensor * dy, const int64_t ne_x[4], ggml_tensor * accumulator);
    // dw[i, o] += scale * x dy of a low-rank matrix, in bf16
    ggml_tensor * bf16_dw(ggml_tensor * x, ggml_tensor * dy, float scale, ggml_tensor * accumulator);
    ggml_tensor * bf16_lora_dx(ggml_tensor * w, ggml_tensor * dy, ggml_tensor * a, ggml_tensor * dh, float scale,
                               const int64_t ne_x[4], ggml_tensor * accumulator);

    ggml_tensor * activation(Activation f, ggml_tensor * x);
    ggml_tensor * activation_dx(Activation f, ggml_tensor * x, ggml_tensor * dy);
    // y = f(gate) * up; up == nullptr: gate holds both halves of each row, `swapped` puts the gate second
    ggml_tensor * glu(Activation f, ggml_tensor * gate, ggml_tensor * up, bool swapped);
    // gradient of both halves, ne[0] twice that of dy: in the order of the fused input, gate first where the inputs are
    // two
    ggml_tensor * glu_dx(Activation f, ggml_tensor * gate, ggml_tensor * up, bool swapped, ggml_tensor * dy);

    ggml_tensor * softmax_dx(ggml_tensor * y, ggml_tensor * dy, float scale);
    ggml_tensor * rms_norm_dx(ggml_tensor * x, ggml_tensor * dy, float eps);
    ggml_tensor * norm_dx(ggml_tensor * x, ggml_tensor * dy, float eps);
    ggml_tensor * clamp_dx(ggml_tensor * x, ggml_tensor * dy, float min, float max);
    // gradient of `source` of which `view` shows a part: zero outside
    ggml_tensor * view_dx(ggml_tensor * source, ggml_tensor * view, ggml_tensor * dy);
    // gradient of the matrix whose rows `ids` were taken
    ggml_tensor * rows_dx(ggml_tensor * x, ggml_tensor * ids, ggml_tensor * dy);
    ggml_tensor * dropout(ggml_tensor * x, const kernels::DropoutMask & mask);

    // log p(target) of each row; ne = [rows]
    ggml_tensor * log_probabilities(ggml_tensor * logits, ggml_tensor * targets);
    // d(sum of -weight log p)/dlogits, written over the logits once log_probs has been computed from them
    ggml_tensor * cross_entropy_dx(ggml_tensor * logits, ggml_tensor * targets, ggml_tensor * weights,
                                   ggml_tensor * log_probs);

    // softmax(post_scale * cap(pre_scale * q . k)) v over the keys [first, end) of each token (I32, ne = [T]); see
    // kernels/attention.h. q ne = [head_dim, T, n_head], k and v the same with n_head_kv; any strides over T and heads.
    // `out` ne = [head_dim_v * n_head, T] is a view of `packed`, which also holds the log-sum-exps for the gradient.
    struct AttentionParams {
        float pre_scale, softcap, post_scale;
        bool bf16 = false;  // products of operands rounded to bf16, forward and backward
    };
    struct AttentionNodes {
        ggml_tensor * packed;
        ggml_tensor * out;
    };
    AttentionNodes attention(ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, ggml_tensor * first, ggml_tensor * end,
                             const AttentionParams & params);
    struct AttentionGradients {
        ggml_tensor *dq, *dk, *dv;  // shapes of q, k, v
    };
    AttentionGradients attention_dx(ggml_tensor * out, ggml_tensor * d_out);

    // What a node made here stands for, where autodiff has to know.
    struct Origin {
        enum class Kind { none, replacement, dropout, lora_add, bf16_lora, attention, quantized, packed };
        Kind kind = Kind::none;
        const ggml_tensor * replaced = nullptr;  // replacement: ggml's node with op and parameters
        const kernels::DropoutMask * dropout = nullptr;
        float lora_scale = 0.0f;
        const AttentionParams * attention = nullptr;
        ggml_tensor * lora_a = nullptr;
    };
    void set_replaced(const ggml_tensor * node, const ggml_tensor * by_ggml) {
        origins[node] = {Origin::Kind::replacement, by_ggml};
    }
    Origin origin(const ggml_tensor * node) const;
    void copy_origin(const ggml_tensor * from, const ggml_tensor * to);

  private:
    template <typename T>
    T * keep(T value) {
        auto owned = std::make_shared<T>(std::move(value));
        kept.push_back(owned);
        return owned.get();
    }

    ggml_tensor * product_gradient(const int64_t ne[4], ggml_tensor * a, ggml_tensor * b, float scale,
                                   ggml_tensor * accumulator, ggml_custom_op_t fun);

    // made in place: nodes with a dealer can't be moved
    template <typename T>
    T * make() {
        auto owned = std::make_shared<T>();
        kept.push_back(owned);
        return owned.get();
    }

    static int64_t packed_rows(int64_t n_rows);
    ggml_tensor * packed_tensor(ggml_tensor * x, ggml_custom_op_t fun, void * node);
    ggml_tensor * pack_gradients(ggml_tensor * dy, float scale);
    ggml_tensor * bf16_gradient(const int64_t ne[4], const std::vector<ggml_tensor *> & operands,
                                ggml_tensor * accumulator);

    std::map<std::pair<const ggml_tensor *, float>, ggml_tensor *> packed_gradients;
    std::vector<std::shared_ptr<void>> kept;
    std::unordered_map<const ggml_tensor *, Origin> origins;
};

}  // namespace ggtune
