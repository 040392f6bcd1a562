// Makers of custom CPU nodes, which run the kernels of cpp/kernels. Each family has a file of its own here: what runs,
// its descriptors and its makers.
#pragma once

#include <initializer_list>
#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/cpu/node.h"
#include "ops/ops.h"

namespace ggtune {

class CpuOps : public Ops {
  public:
    // may_round: operands of products may be rounded, to bf16 or to integers, where that is faster.
    explicit CpuOps(ggml_context * ctx, bool may_round = false);

    void begin_stretch(const std::vector<ggml_tensor *> & nodes) override;
    ggml_tensor * replacement(ggml_tensor * node) override;
    ggml_tensor * lora_add(ggml_tensor * y, ggml_tensor * b, ggml_tensor * h, float scale) override;
    ggml_tensor * expert_lora_add(ggml_tensor * y, ggml_tensor * b, ggml_tensor * h, ggml_tensor * ids,
                                  float scale) override;
    bool has_expert_sum() const override { return true; }
    ggml_tensor * expert_sum(ggml_tensor * x, ggml_tensor * weights) override;
    bool joins_lora(const ggml_tensor * w, const ggml_tensor * x) const override { return can_bf16_product(w, x); }
    ggml_tensor * low_rank(ggml_tensor * a, ggml_tensor * x) override { return bf16_product(a, x); }
    ggml_tensor * lora_product(ggml_tensor * w, ggml_tensor * x, ggml_tensor * a, ggml_tensor * b, ggml_tensor * h,
                               float scale) override;
    bool has_attention() const override { return true; }
    ggml_tensor * attention(ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, const KeyRanges & keys,
                            const AttentionParams & params, ggml_tensor * sinks) override;
    ggml_tensor * dropout(ggml_tensor * x, const DropoutMask & mask) override;

    ggml_tensor * log_probabilities(ggml_tensor * logits, ggml_tensor * targets) override;
    ggml_tensor * cross_entropy_dx(ggml_tensor * logits, ggml_tensor * targets, ggml_tensor * weights,
                                   ggml_tensor * log_probs) override;
    ggml_tensor * divergences(ggml_tensor * logits, ggml_tensor * teacher) override;
    ggml_tensor * divergence_dx(ggml_tensor * logits, ggml_tensor * teacher, ggml_tensor * weights,
                                ggml_tensor * divergences) override;

    ggml_tensor * matmul_dx(ggml_tensor * w, ggml_tensor * dy, float scale, ggml_tensor * accumulator) override;
    ggml_tensor * matmul_dw(ggml_tensor * w, ggml_tensor * x, ggml_tensor * dy, float scale,
                            ggml_tensor * accumulator) override;
    ggml_tensor * weight_dx(ggml_tensor * w, ggml_tensor * dy, ggml_tensor * accumulator) override;
    ggml_tensor * scales_dw(ggml_tensor * w, ggml_tensor * x, ggml_tensor * dy, ggml_tensor * accumulator) override;
    ggml_tensor * expert_dx(ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids, ggml_tensor * dy, float scale,
                            ggml_tensor * accumulator) override;
    ggml_tensor * expert_dw(ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids, ggml_tensor * dy, float scale,
                            ggml_tensor * accumulator) override;

