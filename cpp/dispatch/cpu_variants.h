// The choice among the variants of the CPU code, made once when the program starts: the fastest that the machine runs,
// or the one that the environment variable GGTUNE_CPU names.
#pragma once

#include <string>
#include <vector>

namespace ggtune {

// The variants in this build that the machine runs, slowest first.
std::vector<std::string> cpu_variants();

// The variant in use. Throws std::runtime_error where GGTUNE_CPU names none of cpu_variants().
std::string cpu_variant();

}  // namespace ggtune
