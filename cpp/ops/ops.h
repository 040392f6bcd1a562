// The makers of nodes: what gradient rules, the rewriter of forward graphs and the loss ask for. Two implementations:
// cpu/ (custom nodes that run the kernels of cpp/kernels) and ggml/ (ggml's own ops, for devices).
//
// All tensors are F32 where nothing else is said. A maker only adds nodes to `ctx`; nothing is computed. Gradients
// (dy) come with any strides, other operands as ggml's op takes them.
//
// Symbols: T tokens, shapes in ggml order (ne[0] runs fastest). d<name> is the gradient of the loss with respect to
// <name>.
#pragma once

#include <ggml.h>

#include <algorithm>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "kernels/activations.h"
#include "kernels/dropout.h"
#include "kernels/sinkhorn.h"
#include "ops/op.h"

namespace ggtune {

using kernels::Activation;
using kernels::DropoutMask;
using kernels::LimitedGlu;
using kernels::Sinkhorn;

// The keys that each row sees under one mask: two I32 inputs of the graph, ne = [T], and what they are to hold. Row t
// sees the keys [first[t], end[t]).
struct KeyRanges {
    ggml_tensor * first;
    ggml_tensor * end;
    std::vector<int32_t> first_values;
    std::vector<int32_t> end_values;
};

// Scores are post_scale * cap(pre_scale * q . k), cap(s) = softcap * tanh(s / softcap); softcap 0: cap(s) = s.
struct AttentionParams {
    float pre_scale, softcap, post_scale;
};

// t, t with the usual strides (those of dimensions of size 1 may be anything), or a contiguous copy of it
ggml_tensor * contiguous(ggml_context * ctx, ggml_tensor * t);

class Ops {
  public:
    explicit Ops(ggml_context * ctx) : ctx(ctx) {}
    virtual ~Ops() = default;
    Ops(const Ops &) = delete;
    Ops & operator=(const Ops &) = delete;

    ggml_context * const ctx;  // the same for all implementations of one graph

    ggml_tensor * contiguous(ggml_tensor * t) const { return ggtune::contiguous(ctx, t); }

    // Tensors whose contents only the host knows (masks, indices), to be filled whenever the graph has been given
    // memory; those that nothing reads get none.
    struct HostInput {
        ggml_tensor * tensor;
        std::vector<uint8_t> bytes;
    };
    const std::vector<HostInput> & host_inputs() const { return inputs; }

    // ---- In place of nodes of a forward graph. What is returned is one node with a rule of its own (op.h), or plain
    // nodes of ggml's that are differentiated each by its own rule. What a maker has put between its operands and the
    // node that it returns becomes part of the graph, too.

    // A stretch of a forward graph is about to be rewritten, nodes in topological order. What operands are prepared to
    // be (packed, quantized) is shared within a stretch, never between two.
    virtual void begin_stretch(const std::vector<ggml_tensor *> & /*nodes*/) {}

    // The node that does what ggml's does, but better; nullptr where ggml's will do.
    virtual ggml_tensor * replacement(ggml_tensor * node) = 0;

    // The adapter's part of a linear: y + scale b h, may be written over y.
    // y ne = [o, T], b ne = [rank, o], h ne = [rank, T]
    virtual ggml_tensor * lora_add(ggml_tensor * y, ggml_tensor * b, ggml_tensor * h, float scale) = 0;

    // The same of a mixture of experts, each with a b of its own. y ne = [o, n_used, T], b ne = [rank, o, n_experts],
    // h ne = [rank, n_used, T], ids I32 ne = [n_used, T]
    virtual ggml_tensor * expert_lora_add(ggml_tensor * y, ggml_tensor * b, ggml_tensor * h, ggml_tensor * ids,
                                          float scale) = 0;

    // Whether w x + scale b h is better made at once, for a frozen matrix w of any type: then w x is not computed by
    // itself, and lora_product() and low_rank() are asked instead of lora_add() and replacement().
    virtual bool joins_lora(const ggml_tensor * /*w*/, const ggml_tensor * /*x*/) const { return false; }
    // h = a x of such a product. a ne = [i, rank], x ne = [i, T]
    virtual ggml_tensor * low_rank(ggml_tensor * /*a*/, ggml_tensor * /*x*/) { return nullptr; }
    // w x + scale b h. a: h is low_rank(a, x) and used here alone, so that the gradient of a is made here, too;
    // nullptr: h is something else. w ne = [i, o], x ne = [i, T]
    virtual ggml_tensor * lora_product(ggml_tensor * /*w*/, ggml_tensor * /*x*/, ggml_tensor * /*a*/,
                                       ggml_tensor * /*b*/, ggml_tensor * /*h*/, float /*scale*/) {
        return nullptr;
    }

