// What the machine and the build have.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace ggtune {

// Bytes that this process can still take without swapping: the kernel's estimate (MemAvailable), or less where a
// control group (version 1 or 2) of the process allows less. Off Linux the physical memory.
int64_t available_memory();

// "llama.cpp": its version; "backends": ggml's device backends; "cpu": ggml's description of the CPU; "cpu_features":
// the instruction sets that this build uses.
std::map<std::string, std::string> build_info();

}  // namespace ggtune
