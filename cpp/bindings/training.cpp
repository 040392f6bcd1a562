// Bindings of Adapter and Trainer.
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "base/error.h"
#include "bindings/bindings.h"
#include "engine/trainer.h"

namespace ggtune {

namespace {

// ggml's ne = [a, b] is NumPy's shape (b, a), and [a, b, n] of a stack (n, b, a)
std::vector<py::ssize_t> shape_of(const ggml_tensor * t) {
    std::vector<py::ssize_t> shape = {t->ne[1], t->ne[0]};
    if (t->ne[2] > 1) {
        shape.insert(shape.begin(), t->ne[2]);
    }
    return shape;
}

FloatArray copy_out(const ggml_tensor * shape, const float * values) {
    return FloatArray(shape_of(shape), values);
}

void check_shape(const std::string & name, const ggml_tensor * t, const FloatArray & values) {
    const std::vector<py::ssize_t> shape = shape_of(t);
    if (!std::equal(shape.begin(), shape.end(), values.shape(), values.shape() + values.ndim())) {
        std::string text;
        for (const py::ssize_t n : shape) {
            text += (text.empty() ? "" : ", ") + std::to_string(n);
        }
        throw Error(name + " has shape (" + text + "), not that of the given array");
    }
}

OpsKind to_ops(const std::string & name) {
    if (name == "cpu") {
        return OpsKind::cpu;
    }
    if (name == "ggml") {
        return OpsKind::ggml;
    }
    throw Error("ops must be cpu or ggml, not '" + name + "'");
}

BatchResult accumulate(Trainer & trainer, const IntArray & tokens, const IntArray & positions,
                       const IntArray & sequences, const IntArray & targets, const FloatArray & weights) {
    const BatchArrays arrays{tokens, positions, sequences, targets, weights};  // held until the engine is done
    const MicroBatch batch = arrays.view();
    const py::gil_scoped_release release;
    return trainer.accumulate(batch);
}

BatchResult evaluate(Trainer & trainer, const IntArray & tokens, const IntArray & positions, const IntArray & sequences,
                     const IntArray & targets, const FloatArray & weights, bool predictions) {
    const BatchArrays arrays{tokens, positions, sequences, targets, weights};  // held until the engine is done
    const MicroBatch batch = arrays.view();
    const py::gil_scoped_release release;
    return trainer.evaluate(batch, predictions);
}

using MemoryByPart = std::map<std::string, uint64_t>;

MemoryByPart by_part(const MemoryParts & parts) {
    return {{"weights", parts.weights},
            {"adapter", parts.adapter},
            {"optimizer", parts.optimizer},
            {"compute", parts.compute}};
}

using Moments = std::map<std::string, std::pair<FloatArray, FloatArray>>;

Moments get_moments(Trainer & trainer) {
    Moments moments;
    for (const Trainer::State & state : trainer.states()) {
        moments[state.name] = {copy_out(state.parameter, state.first_moment.data()),
                               copy_out(state.parameter, state.second_moment.data())};
    }
    return moments;
}

void set_moments(Trainer & trainer, const Moments & moments) {
    for (const Trainer::State & state : trainer.states()) {
        const auto it = moments.find(state.name);
        if (it == moments.end()) {
            throw Error("the moments of " + state.name + " are missing");
        }
        check_shape(state.name, state.parameter, it->second.first);
        check_shape(state.name, state.parameter, it->second.second);
    }
    for (Trainer::State & state : trainer.states()) {
        const auto & [first, second] = moments.at(state.name);
        std::copy_n(first.data(), first.size(), state.first_moment.begin());
        std::copy_n(second.data(), second.size(), state.second_moment.begin());
    }
}

}  // namespace

Precision to_precision(const std::string & name) {
    if (name == "auto") {
        return Precision::automatic;
    }
    if (name == "f32") {
        return Precision::f32;
    }
    if (name == "llama.cpp") {
        return Precision::llama_cpp;
    }
    throw Error("precision must be auto, f32 or llama.cpp, not '" + name + "'");
}

void bind_training(py::module_ & m) {
    py::class_<Adapter, std::shared_ptr<Adapter>>(m, "Adapter")
        .def(py::init([](const std::shared_ptr<Model> & model, int rank, float alpha,
                         const std::vector<std::string> & targets, bool rslora, uint64_t seed) {
                 return std::make_shared<Adapter>(*model, rank, alpha, targets, rslora, seed);
             }),
             py::arg("model"), py::kw_only(), py::arg("rank"), py::arg("alpha"), py::arg("targets"),
             py::arg("rslora") = false, py::arg("seed") = 0, py::keep_alive<1, 2>())
        .def_readonly("rank", &Adapter::rank)
        .def_readonly("alpha", &Adapter::alpha)
        .def_property_readonly("architecture", [](const Adapter & adapter) { return adapter.model().architecture(); })
        .def_property_readonly("n_params", &Adapter::n_params)
        .def_property_readonly("dropped", &Adapter::dropped)
        .def("drop", &Adapter::drop, py::arg("linears"))
        .def("tensor_names",
             [](const Adapter & adapter) {
                 std::vector<std::string> names;
                 for (const auto & entry : adapter.tensors()) {
                     names.push_back(entry.first);
                 }
                 return names;
             })
        .def("get",
             [](const Adapter & adapter, const std::string & name) {
                 const ggml_tensor * tensor = adapter.tensor(name);
                 return copy_out(tensor, adapter.values(tensor));
             })
        .def("set", [](Adapter & adapter, const std::string & name, const FloatArray & values) {
            ggml_tensor * tensor = adapter.tensor(name);
            check_shape(name, tensor, values);
            std::copy_n(values.data(), values.size(), adapter.values(tensor));
            adapter.push(tensor);
        });

    py::class_<BatchResult>(m, "BatchResult")
        .def_readonly("loss_sum", &BatchResult::loss_sum)
        .def_readonly("weight_sum", &BatchResult::weight_sum)
        .def_readonly("n_tokens", &BatchResult::n_tokens)
        .def_readonly("n_targets", &BatchResult::n_targets)
        .def_readonly("forward_s", &BatchResult::forward_s)
        .def_readonly("backward_s", &BatchResult::backward_s)
        .def_property_readonly("log_probs", [](const BatchResult & result) { return to_array(result.log_probs); })
        .def_property_readonly("predictions", [](const BatchResult & result) -> std::optional<IntArray> {
            if (result.predictions.empty()) {
                return std::nullopt;
            }
            return to_array(result.predictions);
        });

    py::class_<Trainer>(m, "Trainer")
        .def(py::init([](const std::shared_ptr<Adapter> & adapter, int64_t context, int threads, float dropout,
                         uint64_t seed, const std::string & precision, const std::string & ops,
                         std::optional<int> ggml_layers, float neftune_alpha) {
                 const Trainer::Options options = {
                     context, threads, dropout, seed, to_precision(precision), to_ops(ops), ggml_layers, neftune_alpha};
                 const py::gil_scoped_release release;  // the adapter is held by the trainer
                 return std::make_unique<Trainer>(adapter, options);
             }),
             py::arg("adapter"), py::kw_only(), py::arg("context"), py::arg("threads"), py::arg("dropout") = 0.0f,
             py::arg("seed") = 0, py::arg("precision") = "auto", py::arg("ops") = "cpu",
             py::arg("ggml_layers") = py::none(), py::arg("neftune_alpha") = 0.0f,
             py::keep_alive<1, 2>())  // the Python object of the adapter keeps the model
        .def_property(
            "recompute_layers", [](const Trainer & trainer) { return trainer.recompute_layers; },
            [](Trainer & trainer, int n) {
                trainer.recompute_layers = std::clamp(n, 0, trainer.adapter->model().n_layer());
            })
        .def_property_readonly("n_recomputable_layers", &Trainer::n_recomputable_layers)
        .def_readwrite("n_steps", &Trainer::n_steps)
        .def_readwrite("n_micro_batches", &Trainer::n_micro_batches)
        .def_property_readonly("adapter", [](const Trainer & trainer) { return trainer.adapter; })
        .def("accumulate", accumulate, py::arg("tokens"), py::arg("positions"), py::arg("sequences"),
             py::arg("targets"), py::arg("weights"))
        .def("evaluate", evaluate, py::arg("tokens"), py::arg("positions"), py::arg("sequences"), py::arg("targets"),
             py::arg("weights"), py::kw_only(), py::arg("predictions") = false)
        .def(
            "profile",
            [](Trainer & trainer, const IntArray & tokens, const IntArray & positions, const IntArray & sequences,
               const IntArray & targets, const FloatArray & weights) {
                const BatchArrays arrays{tokens, positions, sequences, targets,
                                         weights};  // held until the engine is done
                const MicroBatch batch = arrays.view();
                const py::gil_scoped_release release;
                Executor::Profile seconds;
                trainer.accumulate_profiled(batch, seconds);
                return seconds;
            },
            py::arg("tokens"), py::arg("positions"), py::arg("sequences"), py::arg("targets"), py::arg("weights"))
        .def(
            "predict_seconds",
            [](Trainer & trainer, const IntArray & tokens, const IntArray & positions, const IntArray & sequences,
               const IntArray & targets, const FloatArray & weights, bool gradients) {
                const BatchArrays arrays{tokens, positions, sequences, targets, weights};
                const MicroBatch batch = arrays.view();
                const py::gil_scoped_release release;
                return trainer.predict_seconds(batch, gradients);
            },
            py::arg("tokens"), py::arg("positions"), py::arg("sequences"), py::arg("targets"), py::arg("weights"),
            py::kw_only(), py::arg("gradients") = true)
        .def("gradients",
             [](Trainer & trainer) {
                 std::map<std::string, FloatArray> gradients;
                 std::vector<std::vector<float>> values;
                 {
                     const py::gil_scoped_release release;
                     values = trainer.gradients();
                 }
                 for (size_t i = 0; i < values.size(); i++) {
                     const Trainer::State & state = trainer.states()[i];
                     gradients[state.name] = copy_out(state.gradient, values[i].data());
                 }
                 return gradients;
             })
        .def("zero_gradients", &Trainer::zero_gradients)
        .def(
            "step",
            [](Trainer & trainer, double lr, std::optional<double> divisor, double beta1, double beta2, double epsilon,
               double weight_decay, double clip, double lora_plus_ratio) {
                return trainer.step({lr, beta1, beta2, epsilon, weight_decay, clip, lora_plus_ratio}, divisor);
            },
            py::arg("lr"), py::kw_only(), py::arg("divisor") = py::none(), py::arg("beta1") = 0.9,
            py::arg("beta2") = 0.999, py::arg("epsilon") = 1e-8, py::arg("weight_decay") = 0.0, py::arg("clip") = 0.0,
            py::arg("lora_plus_ratio") = 1.0, py::call_guard<py::gil_scoped_release>())
        .def("moments", get_moments)
        .def("set_moments", set_moments, py::arg("moments"))
        .def_property("loss_scale", &Trainer::loss_scale, &Trainer::set_loss_scale)
        .def_property_readonly("unsupported",
                               [](const Trainer & trainer) {
                                   std::vector<std::tuple<int, std::string, std::string>> found;
                                   for (const Unsupported & node : trainer.unsupported()) {
                                       found.emplace_back(node.layer, node.op, node.tensor);
                                   }
                                   return found;
                               })
        .def(
            "memory",
            [](const Trainer & trainer, int64_t n_tokens, int64_t n_targets, int64_t n_sequences) {
                return by_part(trainer.memory(n_tokens, n_targets, n_sequences).at(nullptr));
            },
            py::arg("n_tokens"), py::arg("n_targets"), py::arg("n_sequences") = 1,
            py::call_guard<py::gil_scoped_release>())
        .def(
            "device_memory",
            [](const Trainer & trainer, int64_t n_tokens, int64_t n_targets, int64_t n_sequences) {
                std::map<std::string, MemoryByPart> devices;
                for (const auto & [device, parts] : trainer.memory(n_tokens, n_targets, n_sequences)) {
                    if (device != nullptr) {
                        devices[device_name(device)] = by_part(parts);
                    }
                }
                return devices;
            },
            py::arg("n_tokens"), py::arg("n_targets"), py::arg("n_sequences") = 1,
            py::call_guard<py::gil_scoped_release>())
        .def("reserve", &Trainer::reserve, py::arg("n_tokens"), py::arg("n_targets"), py::arg("n_sequences") = 1,
             py::call_guard<py::gil_scoped_release>())
        .def("allocated",
             [](const Trainer & trainer) {
                 std::map<std::string, uint64_t> n_bytes;
                 for (const auto & [device, n] : trainer.allocated()) {
                     n_bytes[place_name(device)] = n;
                 }
                 return n_bytes;
             })
        .def(
            "splits",
            [](Trainer & trainer, int64_t n_tokens, int64_t n_targets, int64_t n_sequences) {
                return std::max(0, trainer.runs(n_tokens, n_targets, n_sequences) - 1);
            },
            py::arg("n_tokens"), py::arg("n_targets"), py::arg("n_sequences") = 1,
            py::call_guard<py::gil_scoped_release>())
        .def(
            "nodes",
            [](const Trainer & trainer, int64_t n_tokens, int64_t n_targets, int64_t n_sequences) {
                std::map<std::string, std::map<std::string, int>> found;
                for (const auto & [device, nodes] : trainer.nodes(n_tokens, n_targets, n_sequences)) {
                    found[place_name(device)] = nodes;
                }
                return found;
            },
            py::arg("n_tokens"), py::arg("n_targets"), py::arg("n_sequences") = 1,
            py::call_guard<py::gil_scoped_release>())
        .def_property_readonly("needs_equal_lengths", &Trainer::needs_equal_lengths)
        .def("graphs", &Trainer::graphs, py::arg("n_rows"))
        .def("n_custom_nodes", &Trainer::n_custom_nodes, py::arg("n_tokens"), py::arg("n_targets"),
             py::arg("n_sequences") = 1, py::call_guard<py::gil_scoped_release>());
}

}  // namespace ggtune