    // Whether attention() serves; else llama.cpp's nodes for it stay, with the scores of all rows written out.
    virtual bool has_attention() const { return false; }
    // softmax of the scores over the keys that each row sees, times v. q ne = [head_dim, T, n_head], k the same with
    // n_head_kv, v ne = [head_dim_v, T, n_head_kv]; any strides over T and heads. sinks, frozen, ne = [n_head], or
    // nullptr: one more score of each head, for a key that every row sees and whose v is zero.
    // -> ne = [head_dim_v * n_head, T]
    virtual ggml_tensor * attention(ggml_tensor * /*q*/, ggml_tensor * /*k*/, ggml_tensor * /*v*/,
                                    const KeyRanges & /*keys*/, const AttentionParams & /*params*/,
                                    ggml_tensor * /*sinks*/) {
        return nullptr;
    }

    // Whether expert_sum() serves; else llama.cpp's nodes for it stay, a view and an addition for each expert, and the
    // gradient of each view is as large as what it is a view of.
    virtual bool has_expert_sum() const { return false; }
    // The results of a token's experts, weighted and added up: y[i, t] = sum_k weights[0, k, t] x[i, k, t].
    // x ne = [i, n_used, T], weights ne = [1, n_used, T], or nullptr: all one. -> ne = [i, T]
    virtual ggml_tensor * expert_sum(ggml_tensor * /*x*/, ggml_tensor * /*weights*/) { return nullptr; }

    // x with elements dropped and the others scaled (kernels/dropout.h).
    virtual ggml_tensor * dropout(ggml_tensor * x, const DropoutMask & mask) = 0;

    // ---- The loss. Here and for gradients only the node that is returned counts.

    // log p(target) of each row. logits ne = [n_vocab, rows], targets I32 ne = [rows] -> ne = [rows]
    virtual ggml_tensor * log_probabilities(ggml_tensor * logits, ggml_tensor * targets) = 0;
    // d(sum of -weight log p(target))/dlogits. weights ne = [rows]; may be written over the logits, which nothing reads
    // once log_probs has been computed from them.
    virtual ggml_tensor * cross_entropy_dx(ggml_tensor * logits, ggml_tensor * targets, ggml_tensor * weights,
                                           ggml_tensor * log_probs) = 0;
    // Kullback-Leibler divergence of each row from a teacher's, whose logits have the same shape -> ne = [rows];
    // nullptr where there is no such node.
    virtual ggml_tensor * divergences(ggml_tensor * /*logits*/, ggml_tensor * /*teacher*/) { return nullptr; }
    // d(sum of weight divergence)/dlogits, written over the logits.
    virtual ggml_tensor * divergence_dx(ggml_tensor * /*logits*/, ggml_tensor * /*teacher*/, ggml_tensor * /*weights*/,
                                        ggml_tensor * /*divergences*/) {
        return nullptr;
    }

    // ---- Gradients of products y[o, t, ...] = sum_i w[i, o, ...] x[i, t, ...], w broadcast over the outer dimensions
    // of x as ggml does it. They are multiplied by `scale` and added to `accumulator` (contiguous, of their shape)
    // where there is one: then the node that is returned is the accumulator's memory after the addition.

    // dx[i, t, ...], w F32
    virtual ggml_tensor * matmul_dx(ggml_tensor * w, ggml_tensor * dy, float scale, ggml_tensor * accumulator) = 0;
    // dw[i, o, ...], x and w F32
    virtual ggml_tensor * matmul_dw(ggml_tensor * w, ggml_tensor * x, ggml_tensor * dy, float scale,
                                    ggml_tensor * accumulator) = 0;
    // dx[i, t, ...] for a frozen w of any type: a matrix, elements of a row contiguous, or a contiguous stack
    virtual ggml_tensor * weight_dx(ggml_tensor * w, ggml_tensor * dy, ggml_tensor * accumulator) = 0;

    // d(loss)/d(scales and mins) of a frozen matrix w (kernels/scale_gradient.h), added to `accumulator`; nullptr where
    // there is no such node.
    virtual ggml_tensor * scales_dw(ggml_tensor * /*w*/, ggml_tensor * /*x*/, ggml_tensor * /*dy*/,
                                    ggml_tensor * /*accumulator*/) {
        return nullptr;
    }

    // ---- Gradients of the products of a mixture of experts, y[o, k, t] = sum_i w[i, o, e] x[i, k, t] with
    // e = ids[k, t], times `scale`, added to `accumulator` as above. w ne = [i, o, n_experts], x ne = [i, n_used, T],
    // or [i, 1, T] where all experts of a token have the same, ids I32 ne = [n_used, T], any strides.

    // dx, of the shape of x; w F32, or frozen and of any type
    virtual ggml_tensor * expert_dx(ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids, ggml_tensor * dy, float scale,
                                    ggml_tensor * accumulator) = 0;
    // dw, w F32
    virtual ggml_tensor * expert_dw(ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids, ggml_tensor * dy, float scale,
                                    ggml_tensor * accumulator) = 0;

    // ---- Gradients of other ops. Results are contiguous, of the shape of the operand that they are named for.

