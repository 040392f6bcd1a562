// Puts nodes of ggtune's own in place of some of llama.cpp's: fused attention, the LoRA product fused with its scale
// and sum, the weighted sum of a token's experts, dropout in front of the adapter, and whatever else the
// implementation of a node (ops/ops.h) does better.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "engine/adapter.h"
#include "engine/llama_access.h"
#include "ops/ops.h"

namespace ggtune {

// How the graph computes.
enum class Precision {
    automatic,  // ggtune's nodes where they are faster or more exact; products with quantized weights in bf16 on CPUs
                // with a matrix unit, else by integers, int8 in the forward and int16 in the backward pass
    f32,        // the same in float32 alone
    llama_cpp,  // llama.cpp's own nodes alone, to compare with it
};

struct DropoutOptions {
    float p;  // 0: none
    uint64_t seed;
    uint64_t counter;  // number of the micro-batch
};

class Rewriter {
  public:
    // in_place_of: for some leaves of the graph, what is to be read in their place.
    Rewriter(Implementations & implementations, const ForwardGraph & forward, const Adapter & adapter,
             const DropoutOptions & dropout, Precision precision,
             const std::unordered_map<const ggml_tensor *, ggml_tensor *> & in_place_of = {});

    // Rewrites a stretch of the forward graph, nodes in topological order. Stretches are given in order, too.
    void rewrite(std::vector<ggml_tensor *> & nodes);

    // The node that stands for a node of the original graph.
    ggml_tensor * current(ggml_tensor * node) const;
    const std::vector<KeyRanges> & key_ranges() const { return ranges_; }

  private:
    struct Attention {
        ggml_tensor *q, *k, *v;  // [head_dim, T, heads]
        size_t ranges;           // index into key_ranges()
        AttentionParams params;
        ggml_tensor * sinks;                     // [heads], or nullptr
        std::vector<const ggml_tensor *> inner;  // nodes that the fused one makes superfluous
    };
    struct ExpertSum {
        ggml_tensor * terms;  // [n, n_used, T], weighted or not
        bool weighted;        // as a product of results and weights
        std::vector<const ggml_tensor *> inner;
    };
    void count_uses(const std::vector<ggml_tensor *> & nodes);
    int64_t n_uses(const ggml_tensor * node) const;
    bool used_once(const ggml_tensor * node) const { return n_uses(node) == 1; }
    std::optional<Attention> match_attention(const ggml_tensor * node);
    std::optional<ExpertSum> match_expert_sum(const ggml_tensor * node) const;
    bool find_ranges(const ggml_tensor * mask, int64_t n_tokens, size_t & index);
    // b and h of a sum that adds scale * b h, else nullptr
    const ggml_tensor * low_rank_product(const ggml_tensor * sum) const;
    // whether the sum is to be made together with the product of the weight that it adds to
    bool joins(const ggml_tensor * sum) const;
    ggml_tensor * lora_sum(const ggml_tensor * sum, const ggml_tensor * product);
    ggml_tensor * own_node(ggml_tensor * node);
    void use_current_operands(ggml_tensor * node);

    // Adds a node that a maker has returned in place of another, and what lies between it and what is there already.
    void list(ggml_tensor * node, const ggml_tensor * in_place_of, std::vector<ggml_tensor *> & nodes);

    Implementations & implementations_;
    const ForwardGraph & forward_;
    const DropoutOptions dropout_;
    const Precision precision_;
    std::unordered_map<const ggml_tensor *, uint64_t> lora_a_;  // with the adapter pair's number
    std::unordered_set<const ggml_tensor *> lora_b_;
    std::unordered_map<const ggml_tensor *, int> n_uses_;
    std::unordered_map<const ggml_tensor *, ggml_tensor *> replaced_;
    std::vector<KeyRanges> ranges_;
    std::unordered_map<const ggml_tensor *, size_t> ranges_of_mask_;
    std::unordered_set<const ggml_tensor *> joined_sums_;
    std::unordered_set<const ggml_tensor *> joined_inner_;  // products a x that go into such sums alone
    std::unordered_set<const ggml_tensor *> listed_;        // all nodes of the rewritten stretches
};

}  // namespace ggtune
