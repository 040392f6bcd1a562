// What the build has.
#pragma once

#include <map>
#include <string>

namespace ggtune {

// "llama.cpp": its version; "backends": ggml's device backends; "cpu": ggml's description of the CPU; "cpu_features":
// the instruction sets that this build uses.
std::map<std::string, std::string> build_info();

}  // namespace ggtune