    ggml_tensor * activation_dx(Activation f, ggml_tensor * x, ggml_tensor * dy) override;
    ggml_tensor * glu_dx(Activation f, ggml_tensor * gate, ggml_tensor * up, bool swapped, ggml_tensor * dy) override;
    ggml_tensor * limited_glu_dx(const LimitedGlu & f, ggml_tensor * gate, ggml_tensor * up, bool swapped,
                                 ggml_tensor * dy) override;
    ggml_tensor * softmax_dx(ggml_tensor * y, ggml_tensor * dy, float scale) override;
    ggml_tensor * rms_norm_dx(ggml_tensor * x, ggml_tensor * dy, float eps) override;
    ggml_tensor * norm_dx(ggml_tensor * x, ggml_tensor * dy, float eps) override;
    ggml_tensor * l2_norm_dx(ggml_tensor * x, ggml_tensor * dy, float eps) override;
    ggml_tensor * clamp_dx(ggml_tensor * x, ggml_tensor * dy, float min, float max) override;
    ggml_tensor * view_dx(ggml_tensor * source, ggml_tensor * view, ggml_tensor * dy) override;
    ggml_tensor * rows_dx(ggml_tensor * x, ggml_tensor * ids, ggml_tensor * dy) override;
    ggml_tensor * repeat_dx(const ggml_tensor * operand, ggml_tensor * dy) override;
    ggml_tensor * sinkhorn_dx(const Sinkhorn & sinkhorn, ggml_tensor * mixes, ggml_tensor * scale, ggml_tensor * base,
                              ggml_tensor * dy) override;
    ggml_tensor * ssm_conv_dx(ggml_tensor * x, ggml_tensor * filters, ggml_tensor * dy) override;
    std::vector<ggml_tensor *> scan_dx(ggml_op op, ggml_tensor * y, ggml_tensor * dy,
                                       const std::vector<bool> & needed) override;
    ggml_tensor * zeros_like(const ggml_tensor * t) override;

  private:
    using Operands = std::vector<ggml_tensor *>;

    // Parameters of nodes live as long as this. Those with a dealer can't be moved and are made in place.
    template <class P>
    P * keep(P value) {
        auto owned = std::make_shared<P>(std::move(value));
        kept_.push_back(owned);
        return owned.get();
    }
    template <class P>
    P * make() {
        auto owned = std::make_shared<P>();
        kept_.push_back(owned);
        return owned.get();
    }
    // A node of ne and type, or one over the memory of another tensor, which ggml puts before the operands.
    ggml_tensor * node(const CpuOp & op, const int64_t ne[4], Operands operands, void * params = nullptr,
                       ggml_type type = GGML_TYPE_F32);
    ggml_tensor * node_over(const CpuOp & op, ggml_tensor * over, Operands operands, void * params = nullptr);
    // rows at one distance from each other, whatever the outer dimensions
    ggml_tensor * even_rows(ggml_tensor * t) const;

    ggml_tensor * activation(Activation f, ggml_tensor * x);
    ggml_tensor * glu(ggml_tensor * gate, ggml_tensor * up, void * params);
    ggml_tensor * glu_dx(ggml_tensor * gate, ggml_tensor * up, ggml_tensor * dy, void * params);
    ggml_tensor * glu(Activation f, ggml_tensor * gate, ggml_tensor * up, bool swapped);
    ggml_tensor * limited_glu(const LimitedGlu & f, ggml_tensor * gate, ggml_tensor * up, bool swapped);
    static void attention_rule(const BackwardStep & step);
    // Over llama.cpp's memory, where it is of half precision.
    static bool can_cache_attention(const ggml_tensor * node);
    ggml_tensor * cache_attention(ggml_tensor * y);

    // Of the layers with a state, faster than ggml's; nullptr for other nodes.
    ggml_tensor * recurrent(ggml_tensor * y);
    ggml_tensor * ssm_conv(ggml_tensor * y);
    static void ssm_conv_rows_rule(const BackwardStep & step);
    // t, or a copy, with rows whose elements are adjacent
    ggml_tensor * with_rows(ggml_tensor * t) const { return t->nb[0] == sizeof(float) ? t : ggml_cont(ctx, t); }

    ggml_tensor * matmul(ggml_tensor * w, ggml_tensor * x);
    ggml_tensor * product_gradient(const CpuOp & op, const int64_t ne[4], ggml_tensor * a, ggml_tensor * b, float scale,
                                   ggml_tensor * accumulator);

