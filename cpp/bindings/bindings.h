// One function per binding file; module.cpp calls them all.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "engine/devices.h"
#include "engine/training_graph.h"

namespace ggtune {

namespace py = pybind11;

using IntArray = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

void bind_model(py::module_ & m);
void bind_training(py::module_ & m);
void bind_scale_tuning(py::module_ & m);
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

// auto, f32 or llama.cpp
Precision to_precision(const std::string & name);

// The five arrays of a micro-batch, to be held as long as it is read.
struct BatchArrays {
    IntArray tokens, positions, sequences, targets;
    FloatArray weights;

    MicroBatch view() const {
        const py::ssize_t n = tokens.size();
        for (const py::ssize_t size : {positions.size(), sequences.size(), targets.size(), weights.size()}) {
            if (size != n) {
                throw Error("the five arrays of a micro-batch must have the same length");
            }
        }
        return {n, tokens.data(), positions.data(), sequences.data(), targets.data(), weights.data()};
    }
};

}  // namespace ggtune
