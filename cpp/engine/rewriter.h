// Puts nodes of ggtune's own in place of some of llama.cpp's: exact GELU where ggml reads a half-precision table, fused
// attention, the LoRA product fused with its scale and sum, products of float matrices, dropout in front of the
// adapter.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <map>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "engine/adapter.h"
#include "engine/graph_ops.h"
#include "engine/llama_access.h"

namespace ggtune {

// How the graph computes.
enum class Precision {
    automatic,  // ggtune's nodes where they are faster or more exact; products with quantized weights in bf16 on CPUs with a
                // matrix unit, else by integers, int8 in the forward and int16 in the backward pass
    f32,        // the same in float32 alone
    llama_cpp,  // llama.cpp's own nodes alone, to compare with it
};

struct DropoutOptions {
    float p;  // 0: none
    uint64_t seed;
    uint64_t counter;  // number of the micro-batch
};

// The keys that each row sees under one mask: two I32 inputs of the graph, and what they are to hold.
struct KeyRanges {
    ggml_tensor * first;
    ggml_tensor * end;
    std::vector<int32_t> first_values;
    std::vector<int32_t> end_values;
};

class Rewriter {
  public:
    Rewriter(GraphOps & ops, const ForwardGraph & forward, const Adapter & adapter, const DropoutOptions & dropout,
             Precision precision);

    // Rewrites a stretch of the forward graph, nodes in topological order. Stretches are given in order, too.
    void rewrite(std::vector<ggml_tensor *> & nodes);

    // The node that stands for a node of the original graph.
    ggml_tensor * current(ggml_tensor * node) const;
    const std::vector<KeyRanges> & key_ranges() const { return ranges; }

  private:
    struct Attention {
        ggml_tensor *q, *k, *v;  // [head_dim, T, heads]
        size_t ranges;           // index into key_ranges()
        GraphOps::AttentionParams params;
        std::vector<const ggml_tensor *> inner;  // nodes that the fused one makes superfluous
    };
    void count_uses(const std::vector<ggml_tensor *> & nodes);
    bool used_once(const ggml_tensor * node) const;
    std::optional<Attention> match_attention(const ggml_tensor * node);
    bool find_ranges(const ggml_tensor * mask, int64_t n_tokens, size_t & index);
    // b and h of a sum that adds scale * b h, else nullptr
    const ggml_tensor * low_rank_product(const ggml_tensor * sum) const;
    // whether the sum and the product with the weight that it adds to can be one product in bf16
    bool is_bf16_sum(const ggml_tensor * sum) const;
    ggml_tensor * bf16_lora(const ggml_tensor * sum, const ggml_tensor * product, std::vector<ggml_tensor *> & nodes);
    ggml_tensor * packed_rows(ggml_tensor * x, std::vector<ggml_tensor *> & nodes);
    ggml_tensor * own_node(ggml_tensor * node, std::vector<ggml_tensor *> & nodes);
    ggml_tensor * quantized_rows(ggml_tensor * x, ggml_type weight_type, std::vector<ggml_tensor *> & nodes);
    void use_current_operands(ggml_tensor * node);

    GraphOps & ops;
    const ForwardGraph & forward;
    const DropoutOptions dropout;
    const Precision precision;
    std::unordered_map<const ggml_tensor *, uint64_t> lora_a;  // with the adapter pair's number
    std::unordered_set<const ggml_tensor *> lora_b;
    std::unordered_map<const ggml_tensor *, int> n_uses;
    std::unordered_map<const ggml_tensor *, ggml_tensor *> replaced;
    std::vector<KeyRanges> ranges;
    std::unordered_map<const ggml_tensor *, size_t> ranges_of_mask;
    // of the stretch: an operand of int8 products and the values that share a scale, what it is quantized to
    std::map<std::pair<const ggml_tensor *, int64_t>, ggml_tensor *> quantized;
    // of the stretch: an operand of products in bf16 as it is packed for them
    std::unordered_map<const ggml_tensor *, ggml_tensor *> packed;
    // products a x that are computed in bf16 together with what they are added to
    std::unordered_set<const ggml_tensor *> bf16_inner;
};

}  // namespace ggtune
