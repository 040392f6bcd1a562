// One function per binding file; module.cpp calls them all.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "engine/devices.h"

namespace ggtune {

namespace py = pybind11;

using IntArray = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

void bind_model(py::module_ & m);
void bind_training(py::module_ & m);
void bind_generation(py::module_ & m);
void bind_kernels(py::module_ & m);
void bind_files(py::module_ & m);

// nullptr is the CPU's
inline std::string place_name(ggml_backend_dev_t device) {
    return device != nullptr ? device_name(device) : "CPU";
}

template <typename T>
py::array_t<T> to_array(const std::vector<T> & values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

inline std::vector<int32_t> to_vector(const IntArray & values) {
    return {values.data(), values.data() + values.size()};
}

}  // namespace ggtune
