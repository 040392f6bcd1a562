// Makers of plain ggml nodes, which every backend of ggml's runs: what a device computes, and an oracle for cpu/. Each
// node is differentiated by the rule of its own op, so that a maker of a forward node needs none.
//
// Formulas take ops that CUDA, HIP, Vulkan and Metal all have; where backends differ, BackendTraits decides.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ops/ggml/backend_traits.h"
#include "ops/ops.h"

namespace ggtune {

class GgmlOps : public Ops {
  public:
    explicit GgmlOps(ggml_context * ctx, BackendTraits traits = {});

    // Nodes of a training graph that a node of the forward graph gives rise to, at most, copies and gradients included.
    static int64_t max_nodes(const ggml_tensor * node, BackendTraits traits = {});

    // As long as it is set, products with quantized weights stay as they are, to be replaced later: what an exact one
    // is made of can't be cut into chunks of rows.
    bool leaves_products = false;

    // Whether a node of a forward graph can be computed and differentiated by ggml's nodes alone.
    bool can_serve(const ggml_tensor * node) const;

    ggml_tensor * replacement(ggml_tensor * node) override;
    ggml_tensor * lora_add(ggml_tensor * y, ggml_tensor * b, ggml_tensor * h, float scale) override;
    ggml_tensor * expert_lora_add(ggml_tensor * y, ggml_tensor * b, ggml_tensor * h, ggml_tensor * ids,
                                  float scale) override;
    bool has_attention() const override { return true; }
    // Stretches of rows one after another, each with the keys that it sees: the scores of all rows are never there at
    // once. The gradient computes them again.
    ggml_tensor * attention(ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, const KeyRanges & keys,
                            const AttentionParams & params, ggml_tensor * sinks) override;
    ggml_tensor * dropout(ggml_tensor * x, const DropoutMask & mask) override;

    ggml_tensor * log_probabilities(ggml_tensor * logits, ggml_tensor * targets) override;
    ggml_tensor * cross_entropy_dx(ggml_tensor * logits, ggml_tensor * targets, ggml_tensor * weights,
                                   ggml_tensor * log_probs) override;

    ggml_tensor * matmul_dx(ggml_tensor * w, ggml_tensor * dy, float scale, ggml_tensor * accumulator) override;
    ggml_tensor * matmul_dw(ggml_tensor * w, ggml_tensor * x, ggml_tensor * dy, float scale,
                            ggml_tensor * accumulator) override;
    ggml_tensor * weight_dx(ggml_tensor * w, ggml_tensor * dy, ggml_tensor * accumulator) override;
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
    // Raises Error: ggml has no such node, and a graph of a step for each token would be too long.
    std::vector<ggml_tensor *> scan_dx(ggml_op scan, ggml_tensor * y, ggml_tensor * dy,
                                       const std::vector<bool> & needed) override;
    ggml_tensor * zeros_like(const ggml_tensor * t) override;

  private:
    struct RowStretch {
        int64_t row, n_rows;
        int64_t key, n_keys;  // all that its rows see, and more
        ggml_tensor * mask;   // F16 ne = [n_keys, n_rows]: 0 or -inf
    };
    struct Attention {
        std::vector<RowStretch> stretches;
        AttentionParams params;
        bool has_sinks;
    };
    struct Scores {
        ggml_tensor * tanh;           // of capped scores, else nullptr
        ggml_tensor * probabilities;  // ne = [n_keys, n_rows, n_head]
    };
    std::vector<RowStretch> stretches_of(const KeyRanges & keys, int64_t n_heads);
    ggml_tensor * mask_of(const KeyRanges & keys, const RowStretch & stretch);
    // Computed after the nodes `after`.
    Scores scores_of(const Attention & attention, const RowStretch & stretch, ggml_tensor * q, ggml_tensor * k,
                     ggml_tensor * sinks, const std::vector<ggml_tensor *> & after) const;
    void attention_dx(const BackwardStep & s, const Attention & attention);
    static void attention_rule(const BackwardStep & s);

