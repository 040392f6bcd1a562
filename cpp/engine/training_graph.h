// One micro-batch as one ggml graph: forward, loss in row chunks, backward, with or without recomputation.
#pragma once

#include <ggml-cpp.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/adapter.h"
#include "engine/autodiff.h"
#include "engine/embedding_noise.h"
#include "engine/executor.h"
#include "engine/llama_access.h"
#include "engine/rewriter.h"
#include "ops/ops.h"

namespace ggtune {

// T rows; row i holds tokens[i] at positions[i] of sequences[i], predicts targets[i] and counts with weights[i].
struct MicroBatch {
    int64_t n_tokens;
    const int32_t * tokens;
    const int32_t * positions;
    const int32_t * sequences;
    const int32_t * targets;
    const float * weights;  // 0: the row has no target
};

constexpr int64_t kMaxSequences = 256;  // llama.cpp's LLAMA_MAX_SEQ

// Raises Error for a row of another sequence, place, token or target than there can be, or a weight that is not finite.
void check_rows(const MicroBatch & batch, int64_t context, int32_t n_vocab);

// Whose nodes a graph is made of, where there is a choice.
enum class OpsKind {
    cpu,   // ops/cpu: our kernels
    ggml,  // ops/ggml: ggml's own nodes alone
};

// Which device computes each layer, and holds its weights.
struct Placement {
    std::vector<ggml_backend_dev_t> devices;  // of the executor, in its order
    std::vector<int> layer_places;            // of each layer a place (executor.h); [n_layer] is the head's
    bool exact = false;                       // in float32 where a device has a choice
    bool falls_back = false;  // what its device can't compute is the CPU's and is listed (unsupported()), else an Error

    bool is_cpu_alone() const { return devices.empty(); }
    int cpu() const { return static_cast<int>(devices.size()); }
};

// A node that the device of its layer can't compute.
struct Unsupported {
    int layer;
    std::string op;      // ggml's name
    std::string tensor;  // its name, "" where it has none
};

struct GraphOptions {
    bool gradients = true;
    OpsKind ops = OpsKind::cpu;
    std::optional<int> ops_layers = std::nullopt;  // so many of the first layers by `ops`, the rest by the CPU's
    int recompute_layers = 0;                      // so many of the first layers are computed again for their gradient
    DropoutOptions dropout = {0.0f, 0, 0};
    EmbeddingNoise noise;
    Precision precision = Precision::automatic;
    bool predictions = false;  // without gradients: also find the most probable token of each row
    Placement placement = {};  // with `ops` of the CPU
    double loss_scale = 1.0;   // gradients are those of so many times the loss
    // What is read in place of some of the model's weights, on the CPU alone.
    std::unordered_map<const ggml_tensor *, ggml_tensor *> in_place_of;
    // With gradients, on the CPU alone: the loss is the divergence of each row's prediction from the one that the head
    // makes of these hidden states, as hidden_states() gives them for the same rows; nullptr: it is -log p(target).
    const std::vector<float> * teacher = nullptr;
    bool hidden_alone = false;  // without gradients: nothing behind the last hidden states
};

class TrainingGraph {
  public:
    // accumulators: for each leaf that is trained (by pointer), a tensor of the adapter or a quantized weight whose
    // scales are (Ops::scales_dw), the F32 tensor that its gradient is added to.
    // Raises Error and names the ops that have no gradient rule.
    TrainingGraph(const ForwardGraphBuilder & builder, const Adapter & adapter,
                  const std::unordered_map<ggml_tensor *, ggml_tensor *> & accumulators, const MicroBatch & batch,
                  const GraphOptions & options);

    // Bytes of memory for all that is computed. A graph on devices can't be run afterwards.
    DeviceBytes measure(const Executor & executor) const;
    void allocate(Executor & executor) const { executor.allocate(gf_, kept_, place_of_); }
    // Nodes by the device that computes them (nullptr: the CPU) and by op.
    std::map<ggml_backend_dev_t, std::map<std::string, int>> nodes_by_device() const;
    const std::vector<Unsupported> & unsupported() const { return unsupported_; }

    // Linears on which the loss does not depend, with a pair in the adapter.
    const std::vector<std::string> & unreached() const { return unreached_; }

