// An importance matrix: which inputs of each weight matrix matter, gathered from what a model computes for given text.
//
// The numbers are those of llama.cpp's tools/imatrix: of every matrix of a block the sum of squares of each input, over
// all tokens. Its quantizer weights the error of a column by the mean of them.
#pragma once

#include <llama-cpp.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/model.h"

namespace ggtune {

// Of one weight, ne = [n_in, n_out, n_mat]. More than one matrix (experts) get sums and counts of their own.
struct ImatrixEntry {
    int64_t n_in = 0;
    std::vector<double> sums;     // of squared inputs, ne = [n_in, n_mat]
    std::vector<int64_t> counts;  // tokens that each matrix saw, n_mat
};

class ImatrixCollector {
  public:
    // context: tokens of the longest text. process_output: also of the output layer, which llama.cpp leaves out, since
    // it is better quantized without. The model must outlive the collector. Raises Error.
    ImatrixCollector(Model & model, int context, int threads, bool process_output);
    ImatrixCollector(const ImatrixCollector &) = delete;
    ImatrixCollector & operator=(const ImatrixCollector &) = delete;

    // Decodes one text, every token of it. Raises Error where an activation is not finite, Interrupted.
    void add(const std::vector<int32_t> & tokens);

    const std::map<std::string, ImatrixEntry> & entries() const { return entries_; }

  private:
    static bool on_node(ggml_tensor * node, bool ask, void * self);
    bool wanted(const ggml_tensor * node) const;
    void collect(const ggml_tensor * node);
    void collect_experts(const ggml_tensor * node, ImatrixEntry & entry);

    Model & model_;
    const int context_;
    const bool process_output_;
    std::map<std::string, ImatrixEntry> entries_;
    std::vector<uint8_t> inputs_;  // copies of a node's sources, from whichever memory they are in
    std::vector<uint8_t> ids_;
    std::string problem_;
    llama_context_ptr ctx_;
    llama_batch batch_;
    struct BatchDeleter {
        void operator()(llama_batch * batch) const { llama_batch_free(*batch); }
    };
    std::unique_ptr<llama_batch, BatchDeleter> batch_owner_;
};

}  // namespace ggtune
