// The one door to llama.cpp's private headers, which change with every pin: forward graphs for training batches, the
// model's tensors by name, and LoRA adapters made of tensors that live elsewhere.
#pragma once

#include <ggml-backend.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

struct llama_adapter_lora;
struct llama_context;
struct llama_model;

namespace ggtune {

// Tensors of a loaded model in file order. A tied output matrix appears once, as the token embedding.
std::vector<std::pair<std::string, ggml_tensor *>> model_tensors(const llama_model & model);

std::string model_architecture(const llama_model & model);

// "this model of the architecture X can't be trained: <reason> (docs/architectures.md lists those that can)"
Error untrainable(const std::string & architecture, const std::string & reason);

struct LoraWeights {
    std::string weight_name;  // base tensor, "blk.0.attn_q.weight"
    ggml_tensor * a;          // F32, ne = [n_in, rank, n_mat]
    ggml_tensor * b;          // F32, ne = [rank, n_out, n_mat]
};

struct LoraDeleter {
    void operator()(llama_adapter_lora * lora) const;
};
using LoraHandle = std::unique_ptr<llama_adapter_lora, LoraDeleter>;

// llama.cpp's adapter object over tensors owned by the caller; graphs scale B A x by alpha / rank. The model knows of
// it (contexts make room in their graphs), and must outlive it.
LoraHandle make_lora(llama_model & model, float alpha, const std::vector<LoraWeights> & weights);

// Takes pairs out of an adapter, by the names of their base tensors.
void remove_from_lora(llama_adapter_lora & lora, const std::vector<std::string> & weight_names);

// A micro-batch as llama.cpp sees it: T rows, rows of one sequence contiguous and in order.
struct GraphBatch {
    int64_t n_tokens;
    const int32_t * tokens;
    const int32_t * positions;
    const int32_t * sequences;
    const uint8_t * outputs;  // rows that get logits
};

// One built forward graph; its tensors live as long as this object.
class ForwardGraph {
  public:
    virtual ~ForwardGraph() = default;
    // In topological order. Keys and values that the rows have written to a cache are read past it (cache_bypass.h).
    virtual const std::vector<ggml_tensor *> & nodes() const = 0;
    // Whether that leaf is a cache of keys or values, which has no memory.
    virtual bool is_cache_without_memory(const ggml_tensor * leaf) const = 0;
    // Bytes of the states that recurrent layers start from, which belong to this object.
    virtual size_t n_state_bytes() const = 0;
    virtual ggml_tensor * hidden() const = 0;  // after the final norm, ne = [n_embd, n_outputs]
    virtual ggml_tensor * logits() const = 0;  // ne = [n_vocab, n_outputs]
    // The keys that each row sees under one of llama.cpp's attention masks: rows [first[t], end[t]), end[t] = t + 1.
    // False for masks that are not of this kind (attention that is not causal).
    virtual bool visible_keys(const ggml_tensor * mask, std::vector<int32_t> & first,
                              std::vector<int32_t> & end) const = 0;
    // Fill tokens, positions, masks and row ids. Call when the graph's tensors have memory.
    virtual void set_inputs() = 0;
};

class ForwardGraphBuilder {
  public:
    // context: tokens of the longest sequence (chooses RoPE factors). lora may be null and must outlive the builder.
    // Raises Error for models that can't be trained this way (encoders, models that don't go from left to right).
    ForwardGraphBuilder(llama_model & model, uint32_t context, llama_adapter_lora * lora);
    ~ForwardGraphBuilder();

    // Whether all sequences of a micro-batch must be of one length: recurrent layers go through them side by side.
    bool needs_equal_lengths() const;
    // What building graphs itself takes, by device; nullptr: main memory.
    std::map<ggml_backend_dev_t, uint64_t> n_context_bytes() const;
    // How many sequences one graph may have.
    size_t most_sequences() const;

    // Raises Error where llama.cpp can't build a training graph for this architecture.
    std::unique_ptr<ForwardGraph> build(const GraphBatch & batch) const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

// Why llama.cpp could not build this model's graphs, for the user; said: what it logged or asserted.
std::string reason_of_no_graph(const llama_model & model, const std::string & said);

// Builds the context's graphs anew where its adapters have changed; ggml's assertions are the caller's to catch.
// Returns why they can't be computed: what would end the process, or never end. "" where they can.
std::string problem_of_graph(llama_context & context);

// What computes on the CPU for a context, which owns it.
ggml_backend_t cpu_backend(const llama_context & context);

// The graph that a context was made room for.
ggml_cgraph * reserved_graph(llama_context & context);

// The output matrix, which may be the token embeddings, or nullptr.
ggml_tensor * model_output(const llama_model & model);

// The leafs of a graph, and a graph in `ctx` of given nodes with the same leafs.
std::vector<ggml_tensor *> leafs_of(const ggml_cgraph * graph);
ggml_cgraph * graph_of(ggml_context * ctx, const ggml_cgraph * with_leafs, const std::vector<ggml_tensor *> & nodes);

// Runs nodes [begin, end) of a graph.
ggml_status compute_slice(ggml_backend_t backend, ggml_cgraph * graph, int begin, int end);

}  // namespace ggtune
