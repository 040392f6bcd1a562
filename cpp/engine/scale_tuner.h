// Tunes the scales and mins of a merged model's weights so that it predicts what its base with the live adapter does.
#pragma once

#include <ggml-cpp.h>

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/equal_lengths.h"
#include "engine/executor.h"
#include "engine/inference.h"
#include "engine/training_graph.h"

namespace ggtune {

// The last phase of EfficientQAT (Chen et al. 2024, arXiv:2407.11062), with the live adapter for a teacher: codes stay,
// and the scales are trained through the whole model. Minimized is the Kullback-Leibler divergence of the merged
// model's predictions from the teacher's. Both are one model in memory: the merged weights are read in place of the
// base's in the student's graphs, and the adapter is applied in the teacher's alone.
class ScaleTuner {
  public:
    struct Options {
        int64_t context = 0;  // longest sequence, tokens
        int threads = 1;
        Precision precision = Precision::automatic;
    };
    struct Weight {
        std::string name;
        ggml_type type;
        std::vector<uint8_t> data;  // as stored in a file
    };
    // merged: weights of the merged model in place of the base's, all that differ from them. Scales are tuned of those
    // that block_factors() knows and that the graph multiplies by and nothing else. The model must outlive this object.
    // Raises ModelFileError where the model can't be trained or the adapter is not of it, Error for weights that the
    // model does not have, that are of another size, or that lie behind the last hidden state: both models have one
    // head.
    ScaleTuner(Model & model, const std::string & adapter_file, std::vector<Weight> merged, const Options & options);

    int recompute_layers = 0;  // as in Trainer

    // Keeps rows and what the teacher makes of them; a row counts with its weight, and targets are not looked at.
    // Returns the number that accumulate() knows them by.
    size_t add(const MicroBatch & batch);
    // Adds the gradient; returns the sum over the rows of weight times divergence, in nats.
    double accumulate(size_t number);
    // One step of Adam (Kingma and Ba 2014, arXiv:1412.6980) on gradients over the sum of the weights: each weight goes
    // about `lr` steps of its grid. Raises NotFiniteError where a gradient is not finite, and changes nothing.
    void step(double lr);

    // With the scales as they are now, in half precision as a file has them.
    const std::vector<Weight> & weights() const { return merged_; }
    // Of the tuned ones: gradients of the factors so far, [n_out, kinds, blocks], those of the loss itself.
    std::vector<std::string> tuned() const;
    std::vector<std::vector<float>> gradients() const;
    int64_t n_factors() const { return n_factors_; }
    // Bytes in main memory beside the base: of the merged weights, the factors' gradients and moments, which are there
    // already, and of the graph of such a micro-batch; not of what add() keeps, n_embd floats for a row.
    uint64_t n_bytes(int64_t n_tokens, int64_t n_sequences) const;

  private:
    struct Tuned {
        ggml_tensor * tensor;  // whose data are those of one of merged_
        ggml_tensor * gradient;
        // [n_out, kinds, blocks]
        std::vector<float> units;   // of a factor: moves the block's weights by a step of their grid, root mean square
        std::vector<float> values;  // of the factors, in their units
        std::vector<float> first_moment, second_moment;
    };
    struct Rows {
        BatchRows rows;
        std::vector<float> teacher;
    };
    void replace(const ggml_tensor * base, size_t index);
    void find_tunable();
    void start(Tuned & tuned);
    GraphOptions options_of(bool student) const;
    void write_factors(Tuned & tuned, int ith, int nth);

    Model & model_;
    const Options options_;
    std::vector<Weight> merged_;
    Adapter none_;
    llama_adapter_lora_ptr lora_;
    ForwardGraphBuilder student_, teacher_;
    Executor executor_;
    ggml_context_ptr ctx_;
    ggml_backend_buffer_ptr gradient_buffer_;
    std::unordered_map<const ggml_tensor *, ggml_tensor *> in_place_of_;
    std::unordered_map<const ggml_tensor *, size_t> index_;  // of such a tensor, in merged_
    std::unordered_map<ggml_tensor *, ggml_tensor *> accumulators_;
    std::vector<Tuned> tuned_;
    std::vector<std::vector<Rows>> batches_;
    int64_t n_factors_ = 0;
    double weight_sum_ = 0;
    int64_t n_steps_ = 0;
};

}  // namespace ggtune
