// Bindings of Model and of what it lists.
#include "engine/model.h"
#include "engine/devices.h"
#include "engine/inference.h"
#include "files/llama_log.h"

#include <llama.h>
#include <pybind11/stl.h>

#include "bindings/bindings.h"

namespace ggtune {

namespace {

struct TensorInfo {
    std::string name;
    std::string type;
    std::vector<int64_t> shape;
    size_t n_bytes;
};

std::vector<TensorInfo> tensor_infos(const Model & model) {
    std::vector<TensorInfo> infos;
    for (const auto & [name, tensor] : model.tensors()) {
        TensorInfo info{name, ggml_type_name(tensor->type), {}, ggml_nbytes(tensor)};
        for (int d = ggml_n_dims(tensor) - 1; d >= 0; d--) {
            info.shape.push_back(tensor->ne[d]);
        }
        infos.push_back(std::move(info));
    }
    return infos;
}

}  // namespace

void bind_model(py::module_ & m) {
    py::class_<TensorInfo>(m, "TensorInfo")
        .def_readonly("name", &TensorInfo::name)
        .def_readonly("type", &TensorInfo::type)
        .def_property_readonly("shape", [](const TensorInfo & t) { return py::tuple(py::cast(t.shape)); })
        .def_readonly("n_bytes", &TensorInfo::n_bytes);

    py::class_<Linear>(m, "Linear")
        .def_readonly("name", &Linear::name)
        .def_readonly("kind", &Linear::kind)
        .def_readonly("layer", &Linear::layer)
        .def_readonly("n_in", &Linear::n_in)
        .def_readonly("n_out", &Linear::n_out)
        .def_readonly("n_mat", &Linear::n_mat)
        .def_readonly("routed", &Linear::routed)
        .def_readonly("scale", &Linear::scale)
        .def_property_readonly("type", [](const Linear & l) { return ggml_type_name(l.weight->type); });

    py::class_<Model, std::shared_ptr<Model>>(m, "Model")
        .def(py::init([](const std::string & path, const std::vector<std::string> & devices,
                         const std::vector<int> & device_layers, const std::vector<int> & cpu_layers, int cpu_experts,
                         bool exact, bool vocab_only, bool header_only) {
                 const py::gil_scoped_release release;  // only C++ values are used
                 return std::make_shared<Model>(path,
                                                vocab_only    ? Model::Contents::vocabulary
                                                : header_only ? Model::Contents::header
                                                              : Model::Contents::all,
                                                Places{devices, device_layers, cpu_layers, cpu_experts, exact});
             }),
             py::arg("path"), py::kw_only(), py::arg("devices") = std::vector<std::string>(),
             py::arg("device_layers") = std::vector<int>(), py::arg("cpu_layers") = std::vector<int>(),
             py::arg("cpu_experts") = 0, py::arg("exact") = false, py::arg("vocab_only") = false,
             py::arg("header_only") = false)
        .def_readonly("path", &Model::path)
        .def_property_readonly("architecture", &Model::architecture)
        .def_property_readonly("chat_template", &Model::chat_template)
        .def_property_readonly("n_params", &Model::n_params)
        .def_property_readonly("n_bytes", &Model::n_bytes)
        .def_property_readonly("n_layer", &Model::n_layer)
        .def_property_readonly("n_embd", &Model::n_embd)
        .def_property_readonly("n_vocab", &Model::n_vocab)
        .def_property_readonly("n_ctx_train", &Model::n_ctx_train)
        .def_property_readonly("bos_token", [](const Model & model) { return llama_vocab_bos(&model.vocab()); })
        .def_property_readonly("eos_token", [](const Model & model) { return llama_vocab_eos(&model.vocab()); })
        .def_property_readonly("add_bos", [](const Model & model) { return llama_vocab_get_add_bos(&model.vocab()); })
        .def_property_readonly("add_eos", [](const Model & model) { return llama_vocab_get_add_eos(&model.vocab()); })
        .def_property_readonly("layer_bytes", &Model::layer_bytes)
        .def_property_readonly("layer_devices",
                               [](const Model & model) {
                                   std::vector<std::string> names;
                                   for (ggml_backend_dev_t device : model.layer_devices()) {
                                       names.push_back(place_name(device));
                                   }
                                   return names;
                               })
        .def_property_readonly("device_bytes",
                               [](const Model & model) {
                                   std::map<std::string, uint64_t> n_bytes = {{"CPU", model.n_bytes_on(nullptr)}};
                                   for (const std::string & name : model.places.devices) {
                                       n_bytes[name] = model.n_bytes_on(device_by_name(name));
                                   }
                                   return n_bytes;
                               })
        .def("metadata", &Model::metadata)
        .def("tensors", tensor_infos)
        .def("linears", &Model::linears)
        .def(
            "tokenize",
            [](const Model & model, const std::string & text, bool add_special, bool parse_special) {
                std::vector<int32_t> tokens;
                {
                    const py::gil_scoped_release release;  // the text is a copy, the tokenizer is read only
                    tokens = model.tokenize(text, add_special, parse_special);
                }
                return to_array(tokens);
            },
            py::arg("text"), py::kw_only(), py::arg("add_special") = false, py::arg("parse_special") = true)
        .def(
            "detokenize",
            [](const Model & model, const IntArray & tokens, bool special) {
                return py::bytes(model.detokenize(to_vector(tokens), special));
            },
            py::arg("tokens"), py::kw_only(), py::arg("special") = false)
        .def("check_answers", check_answers, py::call_guard<py::gil_scoped_release>())
        .def("is_end_token", [](const Model & model, int32_t token) {
            return token >= 0 && token < model.n_vocab() && llama_vocab_is_eog(&model.vocab(), token);
        });

    py::class_<DeviceInfo>(m, "DeviceInfo")
        .def_readonly("name", &DeviceInfo::name)
        .def_readonly("description", &DeviceInfo::description)
        .def_readonly("backend", &DeviceInfo::backend)
        .def_readonly("kind", &DeviceInfo::kind)
        .def_readonly("free_bytes", &DeviceInfo::free_bytes)
        .def_readonly("total_bytes", &DeviceInfo::total_bytes)
        .def_readonly("half_products", &DeviceInfo::half_products);
    m.def("devices", list_devices, py::call_guard<py::gil_scoped_release>());

    m.def("set_log_verbose", set_llama_log_verbose, py::arg("verbose"));
}

}  // namespace ggtune
