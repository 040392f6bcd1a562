// Makers of ggml's own nodes where finite differences do not reach: limits, tails and zero, the loss of improbable
// targets.
#include <ggml-cpp.h>

#include <cmath>
#include <functional>

#include "check.h"
#include "engine/executor.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/ggml/ggml_ops.h"

namespace {

using namespace ggtune;
using namespace ggtune::test;

using Values = std::vector<float>;

// Inputs in memory of their own, and a node that is made of them.
class Computation {
  public:
    ggml_tensor * floats(const std::vector<int64_t> & ne, const Values & values) {
        ggml_tensor * t = ggml_new_tensor(context_.get(), GGML_TYPE_F32, static_cast<int>(ne.size()), ne.data());
        return filled(t, values.data());
    }
    ggml_tensor * integers(const std::vector<int32_t> & values) {
        ggml_tensor * t = ggml_new_tensor_1d(context_.get(), GGML_TYPE_I32, values.size());
        return filled(t, values.data());
    }
    // The values of the nodes, which are computed one after another.
    std::vector<Values> compute(const std::vector<ggml_tensor *> & nodes) {
        ggml_cgraph * graph = ggml_new_graph_custom(context_.get(), 256, false);
        for (ggml_tensor * node : nodes) {
            ggml_set_output(node);
            ggml_build_forward_expand(graph, node);
        }
        Executor executor(2);
        executor.allocate(graph);
        for (const auto & [tensor, bytes] : contents_) {
            ggml_backend_tensor_set(tensor, bytes.data(), 0, bytes.size());
        }
        executor.compute(graph, 0, ggml_graph_n_nodes(graph));
        std::vector<Values> results;
        for (const ggml_tensor * node : nodes) {
            results.emplace_back(ggml_nelements(node));
            ggml_backend_tensor_get(node, results.back().data(), 0, ggml_nbytes(node));
        }
        return results;
    }

  private:
    ggml_tensor * filled(ggml_tensor * t, const void * values) {
        ggml_set_input(t);
        const auto * bytes = static_cast<const uint8_t *>(values);
        contents_.push_back({t, {bytes, bytes + ggml_nbytes(t)}});
        return t;
    }

    const ggml_context_ptr context_{ggml_init({1 << 20, nullptr, true})};
    std::vector<std::pair<ggml_tensor *, std::vector<uint8_t>>> contents_;

  public:
    CpuOps cpu{context_.get()};
    GgmlOps ggml{context_.get()};
};

void test_derivatives_at_zero_and_far_out() {
    const Values x = {0.0f, -0.0f, 1e-30f, -1e-30f, 1e-12f, -1e-12f, 3.0f, -3.0f, 12.0f, -12.0f, 80.0f, -80.0f};
    for (const auto & [name, f] :
         std::initializer_list<std::pair<const char *, Activation>>{{"silu", Activation::silu},
                                                                    {"gelu", Activation::gelu},
                                                                    {"gelu_erf", Activation::gelu_erf},
                                                                    {"gelu_quick", Activation::gelu_quick},
                                                                    {"relu", Activation::relu},
                                                                    {"tanh", Activation::tanh},
                                                                    {"sigmoid", Activation::sigmoid},
                                                                    {"sqr", Activation::sqr}}) {
        Computation c;
        const auto n = static_cast<int64_t>(x.size());
        ggml_tensor * at = c.floats({n}, x);
        ggml_tensor * dy = c.floats({n}, Values(n, 1.0f));
        const auto found = c.compute({c.ggml.activation_dx(f, at, dy), c.cpu.activation_dx(f, at, dy)});
        double largest = 0;
        for (int64_t i = 0; i < n; i++) {
            const double difference = std::abs(found[0][i] - static_cast<double>(found[1][i]));
            largest = std::isnan(difference) ? NAN : std::max(largest, difference);
        }
        check(std::string(name) + ": derivative at zero and far out", largest, 1e-6);
    }
}

void test_limits_belong_to_the_range() {
    Computation c;
    ggml_tensor * x = c.floats({5}, {-2.0f, -1.0f, 0.0f, 0.5f, 0.6f});
    ggml_tensor * dy = c.floats({5}, {1.0f, 2.0f, 3.0f, 4.0f, 5.0f});
    const auto found = c.compute({c.ggml.clamp_dx(x, dy, -1.0f, 0.5f), c.ggml.clamp_dx(x, dy, -INFINITY, INFINITY)});
    check("clamp: at the limits", found[0] == Values{0.0f, 2.0f, 3.0f, 4.0f, 0.0f} ? 0 : 1, 0);
    check("clamp: no limits", found[1] == Values{1.0f, 2.0f, 3.0f, 4.0f, 5.0f} ? 0 : 1, 0);
}

// Targets from likely to impossible for a float: log p = -200.
void test_loss() {
    constexpr int64_t kNVocab = 50, kNRows = 4;
    Values logits = random_values(kNVocab * kNRows, 3, 3.0f);
    const std::vector<int32_t> targets = {7, 0, 49, 20};
    const Values weights = {1.0f, -0.5f, 2.0f, 0.25f};
    logits[0 * kNVocab + 7] = 30.0f;
    logits[2 * kNVocab + 49] = -200.0f;
    for (int64_t i = 0; i < kNVocab; i++) {
        logits[3 * kNVocab + i] += 5000.0f;  // what is common to a row counts nothing
    }
    std::vector<double> log_probs, gradient;
    for (int64_t row = 0; row < kNRows; row++) {
        const float * of_row = logits.data() + row * kNVocab;
        const double largest = *std::max_element(of_row, of_row + kNVocab);
        double sum = 0;
        for (int64_t i = 0; i < kNVocab; i++) {
            sum += std::exp(of_row[i] - largest);
        }
        log_probs.push_back(of_row[targets[row]] - largest - std::log(sum));
        for (int64_t i = 0; i < kNVocab; i++) {
            gradient.push_back(weights[row] * (std::exp(of_row[i] - largest) / sum - (i == targets[row])));
        }
    }
    Computation c;
    ggml_tensor * l = c.floats({kNVocab, kNRows}, logits);
    ggml_tensor * t = c.integers(targets);
    ggml_tensor * w = c.floats({kNRows}, weights);
    ggml_tensor * values = c.ggml.log_probabilities(l, t);
    const auto found = c.compute({values, c.ggml.cross_entropy_dx(l, t, w, values)});
    for (int64_t row = 0; row < kNRows; row++) {
        check("log p of row " + std::to_string(row), std::abs(found[0][row] - log_probs[row]),
              1e-6 * std::max(1.0, std::abs(log_probs[row])));
    }
    check("gradient of the logits", relative_difference(found[1], gradient), 1e-6);
}

}  // namespace

int main() {
    test_derivatives_at_zero_and_far_out();
    test_limits_belong_to_the_range();
    test_loss();
    return finish();
}