    ggml_tensor * product(ggml_tensor * node);
    // A product with a quantized matrix, or a stack of experts' (ids), in float32.
    ggml_tensor * exact_product(ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids);
    static void exact_product_rule(const BackwardStep & s);
    // Zeros are made after `x`, for the same reason as tiles are.
    ggml_tensor * zeros_after(ggml_tensor * x, const ggml_tensor * shape);
    // Tiles are made after `x`, by which they are multiplied: they need nothing computed before, and would else be
    // there as long as it takes to compute x.
    ggml_tensor * tile_of(ggml_tensor * w, int64_t begin, int64_t n, ggml_tensor * x);
    ggml_tensor * expert_tile_of(ggml_tensor * w, int64_t begin, int64_t n, ggml_tensor * x);
    // Parts [begin, begin + n) along the first dimension, one after another, together.
    ggml_tensor * joined(const std::vector<ggml_tensor *> & parts);

    // Lives as long as this, with what its rule needs.
    template <class P>
    CustomNode * keep_node(const Op & op, P params) {
        auto owned = std::make_shared<std::pair<P, CustomNode>>(std::move(params), CustomNode{&op, nullptr, nullptr});
        owned->second.params = &owned->first;
        kept_.push_back(owned);
        return &owned->second;
    }

    // A leaf that the host fills with the values that there are in its type.
    ggml_tensor * host_input(ggml_type type, const int64_t ne[4], const void * values);
    // The numbers [begin, begin + n), to take rows by. I32 ne = [n]
    ggml_tensor * row_numbers(int64_t begin, int64_t n);

    // Of floats, with sums in float32: Vulkan adds up in half precision where it may.
    ggml_tensor * multiplied(ggml_tensor * a, ggml_tensor * b) const {
        ggml_tensor * product = ggml_mul_mat(ctx, a, b);
        ggml_prec_set_acc(product, GGML_PREC_F32);
        return product;
    }
    ggml_tensor * transposed(ggml_tensor * t) const { return ggml_cont(ctx, ggml_transpose(ctx, t)); }
    ggml_tensor * row_means(ggml_tensor * t) const;  // ne = [1, ...]
    ggml_tensor * one_minus(ggml_tensor * t) const { return ggml_scale_bias(ctx, t, -1.0f, 1.0f); }
    ggml_tensor * added(ggml_tensor * accumulator, ggml_tensor * term, float scale) const;
    // Rows of dy where `ids` says, zeros elsewhere. ids I32 ne = [k], dy ne = [n, k] -> ne = [n, rows]. adds: ids may
    // be equal, then their rows are added up: devices look through all ids for each row.
    ggml_tensor * added_rows(int64_t n_rows, ggml_tensor * ids, ggml_tensor * dy, bool adds);

    ggml_tensor * activation(Activation f, ggml_tensor * x) const;
    ggml_tensor * derivative(Activation f, ggml_tensor * x) const;
    ggml_tensor * gate_of(Activation f, ggml_tensor * x) const;
    ggml_tensor * normal_cdf(ggml_tensor * x) const;
    // The operands of a gated linear unit, contiguous.
    struct GateAndUp {
        ggml_tensor *gate, *up;
    };
    GateAndUp gate_and_up(ggml_tensor * gate, ggml_tensor * up, bool swapped) const;

    const BackendTraits traits_;
    std::vector<std::shared_ptr<void>> kept_;
    std::map<std::vector<int64_t>, ggml_tensor *> masks_;
    std::map<std::vector<int64_t>, ggml_tensor *> expert_rows_;
    std::map<std::pair<int64_t, int64_t>, ggml_tensor *> numbers_;
    std::unordered_map<const ggml_tensor *, ggml_tensor *> probabilities_;  // softmax of logits, for their gradient
};

}  // namespace ggtune
