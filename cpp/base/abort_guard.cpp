#include "base/abort_guard.h"

#include <ggml.h>

#include <cstdio>
#include <mutex>
#include <stdexcept>

namespace ggtune {

namespace {

thread_local int n_guards = 0;

// ggml has one callback for all threads, so it stays in place and asks whether this thread is guarded.
void on_abort(const char * message) {
    if (n_guards > 0) {
        throw std::runtime_error(message);
    }
    std::fprintf(stderr, "%s\n", message);
}

}  // namespace

AbortAsException::AbortAsException() {
    static std::once_flag once;
    std::call_once(once, [] { ggml_set_abort_callback(on_abort); });
    n_guards++;
}

AbortAsException::~AbortAsException() {
    n_guards--;
}

}  // namespace ggtune
