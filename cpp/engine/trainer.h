// Loss, accumulated gradients and AdamW of an adapter on a frozen model.
#pragma once

#include <ggml-cpp.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/adapter.h"
#include "engine/equal_lengths.h"
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

// Bytes in main memory, or in that of a device.
struct MemoryParts {
    uint64_t weights = 0;    // of the model: in main memory mapped from its file
    uint64_t adapter = 0;    // A, B
    uint64_t optimizer = 0;  // gradients and both moments; on a device gradients alone
    uint64_t compute = 0;    // activations, gradients, logits of one micro-batch
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

    // On devices whose products round to half precision gradients are computed of so many times the loss, a power of
    // two, so that small ones are not lost; where one overflows, step() computes its micro-batches again with a smaller
    // one (Micikevicius et al. 2018, arXiv:1710.03740, where such a step is left out). 0: not chosen yet, 1: no device
    // needs it. Belongs to what a checkpoint keeps. Setting raises Error for what is no power of two.
    double loss_scale() const { return loss_scale_; }
    void set_loss_scale(double scale);

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

    // In main memory: of a parameter on a device `values` is the copy there, and its gradient comes to `fetched` at a
    // step.
    struct State {
        std::string name;
        ggml_tensor * parameter;
        ggml_tensor * gradient;
        float * values;  // of the parameter
        std::vector<float> fetched;
        std::vector<float> first_moment;
        std::vector<float> second_moment;
    };
    std::vector<State> & states();  // raises Error where the model was loaded without its weights
    // Those accumulated so far, of the loss itself; in the order of states().
    std::vector<std::vector<float>> gradients();

    // So many of the first layers can be computed again: all, or none where the graph can't be cut between them.
    int n_recomputable_layers() const { return n_recomputable_; }

    // Which sequences of a micro-batch are computed in one graph, for sequences of so many rows: their places in
    // `n_rows`. Layers that take sequences of one length alone fill the shorter ones of a graph up.
    std::vector<std::vector<size_t>> graphs(const std::vector<int64_t> & n_rows) const;
    bool needs_equal_lengths() const { return builder_.needs_equal_lengths(); }

    // Of one graph: in main memory (nullptr) and on each device of the model.
    std::map<ggml_backend_dev_t, MemoryParts> memory(int64_t n_tokens, int64_t n_targets, int64_t n_sequences) const;
    // Gives such a graph its memory, which stays. Raises Error, DeviceMemoryError where there is not enough.
    void reserve(int64_t n_tokens, int64_t n_targets, int64_t n_sequences);
    // Bytes that graphs have been given.
    DeviceBytes allocated() const { return executor_.allocated(); }
    // What the device of a layer can't compute; the Trainer of a model that has such layers on a device can plan alone.
    const std::vector<Unsupported> & unsupported() const { return unsupported_; }
    std::map<ggml_backend_dev_t, std::map<std::string, int>> nodes(int64_t n_tokens, int64_t n_targets,
                                                                   int64_t n_sequences) const;
    // Stretches of nodes of one place that the graph falls into; 0 without devices.
    int runs(int64_t n_tokens, int64_t n_targets, int64_t n_sequences);
    // Nodes of accumulate()'s graph that only ggml's CPU backend runs.
    int n_custom_nodes(int64_t n_tokens, int64_t n_targets, int64_t n_sequences) const;

  private:
    TrainingGraph graph_of_shape(int64_t n_tokens, int64_t n_targets, int64_t n_sequences) const;
    void probe();
    void check_ops() const;
    Placement placement() const;
    bool scales_loss() const;
    void choose_loss_scale(const MicroBatch & batch);
    bool fetch_gradients();
    void make_finite();
    void accumulate_again();
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

    double loss_scale_ = 1.0;
    int64_t n_steps_without_overflow_ = 0;
    std::vector<BatchRows> accumulated_;  // where the loss is scaled: what a step may have to compute again

    std::vector<State> list_;
    int64_t n_pieces_ = 0;  // of the parameters, for the threads of step()
    PlacedTensors gradients_;
    std::vector<Unsupported> unsupported_;
    std::unordered_map<ggml_tensor *, ggml_tensor *> accumulators_;
    ForwardGraphBuilder builder_;
    Executor executor_;
};

}  // namespace ggtune
