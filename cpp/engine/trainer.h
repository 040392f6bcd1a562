// Loss, accumulated gradients and AdamW of an adapter on a frozen model.
#pragma once

#include <ggml-cpp.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/adapter.h"
#include "engine/executor.h"
#include "engine/training_graph.h"

namespace ggtune {

struct BatchResult {
    double loss_sum = 0;  // sum over rows of -weight log p(target)
    double weight_sum = 0;
    int64_t n_tokens = 0;
    int64_t n_targets = 0;             // rows whose weight is not zero
    std::vector<float> log_probs;      // [n_tokens], NaN where the weight is 0
    std::vector<int32_t> predictions;  // [n_tokens], -1 where the weight is 0; empty where not asked for
    double forward_s = 0;
    double backward_s = 0;
};

struct AdamW {
    double lr;
    double beta1;
    double beta2;
    double epsilon;
    double weight_decay;
    double clip;                   // global norm; 0: never
    double lora_plus_ratio = 1.0;  // B's rate is so many times lr, which is A's (Hayou et al. 2024, arXiv:2402.12354)
};

struct MemoryParts {
    uint64_t weights;    // of the model: mapped from its file
    uint64_t adapter;    // A, B
    uint64_t optimizer;  // gradients and both moments
    uint64_t compute;    // activations, gradients, logits of one micro-batch
};

class Trainer {
  public:
    struct Options {
        int64_t context = 0;  // longest sequence, tokens
        int threads = 1;
        float dropout = 0.0f;
        uint64_t seed = 0;  // of the dropout masks
        Precision precision = Precision::automatic;
        OpsKind ops = OpsKind::cpu;
        std::optional<int> ops_layers = std::nullopt;  // as in GraphOptions
        float neftune_alpha = 0.0f;                    // as in EmbeddingNoise; `seed` is the noise's, too
    };
    // Builds one graph and raises ModelFileError where the model can't be trained. The adapter loses pairs on which
    // the loss does not depend (Adapter::dropped()).
    Trainer(std::shared_ptr<Adapter> shared_adapter, const Options & options);

    int recompute_layers = 0;     // so many of the first layers are computed again for their gradient, to save memory
    int64_t n_steps = 0;          // optimizer steps taken
    int64_t n_micro_batches = 0;  // counter of the dropout masks

    const std::shared_ptr<Adapter> adapter;

    // Adds the gradient of the summed loss. When it raises, the accumulators hold a part of it: call zero_gradients().
    BatchResult accumulate(const MicroBatch & batch);
    // Without gradients and dropout. predictions: also find the token that is most probable in each target's place.
    BatchResult evaluate(const MicroBatch & batch, bool predictions = false);

    // As accumulate(), with the seconds spent by kind of node (and a little more in all: nodes run one by one).
    BatchResult accumulate_profiled(const MicroBatch & batch, Executor::Profile & seconds);

    // Seconds that accumulate() will take, or evaluate(), from a short trial; the model's header is enough.
    double predict_seconds(const MicroBatch & batch, bool gradients);

    void zero_gradients();
    // One step on gradients / divisor (kernels/adamw.h), by default the sum of the accumulated weights; returns their
    // global norm before clipping. Changes nothing and raises Error where nothing has been accumulated or the divisor
    // is not above 0, NotFiniteError where there is no finite norm.
    double step(const AdamW & options, std::optional<double> divisor = std::nullopt);

    struct State {
        std::string name;
        ggml_tensor * parameter;
        ggml_tensor * gradient;
        std::vector<float> first_moment;
        std::vector<float> second_moment;
    };
    std::vector<State> & states();  // raises Error where the model was loaded without its weights

    // So many of the first layers can be computed again: all, or none where the graph can't be cut between them.
    int n_recomputable_layers() const { return n_recomputable_; }

    // Which sequences of a micro-batch are computed in one graph, for sequences of so many rows: their places in
    // `n_rows`. Layers that take sequences of one length alone fill the shorter ones of a graph up.
    std::vector<std::vector<size_t>> graphs(const std::vector<int64_t> & n_rows) const;
    bool needs_equal_lengths() const { return builder_.needs_equal_lengths(); }

    // Of one graph.
    MemoryParts memory(int64_t n_tokens, int64_t n_targets, int64_t n_sequences) const;
    // Nodes of accumulate()'s graph that only ggml's CPU backend runs.
    int n_custom_nodes(int64_t n_tokens, int64_t n_targets, int64_t n_sequences) const;

  private:
    TrainingGraph graph_of_shape(int64_t n_tokens, int64_t n_targets, int64_t n_sequences) const;
    void probe();
    void check_ops() const;
    void check_weights() const;
    void check(const MicroBatch & batch) const;
    BatchResult run(const MicroBatch & batch, bool gradients, bool predictions = false);
    void run_graph(const MicroBatch & batch, const std::vector<int64_t> & origin, const GraphOptions & graph_options,
                   BatchResult & result);
    GraphOptions graph_options(bool gradients, uint64_t part = 0) const;

    template <typename Work>
    void for_each_piece(const Work & work);

    const Options options_;
    double weight_sum_ = 0;      // of the accumulated gradients
    int64_t n_accumulated_ = 0;  // targets in them
    int n_recomputable_ = 0;

    std::vector<State> list_;
    int64_t n_pieces_ = 0;  // of the parameters, for the threads of step()
    ggml_context_ptr ctx_;
    ggml_backend_buffer_ptr buffer_;
    std::unordered_map<ggml_tensor *, ggml_tensor *> accumulators_;
    ForwardGraphBuilder builder_;
    Executor executor_;
};

}  // namespace ggtune
