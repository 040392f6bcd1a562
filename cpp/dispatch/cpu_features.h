// What the CPU and the operating system let a program use.
#pragma once

namespace ggtune {

// True where this machine runs code compiled for a variant of cpp/dispatch/CMakeLists.txt; false for other names.
bool can_run_variant(const char * name);

}  // namespace ggtune
