// Bindings of ScaleTuner.
#include "engine/scale_tuner.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <string_view>
#include <tuple>

#include "base/error.h"
#include "bindings/bindings.h"
#include "files/quantize.h"

namespace ggtune {

namespace {

std::vector<ScaleTuner::Weight> to_weights(const std::vector<std::tuple<std::string, std::string, py::bytes>> & given) {
    std::vector<ScaleTuner::Weight> weights;
    for (const auto & [name, type, data] : given) {
        const std::string_view bytes = data;
        weights.push_back({name, type_from_name(type), {bytes.begin(), bytes.end()}});
    }
    return weights;
}

}  // namespace

void bind_scale_tuning(py::module_ & m) {
    py::class_<ScaleTuner>(m, "ScaleTuner")
        .def(py::init([](const std::shared_ptr<Model> & model, const std::string & adapter,
                         const std::vector<std::tuple<std::string, std::string, py::bytes>> & merged, int64_t context,
                         int threads, const std::string & precision) {
                 std::vector<ScaleTuner::Weight> weights = to_weights(merged);
                 const ScaleTuner::Options options = {context, threads, to_precision(precision)};
                 const py::gil_scoped_release release;  // the model is held by the caller's arguments
                 return std::make_unique<ScaleTuner>(*model, adapter, std::move(weights), options);
             }),
             py::arg("model"), py::arg("adapter"), py::arg("merged"), py::kw_only(), py::arg("context"),
             py::arg("threads") = 1, py::arg("precision") = "auto", py::keep_alive<1, 2>())
        .def_property(
            "recompute_layers", [](const ScaleTuner & tuner) { return tuner.recompute_layers; },
            [](ScaleTuner & tuner, int n) { tuner.recompute_layers = std::max(n, 0); })
        .def(
            "add",
            [](ScaleTuner & tuner, const IntArray & tokens, const IntArray & positions, const IntArray & sequences,
               const IntArray & targets, const FloatArray & weights) {
                const BatchArrays arrays{tokens, positions, sequences, targets, weights};
                const MicroBatch batch = arrays.view();
                const py::gil_scoped_release release;
                return tuner.add(batch);
            },
            py::arg("tokens"), py::arg("positions"), py::arg("sequences"), py::arg("targets"), py::arg("weights"))
        .def("accumulate", &ScaleTuner::accumulate, py::arg("number"), py::call_guard<py::gil_scoped_release>())
        .def("step", &ScaleTuner::step, py::arg("lr"), py::call_guard<py::gil_scoped_release>())
        .def("weights",
             [](const ScaleTuner & tuner) {
                 std::map<std::string, py::bytes> weights;
                 for (const ScaleTuner::Weight & weight : tuner.weights()) {
                     weights[weight.name] =
                         py::bytes(reinterpret_cast<const char *>(weight.data.data()), weight.data.size());
                 }
                 return weights;
             })
        .def("gradients",
             [](const ScaleTuner & tuner) {
                 std::map<std::string, FloatArray> gradients;
                 const std::vector<std::string> names = tuner.tuned();
                 const std::vector<std::vector<float>> values = tuner.gradients();
                 for (size_t i = 0; i < names.size(); i++) {
                     gradients[names[i]] = to_array(values[i]);
                 }
                 return gradients;
             })
        .def_property_readonly("tuned", &ScaleTuner::tuned)
        .def_property_readonly("n_factors", &ScaleTuner::n_factors)
        .def("memory", &ScaleTuner::n_bytes, py::arg("n_tokens"), py::arg("n_sequences") = 1,
             py::call_guard<py::gil_scoped_release>());
}

}  // namespace ggtune
