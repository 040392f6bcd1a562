#!/usr/bin/env bash
# Cross-compile the kernel tests of each variant for aarch64 and run them under qemu-user: on a CPU that has dot products and
# no more, where the variant beyond it is skipped, and on one that has everything.
# Needs the Debian packages g++-aarch64-linux-gnu and qemu-user or qemu-user-static, CMake, Ninja, and vendor/llama.cpp
# (any build fills it).
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/aarch64}
qemu=$(command -v qemu-aarch64 || command -v qemu-aarch64-static)
sysroot=/usr/aarch64-linux-gnu
tests=(products elementwise attention int8_product bf16_product grid tile dispatch)

for cpu in neoverse-n1 max; do
    cmake -S . -B "$build" -G Ninja \
        -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
        -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
        -DCMAKE_CROSSCOMPILING_EMULATOR="$qemu;-cpu;$cpu;-L;$sysroot" \
        -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DGGTUNE_BUILD_PYTHON=OFF -DGGTUNE_BUILD_TESTS=ON
    cmake --build "$build" --target "${tests[@]/%/_test}"
    ctest --test-dir "$build" --output-on-failure -R "^($(IFS='|' && echo "${tests[*]}"))"
done
