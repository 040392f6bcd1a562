// ggml ends the process where an assertion fails.
#pragma once

namespace ggtune {

// As long as one lives, such an abort on the same thread is a std::runtime_error with ggml's message instead.
// For calls that compute nothing: an exception would leave ggml's worker threads waiting.
class AbortAsException {
  public:
    AbortAsException();
    ~AbortAsException();
    AbortAsException(const AbortAsException &) = delete;
    AbortAsException & operator=(const AbortAsException &) = delete;
};

}  // namespace ggtune
