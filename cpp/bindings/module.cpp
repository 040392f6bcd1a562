// The module: exceptions, interruption, and the binding files of each domain.
#include "bindings/bindings.h"

#include <chrono>

#include "base/error.h"
#include "base/interrupt.h"

namespace ggtune {

namespace {

void raise_as(const char * class_name, const char * message) {
    const py::object type = py::module_::import("ggtune.errors").attr(class_name);
    PyErr_SetString(type.ptr(), message);
}

void translate(std::exception_ptr exception) {
    try {
        if (exception) {
            std::rethrow_exception(exception);
        }
    } catch (const Interrupted &) {
        if (PyErr_Occurred() == nullptr) {
            PyErr_SetNone(PyExc_KeyboardInterrupt);
        }
    } catch (const ModelFileError & e) {
        raise_as("ModelError", e.what());
    } catch (const NotFiniteError & e) {
        raise_as("NotFiniteError", e.what());
    } catch (const DeviceMemoryError & e) {
        raise_as("DeviceMemoryError", e.what());
    } catch (const DeviceLostError & e) {
        raise_as("DeviceLostError", e.what());
    } catch (const Error & e) {
        raise_as("GgtuneError", e.what());
    }
}

// Called by the engine between nodes, on the thread that called it. Python's own signal handlers only note that a
// signal came; what they should do happens here, at most every 100 ms, since taking the GIL is not free.
bool check_signals() {
    using Clock = std::chrono::steady_clock;
    thread_local Clock::time_point last = Clock::now();
    const Clock::time_point now = Clock::now();
    if (now - last < std::chrono::milliseconds(100)) {
        return false;
    }
    last = now;
    const py::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
}

}  // namespace

}  // namespace ggtune

PYBIND11_MODULE(_core, m) {
    using namespace ggtune;
    m.doc() = "llama.cpp, and ggtune's gradients and kernels. Types and documentation: _core.pyi.";
    py::register_exception_translator(translate);
    set_interrupt_check(check_signals);
    bind_model(m);
    bind_training(m);
    bind_scale_tuning(m);
    bind_generation(m);
    bind_kernels(m);
    bind_files(m);
}
