// Bindings of single kernels, for tests and benchmarks.
#include <pybind11/stl.h>

#include <numeric>
#include <optional>
#include <thread>

#include "bindings/bindings.h"
#include "engine/error.h"
#include "engine/quantize.h"
#include "kernels/tile_rate.h"
#include "kernels/weight_product.h"

namespace ggtune {

namespace {

FloatArray weight_gradient_input(const std::string & type_name, const py::array_t<uint8_t, py::array::c_style> & weight,
                                 const FloatArray & d_output, int64_t n_in, int threads, bool reference) {
    const ggml_type type = type_from_name(type_name);
    if (d_output.ndim() != 2 || n_in < 1 || n_in % ggml_blck_size(type) != 0 || threads < 1 ||
        weight.size() != static_cast<py::ssize_t>(ggml_row_size(type, n_in)) * d_output.shape(1)) {
        throw Error("the weight must hold a row of n_in values of type " + type_name + " for each column of d_output");
    }
    const int64_t n_tokens = d_output.shape(0);
    const int64_t n_out = d_output.shape(1);
    const size_t row_bytes = ggml_row_size(type, n_in);
    FloatArray dx({n_tokens, n_in});
    const uint8_t * w = weight.data();
    const float * dy = d_output.data();
    float * out = dx.mutable_data();
    const py::gil_scoped_release release;  // the arrays are held by this call
    if (reference) {
        kernels::weight_input_gradient_reference(type, w, row_bytes, n_in, n_out, dy, n_out, n_tokens, out, n_in,
                                                 false);
        return dx;
    }
    std::vector<std::thread> workers;
    for (int i = 0; i < threads; i++) {
        workers.emplace_back([=] {
            kernels::weight_input_gradient(type, w, row_bytes, n_in, n_out, dy, n_out, n_tokens, out, n_in, false, i,
                                           threads);
        });
    }
    for (std::thread & worker : workers) {
        worker.join();
    }
    return dx;
}

std::optional<double> matrix_unit_rate(int threads, double seconds) {
    if (threads < 1 || !(seconds > 0)) {
        throw Error("threads and seconds must be more than 0");
    }
    const py::gil_scoped_release release;  // nothing of Python's is touched
    std::vector<double> rates(static_cast<size_t>(threads));
    std::vector<std::thread> workers;
    for (double & rate : rates) {
        workers.emplace_back([&rate, seconds] { rate = kernels::matrix_unit_rate(seconds); });
    }
    for (std::thread & worker : workers) {
        worker.join();
    }
    const double sum = std::accumulate(rates.begin(), rates.end(), 0.0);
    return sum > 0 ? std::optional<double>(sum) : std::nullopt;
}

}  // namespace

void bind_kernels(py::module_ & m) {
    m.def("weight_gradient_input", weight_gradient_input, py::arg("type"), py::arg("weight"), py::arg("d_output"),
          py::arg("n_in"), py::kw_only(), py::arg("threads") = 1, py::arg("reference") = false);
    m.def("matrix_unit_rate", matrix_unit_rate, py::kw_only(), py::arg("threads") = 1, py::arg("seconds") = 0.05);
}

}  // namespace ggtune
