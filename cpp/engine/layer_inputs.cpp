#include "engine/layer_inputs.h"

#include <algorithm>
#include <exception>
#include <string>
#include <unordered_set>

#include "base/error.h"
#include "engine/decoder.h"

namespace ggtune {

namespace {

constexpr int64_t kLogitBytes = 256 << 20;

struct Visit {
    const std::function<bool(const char *)> & wanted;
    const std::function<void(const char *, const LayerInput &)> & visit;
    const ggml_tensor * last = nullptr;
    std::vector<float> values;                     // of `last`
    std::unordered_set<const ggml_tensor *> seen;  // weights of this part of the text
    std::exception_ptr exception;                  // no exception may pass through ggml
};

bool on_node(ggml_tensor * node, bool ask, void * data) {
    auto & self = *static_cast<Visit *>(data);
    const ggml_tensor * weight = node->src[0];
    // returning false ends a micro-batch only: after an exception those that follow are computed, but not looked at
    if (self.exception || node->op != GGML_OP_MUL_MAT || !self.wanted(weight->name)) {
        return !ask;
    }
    if (ask) {
        return true;
    }
    const ggml_tensor * input = node->src[1];
    if (input->type != GGML_TYPE_F32 || !ggml_is_contiguous(input)) {
        return true;  // such a linear is merged without regard to its inputs
    }
    if (!self.seen.insert(weight).second) {  // the text is computed in several parts: operands are others now
        self.seen = {weight};
        self.last = nullptr;
    }
    try {
        if (input != self.last) {
            self.values.resize(static_cast<size_t>(ggml_nelements(input)));
            ggml_backend_tensor_get(input, self.values.data(), 0, ggml_nbytes(input));
            self.last = input;
        }
        self.visit(weight->name, {self.values.data(), ggml_nelements(input) / input->ne[0], input->ne[0]});
    } catch (...) {
        self.exception = std::current_exception();
        return false;
    }
    return true;
}

// The rows that the last layer computes to its end: those that get logits, as many as have room, evenly spread.
std::vector<uint8_t> some_rows(int64_t n_tokens, int64_t n_vocab) {
    const int64_t room = std::max<int64_t>(1, kLogitBytes / (static_cast<int64_t>(sizeof(float)) * n_vocab));
    const int64_t every = (n_tokens + room - 1) / room;
    std::vector<uint8_t> rows(static_cast<size_t>(n_tokens), 0);
    for (int64_t i = every - 1; i < n_tokens; i += every) {
        rows[static_cast<size_t>(i)] = 1;
    }
    return rows;
}

}  // namespace

VisitLayerInputs inputs_of_sample(const std::string & model_path,
                                  const std::vector<std::pair<std::string, float>> & adapters,
                                  const TextSample & sample, int threads) {
    return [=](const auto & wanted, const auto & visit) -> std::string {
        Visit state{wanted, visit, nullptr, {}, {}, nullptr};
        std::string failure;
        try {
            Model model(model_path, Model::Contents::all);
            const auto n_tokens = static_cast<int64_t>(sample.tokens.size());
            std::vector<int32_t> sequences = sample.sequences;
            // llama.cpp goes through unequal sequences with a state in several parts; of one text it sees all at once
            if (llama_model_is_recurrent(&model.llama()) || llama_model_is_hybrid(&model.llama())) {
                sequences.assign(sequences.size(), 0);
            }
            const int32_t n_sequences =
                sequences.empty() ? 1 : *std::max_element(sequences.begin(), sequences.end()) + 1;
            Decoder::Options options{n_tokens, n_tokens, n_sequences, threads, on_node, &state};
            options.own_products = true;
            Decoder decoder(model, adapters, options);
            TokenBatch batch(n_tokens);
            batch.add(sample.tokens, sequences, some_rows(n_tokens, model.n_vocab()));
            decoder.decode(batch);
        } catch (const Interrupted &) {
            throw;
        } catch (const std::exception & error) {
            failure = reason(error);
        }
        if (state.exception) {
            std::rethrow_exception(state.exception);
        }
        return failure;
    };
}

}  // namespace ggtune
