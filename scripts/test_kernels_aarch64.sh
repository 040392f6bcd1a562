#!/usr/bin/env bash
# Cross-compile the kernel tests for aarch64, twice, and run them under qemu-user: with dot products alone on a CPU that has
# no more, and with bf16 and i8mm. Tiles by bf16 instructions are chosen at run time, so the first build has them, too.
# Needs the Debian packages g++-aarch64-linux-gnu and qemu-user or qemu-user-static, CMake, Ninja, and vendor/llama.cpp
# (any build fills it).
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/aarch64}
qemu=$(command -v qemu-aarch64 || command -v qemu-aarch64-static)
sysroot=/usr/aarch64-linux-gnu
tests=(products elementwise attention int8_product grid tile)

# run_tests FOLDER COMPILER_FLAGS CPU
run_tests() {
    cmake -S . -B "$1" -G Ninja \
        -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
        -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
        -DCMAKE_CROSSCOMPILING_EMULATOR="$qemu;-cpu;$3;-L;$sysroot" \
        -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DGGTUNE_CPU_FLAGS="$2" \
        -DGGTUNE_BUILD_PYTHON=OFF -DGGTUNE_BUILD_TESTS=ON
    cmake --build "$1" --target "${tests[@]/%/_test}"
    ctest --test-dir "$1" --output-on-failure -R "^($(IFS='|' && echo "${tests[*]}"))\$"
}

run_tests "$build" "-march=armv8.2-a+dotprod" neoverse-n1
"$qemu" -cpu max -L "$sysroot" "$build/cpp/tests/tile_test" | tail -1
run_tests "$build-bf16" "-march=armv8.6-a" max
