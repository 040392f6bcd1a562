// Gradients of whole llama models against ggml's own backward pass over llama.cpp's graph.
//
//     oracle_test MODEL.gguf...     (F32 weights)
#include <ggml-cpp.h>

#include <algorithm>
#include <random>

#include "base/error.h"
#include "check.h"
#include "engine/trainer.h"

namespace {

using namespace ggtune;
using namespace ggtune::test;

struct Rows {
    std::vector<int32_t> tokens, positions, sequences, targets;
    std::vector<float> weights;
};

// two packed sequences; ggml's cross entropy knows no weights, so every row that counts counts 1
Rows make_rows(int32_t n_vocab) {
    Rows rows;
    std::mt19937 rng(3);
    for (int32_t sequence = 0; sequence < 2; sequence++) {
        for (int32_t i = 0; i < 9 + 5 * sequence; i++) {
            rows.tokens.push_back(static_cast<int32_t>(rng() % n_vocab));
            rows.positions.push_back(i);
            rows.sequences.push_back(sequence);
            rows.targets.push_back(static_cast<int32_t>(rng() % n_vocab));
            rows.weights.push_back(i >= 4 ? 1.0f : 0.0f);
        }
    }
    return rows;
}

void run(const std::string & path) {
    Model model(path, Model::Contents::all);
    auto adapter = std::make_shared<Adapter>(
        model, 4, 8.0f,
        std::vector<std::string>{"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}, false,
        1);
    std::mt19937 rng(5);
    std::normal_distribution<float> normal(0.0f, 0.2f);
    for (const auto & [name, tensor] : adapter->tensors()) {
        std::generate_n(static_cast<float *>(tensor->data), ggml_nelements(tensor), [&] { return normal(rng); });
    }
    const Rows rows = make_rows(model.n_vocab());
    const int64_t n_tokens = rows.tokens.size();

    Trainer trainer(adapter, {64, 2});
    const BatchResult result = trainer.accumulate({n_tokens, rows.tokens.data(), rows.positions.data(),
                                                   rows.sequences.data(), rows.targets.data(), rows.weights.data()});

    std::vector<uint8_t> outputs;
    std::vector<int32_t> targets;
    for (int64_t i = 0; i < n_tokens; i++) {
        outputs.push_back(rows.weights[i] != 0);
        if (outputs.back()) {
            targets.push_back(rows.targets[i]);
        }
    }
    const ForwardGraphBuilder builder(model.llama(), 64, adapter->lora());
    const auto forward =
        builder.build({n_tokens, rows.tokens.data(), rows.positions.data(), rows.sequences.data(), outputs.data()});
    const ggml_context_ptr ctx(ggml_init({64 << 20, nullptr, true}));
    for (const auto & [name, tensor] : adapter->tensors()) {
        ggml_set_param(tensor);
    }
    ggml_tensor * labels = ggml_dup_tensor(ctx.get(), forward->logits());
    ggml_set_input(labels);
    ggml_tensor * loss = ggml_cross_entropy_loss(ctx.get(), forward->logits(), labels);
    ggml_set_loss(loss);
    ggml_set_output(loss);
    ggml_cgraph * graph = ggml_new_graph_custom(ctx.get(), 16384, true);
    ggml_build_forward_expand(graph, loss);
    ggml_build_backward_expand(ctx.get(), graph, nullptr);
    std::vector<ggml_tensor *> gradients;
    for (const auto & [name, tensor] : adapter->tensors()) {
        gradients.push_back(ggml_graph_get_grad(graph, tensor));
        ggml_set_output(gradients.back());
        ggml_build_forward_expand(graph, gradients.back());
    }
    ggml_tensor * loss_gradient = ggml_graph_get_grad(graph, loss);
    ggml_set_input(loss_gradient);
    Executor executor(2);
    executor.allocate(graph);
    forward->set_inputs();
    const float one = 1.0f;
    ggml_backend_tensor_set(loss_gradient, &one, 0, sizeof(one));
    std::vector<float> one_hot(ggml_nelements(labels), 0.0f);
    for (size_t i = 0; i < targets.size(); i++) {
        one_hot[i * labels->ne[0] + targets[i]] = 1.0f;
    }
    ggml_backend_tensor_set(labels, one_hot.data(), 0, ggml_nbytes(labels));
    executor.compute(graph, 0, ggml_graph_n_nodes(graph));

    const std::string name = path.substr(path.find_last_of('/') + 1);
    const double expected = static_cast<const float *>(loss->data)[0] * static_cast<double>(targets.size());
    check(name + ": loss", std::abs(result.loss_sum - expected) / expected, 1e-5);
    for (size_t i = 0; i < gradients.size(); i++) {
        std::vector<double> found, reference;
        for (int64_t k = 0; k < ggml_nelements(gradients[i]); k++) {
            found.push_back(static_cast<const float *>(trainer.states()[i].gradient->data)[k]);
            // ggml's loss is the mean over the rows
            reference.push_back(static_cast<const float *>(gradients[i]->data)[k] *
                                static_cast<double>(targets.size()));
        }
        check(name + ": " + adapter->tensors()[i].first, relative_difference(found, reference), 1e-4);
    }
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc < 2) {
        std::fprintf(stderr, "usage: %s MODEL.gguf...\n", argv[0]);
        return 2;
    }
    try {
        for (int i = 1; i < argc; i++) {
            run(argv[i]);
        }
    } catch (const Error & e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
    return finish();
}
