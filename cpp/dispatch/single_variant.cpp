// Where the CPU code is compiled once: GGTUNE_SINGLE_VARIANT is the name for it.
#include <cstdlib>
#include <stdexcept>

#include "dispatch/cpu_variants.h"

namespace ggtune {

std::vector<std::string> cpu_variants() {
    return {GGTUNE_SINGLE_VARIANT};
}

std::string cpu_variant() {
    const char * name = std::getenv("GGTUNE_CPU");
    if (name != nullptr && *name != '\0' && std::string(name) != GGTUNE_SINGLE_VARIANT) {
        throw std::runtime_error("the environment variable GGTUNE_CPU is " + std::string(name) +
                                 ", but this build has one variant of the CPU code alone: " GGTUNE_SINGLE_VARIANT);
    }
    return GGTUNE_SINGLE_VARIANT;
}

}  // namespace ggtune
