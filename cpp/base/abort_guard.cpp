#include "base/abort_guard.h"

#include <ggml.h>

#ifdef GGTUNE_OPENMP
#include <omp.h>
#endif

#include <cstdio>
#include <mutex>
#include <stdexcept>
#include <string>

namespace ggtune {

namespace {

#ifdef GGTUNE_OPENMP
constexpr bool kKnowsParallelRegions = true;
bool in_parallel_region() {
    return omp_in_parallel() != 0;
}
#else
constexpr bool kKnowsParallelRegions = false;
bool in_parallel_region() {
    return false;
}
#endif

thread_local int n_guards = 0;

// "ggml.c:12: GGML_ASSERT(...) failed" of "/where/it/was/built/ggml.c:12: GGML_ASSERT(...) failed"
std::string without_folder(const std::string & message) {
    const size_t colon = message.find(": ");
    const size_t slash = message.rfind('/', colon);
    return slash == std::string::npos ? message : message.substr(slash + 1);
}

// ggml has one callback for all threads, so it stays in place and asks whether this thread is guarded.
void on_abort(const char * message) {
    if (n_guards > 0 && !in_parallel_region()) {
        throw std::runtime_error(without_folder(message));
    }
    std::fprintf(stderr, "%s\n", message);
}

}  // namespace

AbortAsException::AbortAsException(Around around) : active_(around == Around::calls || kKnowsParallelRegions) {
    static std::once_flag once;
    std::call_once(once, [] { ggml_set_abort_callback(on_abort); });
    n_guards += active_;
}

AbortAsException::~AbortAsException() {
    n_guards -= active_;
}

}  // namespace ggtune
