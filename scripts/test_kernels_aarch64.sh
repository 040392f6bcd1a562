#!/usr/bin/env bash
# Cross-compile the kernel tests for aarch64 (each variant of them) and run them under qemu-user.
# Needs the Debian packages g++-aarch64-linux-gnu and qemu-user or qemu-user-static, CMake, Ninja, and vendor/llama.cpp (any build fills it).
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/aarch64}
qemu=$(command -v qemu-aarch64 || command -v qemu-aarch64-static)
cmake -S . -B "$build" -G Ninja \
    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
    -DCMAKE_CROSSCOMPILING_EMULATOR="$qemu;-cpu;max;-L;/usr/aarch64-linux-gnu" \
    -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF \
    -DGGTUNE_BUILD_PYTHON=OFF -DGGTUNE_BUILD_TESTS=ON
cmake --build "$build" --target products_test elementwise_test attention_test int8_product_test grid_test tile_test dispatch_test
ctest --test-dir "$build" --output-on-failure -R '^(products|elementwise|attention|int8_product|grid|tile|dispatch)'
