// Linked to the tests of a variant of the kernels: ends the program as skipped where the machine can't run it.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "dispatch/cpu_features.h"

namespace {

// The first thing to run: anything later may come from the variant's objects.
__attribute__((constructor(101))) void skip_what_cannot_run() {
    constexpr const char * kVariant = GGTUNE_TEST_VARIANT;
    constexpr int kSkipped = 77;
    // "single": compiled for what the builder chose (GGTUNE_CPU_FLAGS)
    if (std::strcmp(kVariant, "single") != 0 && !ggtune::can_run_variant(kVariant)) {
        std::printf("skipped: this machine can't run the variant %s\n", kVariant);
        std::fflush(stdout);
        std::_Exit(kSkipped);
    }
}

}  // namespace
