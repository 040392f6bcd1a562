// Exceptions of the engine. The bindings map each of them to one Python exception.
#pragma once

#include <exception>
#include <new>
#include <stdexcept>
#include <string>

namespace ggtune {

// Something the user can mend: the message says what is wrong, where, and what to do (ggtune.errors.GgtuneError).
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A model or adapter file that can't be used (ggtune.errors.ModelError).
struct ModelFileError : Error {
    using Error::Error;
};

// A gradient that has no finite norm (ggtune.errors.NotFiniteError).
struct NotFiniteError : Error {
    using Error::Error;
};

// Too little memory on a device (ggtune.errors.DeviceMemoryError).
struct DeviceMemoryError : Error {
    using Error::Error;
};

// A device that failed while it computed. What lies in its memory is lost, what the host has is not
// (ggtune.errors.DeviceLostError).
struct DeviceLostError : Error {
    using Error::Error;
};

// What to say of an exception of llama.cpp's or the standard library's, whose own text may be "unordered_map::at".
inline std::string reason(const std::exception & exception) {
    if (dynamic_cast<const std::out_of_range *>(&exception) != nullptr) {
        return "an entry that llama.cpp looks up is missing";
    }
    if (dynamic_cast<const std::bad_alloc *>(&exception) != nullptr) {
        return "not enough memory";
    }
    return exception.what();
}

// A signal arrived while the engine was at work. The Python exception that it caused is already set.
struct Interrupted : std::exception {
    const char * what() const noexcept override { return "interrupted"; }
};

}  // namespace ggtune
