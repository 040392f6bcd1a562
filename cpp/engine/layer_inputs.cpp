#include "engine/layer_inputs.h"

#include <algorithm>
#include <exception>

#include "engine/decoder.h"

namespace ggtune {

namespace {

struct Visit {
    const std::function<bool(const char *)> & wanted;
    const std::function<void(const char *, const LayerInput &)> & visit;
    const ggml_tensor * last = nullptr;
    std::vector<float> values;     // of `last`
    std::exception_ptr exception;  // no exception may pass through ggml
};

bool on_node(ggml_tensor * node, bool ask, void * data) {
    auto & self = *static_cast<Visit *>(data);
    const ggml_tensor * weight = node->src[0];
    if (node->op != GGML_OP_MUL_MAT || !self.wanted(weight->name)) {
        return !ask;
    }
    if (ask) {
        return true;
    }
    const ggml_tensor * input = node->src[1];
    const bool is_new = input != self.last;
    try {
        if (is_new) {
            self.values.resize(static_cast<size_t>(ggml_nelements(input)));
            ggml_backend_tensor_get(input, self.values.data(), 0, ggml_nbytes(input));
            self.last = input;
        }
        self.visit(weight->name, {self.values.data(), ggml_nelements(input) / input->ne[0], input->ne[0], is_new});
    } catch (...) {
        self.exception = std::current_exception();
        return false;
    }
    return true;
}

}  // namespace

void visit_layer_inputs(Model & model, const std::vector<std::pair<std::string, float>> & adapters,
                        const TextSample & sample, int threads, const std::function<bool(const char *)> & wanted,
                        const std::function<void(const char *, const LayerInput &)> & visit) {
    Visit state{wanted, visit, nullptr, {}, nullptr};
    const auto n_tokens = static_cast<int64_t>(sample.tokens.size());
    const int32_t n_sequences =
        sample.sequences.empty() ? 1 : *std::max_element(sample.sequences.begin(), sample.sequences.end()) + 1;
    Decoder decoder(model, adapters, {n_tokens, n_tokens, n_sequences, threads, on_node, &state});
    TokenBatch batch(n_tokens);
    batch.add(sample.tokens, sample.sequences, {});
    try {
        decoder.decode(batch);
    } catch (...) {
        if (!state.exception) {
            throw;
        }
    }
    if (state.exception) {
        std::rethrow_exception(state.exception);
    }
}

}  // namespace ggtune
