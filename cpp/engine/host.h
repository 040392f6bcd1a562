// What the build has.
#pragma once

#include <map>
#include <string>

namespace ggtune {

// "llama.cpp": its version; "backends": ggml's device backends; "cpu": ggml's description of the CPU; "cpu_features":
// the instruction sets that llama.cpp uses; "cpu_variant": kernel_variant().
std::map<std::string, std::string> build_info();

// For which kind of CPU the kernels in use are compiled (dispatch/cpu_variants.h). Throws Error where the environment
// variable GGTUNE_CPU asks for one that is not there.
std::string kernel_variant();

}  // namespace ggtune