    // So many layers can be computed again for their gradient: 0 where the graph can't be cut between its layers.
    int n_recomputable_layers() const { return static_cast<int>(layer_ends().size()); }

    // Seconds that run() will take; needs neither the weights nor the memory for it (calibrate.h).
    double measure_seconds(Executor & executor) const;

    // Nodes that ggml's CPU backend alone can run, since they call a function of ours.
    int n_custom_nodes() const;

    struct Times {
        double forward_s = 0;
        double backward_s = 0;
    };
    // Fills the inputs and computes. Of each row with a weight, in row order: log_probs gets the target's, or with a
    // teacher the divergence from it; predictions the most probable token where the options ask for it.
    Times run(Executor & executor, std::vector<float> & log_probs, std::vector<int32_t> & predictions);
    // After run() of a graph of hidden states alone: [rows, n_embd], of the rows that get logits.
    std::vector<float> hidden_states() const;

  private:
    // nodes [begin, end) of the graph: part of the forward or of the backward pass
    struct Phase {
        int end;
        bool forward;
    };

    void choose_ops(const GraphOptions & options);
    void place_layers();
    void place_weights();
    void place_between_experts(const std::vector<size_t> & ends);
    void send_back(const ggml_tensor * node, int layer);
    void check_devices();
    bool collect_forward_nodes();
    const ggml_tensor * cache_that_is_read() const;
    void assign_layers(const GraphOptions & options);
    void add_noise(const EmbeddingNoise & options, const MicroBatch & batch);
    void build_head(Autodiff * ad);
    ggml_tensor * divergences(ggml_tensor * logits, int64_t first_row, ggml_tensor *& teacher_logits);
    std::vector<size_t> marked_layer_ends() const;
    std::vector<size_t> layer_ends() const;
    bool can_be_computed_again(const std::vector<size_t> & ends) const;
    std::vector<std::vector<ggml_tensor *>> segment_inputs(const std::vector<size_t> & ends) const;
    void build_backward(Autodiff & ad, int recompute_layers);
    ggml_tensor * clone(const ggml_tensor * node,
                        const std::unordered_map<const ggml_tensor *, ggml_tensor *> & substitutes, int64_t n_rows);
    static ggml_tensor * in_place_of(ggml_tensor * node, Ops & ops);
    void expand(ggml_tensor * node, bool forward);

    std::unique_ptr<ForwardGraph> forward_;
    ggml_context_ptr ctx_;
    Placement placement_;
    PlaceOf place_of_;                          // of nodes; none without devices
    std::vector<std::unique_ptr<Ops>> makers_;  // with devices one of each place
    std::unordered_map<const Ops *, int> places_;
    std::vector<Unsupported> unsupported_;
    std::unique_ptr<Implementations> implementations_;  // the nodes of the head are `otherwise`'s
    ggml_cgraph * gf_ = nullptr;
    std::vector<Phase> phases_;

    std::vector<ggml_tensor *> body_;  // forward nodes up to and including `hidden`, in topological order
    std::vector<ggml_tensor *> kept_;  // of the layers that are computed again: what later ones read
    std::vector<ggml_tensor *> head_;  // nodes from there to the logits
    int n_layers_ = 0;
    ggml_tensor * hidden_ = nullptr;
    ggml_tensor * logits_ = nullptr;

    ggml_tensor * targets_ = nullptr;  // I32 [n_outputs]
    ggml_tensor * weights_ = nullptr;  // F32 [n_outputs]
    ggml_tensor * noise_ = nullptr;    // F32 [n_embd, T], added to the embeddings
    ggml_tensor * teacher_ = nullptr;  // F32 [n_embd, n_outputs]
    const std::vector<float> * teacher_values_ = nullptr;
    std::vector<float> noise_values_;
    std::vector<KeyRanges> key_ranges_;
    std::vector<int32_t> target_values_;
    std::vector<float> weight_values_;
    std::vector<ggml_tensor *> log_probabilities_;  // one tensor per chunk of rows; with a teacher divergences
    std::vector<ggml_tensor *> predictions_;        // I32, likewise
    bool with_predictions_ = false;
    double loss_scale_ = 1.0;
    std::vector<std::string> unreached_;
};

}  // namespace ggtune
