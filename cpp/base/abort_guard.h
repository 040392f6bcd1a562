// ggml ends the process where an assertion fails.
#pragma once

namespace ggtune {

// As long as one lives, such an abort on the same thread is a std::runtime_error with ggml's message instead, which
// names the line of the source without its folder.
class AbortAsException {
  public:
    enum class Around {
        calls,        // that compute nothing
        computation,  // likewise where ggml works on several threads: an exception there would leave the others waiting
                      // for this one, so that an abort inside a parallel region stays one. Needs OpenMP to tell.
    };
    explicit AbortAsException(Around around = Around::calls);
    ~AbortAsException();
    AbortAsException(const AbortAsException &) = delete;
    AbortAsException & operator=(const AbortAsException &) = delete;

  private:
    const bool active_;
};

}  // namespace ggtune
