// Bindings of single kernels, for tests and benchmarks.
#include <pybind11/stl.h>

#include <chrono>
#include <numeric>
#include <optional>
#include <thread>

#include "base/error.h"
#include "bindings/bindings.h"
#include "files/quantize.h"
#include "kernels/bf16_product.h"
#include "kernels/huge_pages.h"
#include "kernels/tile_rate.h"
#include "kernels/weight_product.h"

namespace ggtune {

namespace {

// Runs work(i) for 0 <= i < n, each on a thread of its own.
template <typename Work>
void on_threads(int n, Work work) {
    std::vector<std::thread> workers;
    for (int i = 0; i < n; i++) {
        workers.emplace_back(work, i);
    }
    for (std::thread & worker : workers) {
        worker.join();
    }
}

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
    on_threads(threads, [=](int i) {
        kernels::weight_input_gradient(type, w, row_bytes, n_in, n_out, dy, n_out, n_tokens, out, n_in, false, i,
                                       threads);
    });
    return dx;
}

std::pair<FloatArray, double> bf16_product(const std::string & type_name,
                                           const py::array_t<uint8_t, py::array::c_style> & weight,
                                           const FloatArray & x, int64_t n_in, bool gradient, int threads,
                                           int repeats) {
    const ggml_type type = type_from_name(type_name);
    const bool valid = x.ndim() == 2 && x.shape(0) > 0 && n_in >= 1 && n_in % ggml_blck_size(type) == 0 &&
                       threads >= 1 && repeats >= 1;
    const size_t row_bytes = valid ? ggml_row_size(type, n_in) : 1;
    const auto n_out = static_cast<int64_t>(static_cast<size_t>(weight.size()) / row_bytes);
    if (!valid || n_out < 1 || static_cast<size_t>(weight.size()) % row_bytes != 0 ||
        x.shape(1) != (gradient ? n_out : n_in)) {
        throw Error("the weight must hold rows of n_in values of type " + type_name + ", and x a column for each " +
                    (gradient ? "of them" : "value of a row"));
    }
    const int64_t n_tokens = x.shape(0);
    const int64_t depth = x.shape(1);
    const int64_t n_columns = gradient ? n_in : n_out;
    FloatArray result({n_tokens, n_columns});
    const float * from = x.data();
    float * to = result.mutable_data();
    const uint8_t * w = weight.data();
    const py::gil_scoped_release release;  // the arrays are held by this call
    const int64_t n_panels = kernels::bf16_panel_count(n_tokens);
    std::vector<char> packed(static_cast<size_t>(n_panels + 1) * kernels::bf16_panel_bytes(depth));
    const auto pack = gradient ? kernels::bf16_pack_gradients : kernels::bf16_pack_inputs;
    pack(from, depth, depth, n_tokens, 1.0f, packed.data(), 0, n_panels);
    const kernels::Bf16Term term = {type, w, row_bytes, depth, packed.data()};
    const kernels::Bf16Blocks block = kernels::bf16_blocks(n_tokens, n_columns, threads);
    kernels::prefer_huge_pages(to, static_cast<size_t>(n_tokens * n_columns) * sizeof(float));
    std::vector<kernels::Dealer> dealers(static_cast<size_t>(repeats));
    const auto start = std::chrono::steady_clock::now();
    on_threads(threads, [&](int) {
        for (kernels::Dealer & dealer : dealers) {
            dealer.run((n_columns + block.columns - 1) / block.columns, threads, [&](kernels::Range blocks) {
                const kernels::Range columns = {blocks.begin * block.columns,
                                                std::min(blocks.end * block.columns, n_columns)};
                const auto multiply = gradient ? kernels::bf16_input_gradient : kernels::bf16_forward;
                multiply(&term, 1, n_tokens, to, n_columns, false, {0, n_tokens}, columns);
            });
        }
    });
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    return {std::move(result), elapsed.count() / repeats};
}

std::optional<double> matrix_unit_rate(int threads, double seconds) {
    if (threads < 1 || !(seconds > 0)) {
        throw Error("threads and seconds must be more than 0");
    }
    const py::gil_scoped_release release;  // nothing of Python's is touched
    std::vector<double> rates(static_cast<size_t>(threads));
    on_threads(threads, [&](int i) { rates[static_cast<size_t>(i)] = kernels::matrix_unit_rate(seconds); });
    const double sum = std::accumulate(rates.begin(), rates.end(), 0.0);
    return sum > 0 ? std::optional<double>(sum) : std::nullopt;
}

}  // namespace

void bind_kernels(py::module_ & m) {
    m.def("weight_gradient_input", weight_gradient_input, py::arg("type"), py::arg("weight"), py::arg("d_output"),
          py::arg("n_in"), py::kw_only(), py::arg("threads") = 1, py::arg("reference") = false);
    m.def("bf16_product", bf16_product, py::arg("type"), py::arg("weight"), py::arg("x"), py::arg("n_in"),
          py::kw_only(), py::arg("gradient") = false, py::arg("threads") = 1, py::arg("repeats") = 1);
    m.def("matrix_unit_rate", matrix_unit_rate, py::kw_only(), py::arg("threads") = 1, py::arg("seconds") = 0.05);
}

}  // namespace ggtune