    virtual ggml_tensor * activation_dx(Activation f, ggml_tensor * x, ggml_tensor * dy) = 0;
    // of y = f(gate) * up; up == nullptr: gate holds both halves of each row, `swapped` puts the gate second. The
    // gradient of both halves, ne[0] twice that of dy: in the order of the fused input, gate first where the inputs are
    // two.
    virtual ggml_tensor * glu_dx(Activation f, ggml_tensor * gate, ggml_tensor * up, bool swapped,
                                 ggml_tensor * dy) = 0;
    // The same of a gated unit with limits.
    virtual ggml_tensor * limited_glu_dx(const LimitedGlu & f, ggml_tensor * gate, ggml_tensor * up, bool swapped,
                                         ggml_tensor * dy) = 0;
    // of y = softmax(scale x + mask), from y
    virtual ggml_tensor * softmax_dx(ggml_tensor * y, ggml_tensor * dy, float scale) = 0;
    virtual ggml_tensor * rms_norm_dx(ggml_tensor * x, ggml_tensor * dy, float eps) = 0;
    virtual ggml_tensor * norm_dx(ggml_tensor * x, ggml_tensor * dy, float eps) = 0;
    // of y = x / max(|x|, eps)
    virtual ggml_tensor * l2_norm_dx(ggml_tensor * x, ggml_tensor * dy, float eps) = 0;
    virtual ggml_tensor * clamp_dx(ggml_tensor * x, ggml_tensor * dy, float min, float max) = 0;
    // gradient of `source` of which `view` shows a part: zero outside
    virtual ggml_tensor * view_dx(ggml_tensor * source, ggml_tensor * view, ggml_tensor * dy) = 0;
    // gradient of x = [n, rows, ...] whose rows `ids` (I32, ne = [k, ...], any strides) were taken, of each matrix by
    // ids of its own
    virtual ggml_tensor * rows_dx(ggml_tensor * x, ggml_tensor * ids, ggml_tensor * dy) = 0;
    // gradient of an operand that was repeated to the shape of dy: the sum over its repetitions
    virtual ggml_tensor * repeat_dx(const ggml_tensor * operand, ggml_tensor * dy) = 0;
    // gradient of the mixes [kMixes, T] of hyper-connections' streams (kernels/sinkhorn.h); scale and base as ggml's op
    // has them, dy ne = [targets, sources, T]
    virtual ggml_tensor * sinkhorn_dx(const Sinkhorn & sinkhorn, ggml_tensor * mixes, ggml_tensor * scale,
                                      ggml_tensor * base, ggml_tensor * dy) = 0;
    // of y = SSM_CONV(x, filters)
    virtual ggml_tensor * ssm_conv_dx(ggml_tensor * x, ggml_tensor * filters, ggml_tensor * dy) = 0;
    // of the operands of `scan`, one of ggml's scans over the tokens of a sequence (recurrent.h), which y computes: one
    // for each of y->src that is needed, else nullptr
    virtual std::vector<ggml_tensor *> scan_dx(ggml_op scan, ggml_tensor * y, ggml_tensor * dy,
                                               const std::vector<bool> & needed) = 0;
    // zeros of the shape of t, to be filled in parts
    virtual ggml_tensor * zeros_like(const ggml_tensor * t) = 0;

  protected:
    std::vector<HostInput> inputs;
};

// Which implementation serves a node, and of which layer it is: one implementation for all but those that are said to
// be another's.
class Implementations {
  public:
    // only_one: there are no others, and nothing is kept of nodes.
    explicit Implementations(Ops & otherwise, bool only_one = false)
        : otherwise(otherwise), only_one_(only_one), list_{&otherwise} {}

    Ops & otherwise;

    const std::vector<Ops *> & all() const { return list_; }
    Ops & of(const ggml_tensor * node) const {
        const auto it = assigned_.find(node);
        return it != assigned_.end() ? *it->second.ops : otherwise;
    }
    // -1: it is not known, or of none
    int layer_of(const ggml_tensor * node) const {
        const auto it = assigned_.find(node);
        return it != assigned_.end() ? it->second.layer : -1;
    }
    void assign(const ggml_tensor * node, Ops & ops, int layer = -1) {
        if (only_one_) {
            return;
        }
        assigned_[node] = {&ops, layer};
        if (std::find(list_.begin(), list_.end(), &ops) == list_.end()) {
            list_.push_back(&ops);
        }
    }
    // All that have been made since the last call, in the context of the implementations, are theirs.
    void assign_made(Ops & ops, int layer) {
        if (only_one_) {
            return;
        }
        for (ggml_tensor * t = next_made(); t != nullptr; t = next_made()) {
            last_made_ = t;
            if (assigned_.count(t) == 0) {
                assign(t, ops, layer);
            }
        }
    }

  private:
    struct Assignment {
        Ops * ops;
        int layer;
    };
    ggml_tensor * next_made() const {
        return last_made_ != nullptr ? ggml_get_next_tensor(otherwise.ctx, last_made_)
                                     : ggml_get_first_tensor(otherwise.ctx);
    }

    const bool only_one_;
    std::vector<Ops *> list_;
    std::unordered_map<const ggml_tensor *, Assignment> assigned_;
    ggml_tensor * last_made_ = nullptr;
};

}  // namespace ggtune
