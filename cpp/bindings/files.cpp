// Bindings of everything that works on files: checking, merging, quantizing; and of the facts about machine and build.
#include "engine/host.h"
#include "engine/layer_inputs.h"
#include "files/gguf_check.h"
#include "files/gguf_file.h"
#include "files/merge.h"
#include "files/quantize.h"
#include "files/quantize_model.h"

#include <ggml-cpu.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/error.h"
#include "dispatch/cpu_variants.h"
#include "kernels/dequantize.h"

namespace py = pybind11;

namespace ggtune {

namespace {

using Bytes = py::array_t<uint8_t, py::array::c_style | py::array::forcecast>;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

// With the main thread inside C++ Python's signal handlers run nowhere else.
void check_signals() {
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) {
        throw Interrupted();
    }
}

kernels::Rounding rounding_from_name(const std::string & name) {
    if (name != "unbiased" && name != "nearest") {
        throw Error("unknown rounding '" + name + "'; known are unbiased, nearest");
    }
    return name == "unbiased" ? kernels::Rounding::unbiased : kernels::Rounding::nearest;
}

py::dict tensor_counts(const MergedTensor & tensor) {
    py::dict counts;
    counts["from"] = ggml_type_name(tensor.from);
    counts["to"] = ggml_type_name(tensor.to);
    counts["n_weights"] = tensor.n_weights;
    counts["n_moved"] = tensor.n_moved;
    counts["fitted"] = tensor.fitted;
    counts["change"] = tensor.change;
    counts["variance"] = tensor.variance;
    return counts;
}

py::dict merge_files(const std::string & base, const std::vector<std::pair<std::string, float>> & adapters,
                     const std::string & output, const std::optional<std::string> & outtype,
                     const std::map<std::string, std::string> & types,
                     const std::map<std::string, std::string> & scales, const std::string & rounding, uint64_t seed,
                     const std::vector<int32_t> & tokens, const std::vector<int32_t> & sequences,
                     const std::map<std::string, std::string> & metadata, int threads) {
    MergeOptions options;
    options.adapters = adapters;
    options.outtype = outtype;
    options.types = types;
    options.scales = scales;
    options.rounding = rounding_from_name(rounding);
    options.seed = seed;
    if (!tokens.empty()) {
        options.visit_inputs = inputs_of_sample(base, adapters, {tokens, sequences}, std::max(1, threads));
    }
    options.metadata = metadata;
    options.threads = threads;
    MergeResult result;
    {
        py::gil_scoped_release release;  // only C++ values from here on
        result = merge(base, output, options, check_signals);
    }
    py::dict tensors;
    for (const MergedTensor & tensor : result.tensors) {
        tensors[py::str(tensor.name)] = tensor_counts(tensor);
    }
    py::dict counts;
    counts["n_tensors"] = result.n_tensors;
    counts["n_merged_tensors"] = result.n_merged_tensors;
    counts["n_changed_rows"] = result.n_changed_rows;
    counts["n_bytes"] = result.n_bytes;
    counts["tensors"] = tensors;
    counts["not_fitted"] = result.not_fitted;
    return counts;
}

void quantize_file(const std::string & source, const std::string & output, const std::string & type, int threads,
                   const std::map<std::string, Floats> & imatrix,
                   const std::tuple<std::string, std::string, int64_t> & imatrix_source, bool allow_requantize,
                   bool pure, bool leave_output_tensor, const std::optional<std::string> & output_tensor_type,
                   const std::optional<std::string> & token_embedding_type) {
    QuantizeOptions options;
    options.threads = threads;
    options.allow_requantize = allow_requantize;
    options.pure = pure;
    options.leave_output_tensor = leave_output_tensor;
    options.output_tensor_type = output_tensor_type;
    options.token_embedding_type = token_embedding_type;
    for (const auto & [name, values] : imatrix) {
        options.imatrix[name].assign(values.data(), values.data() + values.size());
    }
    std::tie(options.imatrix_file, options.imatrix_dataset, options.imatrix_chunks) = imatrix_source;
    py::gil_scoped_release release;  // only C++ values from here on
    quantize_model(source, output, type, options, check_signals);
}

Floats dequantize_array(const std::string & type_name, const Bytes & data, int64_t n_per_row) {
    const ggml_type type = type_from_name(type_name);
    const int64_t n_row_bytes = row_bytes(type, n_per_row);
    if (data.size() % n_row_bytes != 0) {
        throw Error(std::to_string(data.size()) + " bytes are no multiple of the " + std::to_string(n_row_bytes) +
                    " of a row");
    }
    const int64_t n_rows = data.size() / n_row_bytes;
    Floats values({n_rows, n_per_row});
    const uint8_t * from = data.data();
    float * to = values.mutable_data();
    {
        py::gil_scoped_release release;  // both arrays are held by this call
        ggml_cpu_init();                 // the F16 tables on CPUs without such instructions
        kernels::dequantize_row(type, from, to, n_rows * n_per_row);
    }
    return values;
}

Bytes quantize_array(const std::string & type_name, const Floats & values) {
    const ggml_type type = type_from_name(type_name);
    if (values.ndim() != 2 || values.size() == 0) {
        throw Error("the values to quantize have to be an array of two dimensions that is not empty");
    }
    const int64_t n_rows = values.shape(0);
    const int64_t n_per_row = values.shape(1);
    Bytes data({n_rows, row_bytes(type, n_per_row)});
    const float * from = values.data();
    uint8_t * to = data.mutable_data();
    {
        py::gil_scoped_release release;  // both arrays are held by this call
        quantize_rows(type, from, to, n_rows, n_per_row, "the values");
    }
    return data;
}

void check_file(const std::string & path, bool vocab_only) {
    py::gil_scoped_release release;
    check_model(open_checked(path), vocab_only);
}

}  // namespace

void bind_files(py::module_ & m) {
    m.def("check_gguf", check_file, py::arg("path"), py::kw_only(), py::arg("vocab_only") = false);
    m.def("merge", merge_files, py::arg("base"), py::arg("adapters"), py::arg("output"), py::kw_only(),
          py::arg("outtype") = py::none(), py::arg("types") = std::map<std::string, std::string>(),
          py::arg("scales") = std::map<std::string, std::string>(), py::arg("rounding") = "unbiased",
          py::arg("seed") = 0, py::arg("tokens") = std::vector<int32_t>(),
          py::arg("sequences") = std::vector<int32_t>(), py::arg("metadata") = std::map<std::string, std::string>(),
          py::arg("threads") = 1);
    m.def("quantize_model", quantize_file, py::arg("source"), py::arg("output"), py::arg("type"), py::kw_only(),
          py::arg("threads") = 1, py::arg("imatrix") = std::map<std::string, Floats>(),
          py::arg("imatrix_source") = std::tuple<std::string, std::string, int64_t>(),
          py::arg("allow_requantize") = false, py::arg("pure") = false, py::arg("leave_output_tensor") = false,
          py::arg("output_tensor_type") = py::none(), py::arg("token_embedding_type") = py::none());
    m.def("file_types", file_types);
    m.def("dequantize", dequantize_array, py::arg("type"), py::arg("data"), py::arg("n_per_row"));
    m.def("quantize", quantize_array, py::arg("type"), py::arg("values"));
    m.def("build_info", build_info);
    m.def("kernel_variant", kernel_variant);
    m.def("cpu_variants", cpu_variants);
}

}  // namespace ggtune