    // y[o, t] for a frozen matrix w of any type: in float32; by int8 dot products with rounded activations, as ggml
    // does it but for all tokens at a time, where the type, the CPU and the number of rows make that the fastest way.
    static bool can_weight_forward(const ggml_tensor * w, const ggml_tensor * x);
    ggml_tensor * weight_forward(ggml_tensor * w, ggml_tensor * x);
    static bool can_int8_product(const ggml_tensor * w, const ggml_tensor * x);
    ggml_tensor * int8_product(ggml_tensor * w, ggml_tensor * x);
    ggml_tensor * int8_quantize(ggml_tensor * x, int64_t activation_block);

    // y[o, k, t] by the matrices of a mixture of experts, w of any type, in float32 or, where rounding is allowed and
    // faster, in bf16 or by int8 dot products.
    static bool can_expert_product(const ggml_tensor * w, const ggml_tensor * x, const ggml_tensor * ids);
    ggml_tensor * expert_product(ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids);
    // The pairs of tokens and experts, as all products by the same ids take them.
    ggml_tensor * sorted_pairs(ggml_tensor * ids, int64_t n_experts);
    // x or dy, quantized (activation_block > 0) or packed in bf16 (0), expert by expert
    ggml_tensor * expert_inputs(const ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids, int64_t activation_block);
    ggml_tensor * expert_operand(ggml_tensor * x, ggml_tensor * ids, int64_t n_experts, int64_t activation_block,
                                 bool is_gradient);
    ggml_tensor * expert_gradient(const CpuOp & op, const int64_t ne[4], const Operands & operands, float scale,
                                  ggml_tensor * accumulator);
    static void expert_sum_rule(const BackwardStep & step);

    // In bf16 with sums in float32, w of any type but F32, whose products stay exact.
    bool can_bf16_product(const ggml_tensor * w, const ggml_tensor * x) const;
    ggml_tensor * bf16_product(ggml_tensor * w, ggml_tensor * x);
    ggml_tensor * bf16_pack(ggml_tensor * x, float scale);
    ggml_tensor * packed_operand(ggml_tensor * x);
    ggml_tensor * packed_gradient(ggml_tensor * dy, float scale);
    ggml_tensor * packed_tensor(const CpuOp & op, ggml_tensor * x, float scale);
    ggml_tensor * bf16_gradient(const ggml_tensor * w, const Operands & operands, ggml_tensor * dy,
                                ggml_tensor * accumulator);
    ggml_tensor * bf16_dx(ggml_tensor * w, ggml_tensor * dy, ggml_tensor * accumulator);
    // dw[i, o] += scale * x dy of a low-rank matrix
    ggml_tensor * bf16_dw(ggml_tensor * x, ggml_tensor * dy, float scale, ggml_tensor * accumulator);
    // w^T dy + scale a^T dh. dh ne = [rank, t]
    ggml_tensor * bf16_lora_dx(ggml_tensor * w, ggml_tensor * dy, ggml_tensor * a, ggml_tensor * dh, float scale,
                               ggml_tensor * accumulator);
    static void lora_product_rule(const BackwardStep & step);

    const bool may_round_;
    const bool bf16_;            // rounded to bf16, on the CPU's matrix unit
    bool bf16_stretch_ = false;  // products of the stretch are

    std::vector<std::shared_ptr<void>> kept_;
    // of the stretch: an operand of int8 products and the values that share a scale, what it is quantized to
    std::map<std::pair<const ggml_tensor *, int64_t>, ggml_tensor *> quantized_;
    // of the stretch, and of gradients: what the experts of its tokens, I32 ne = [n_used, T], are sorted to
    std::map<const ggml_tensor *, ggml_tensor *> sorted_pairs_;
    // of the stretch: an operand of products by such ids and the values that share a scale, what it is made for them
    std::map<std::tuple<const ggml_tensor *, const ggml_tensor *, int64_t>, ggml_tensor *> expert_inputs_;
    // of the stretch: an operand of products in bf16 as it is packed for them
    std::map<const ggml_tensor *, ggml_tensor *> packed_;
    std::map<std::pair<const ggml_tensor *, float>, ggml_tensor *> packed_gradients_;
};

}  // namespace ggtune
