#!/usr/bin/env bash
# Compile everything with CUDA for one architecture and link the module. It shows that the code compiles and links; it needs
# no graphics card, nor its driver, and runs nothing.
#
#     bash scripts/compile_cuda.sh
#     ARCHITECTURE=86-real JOBS=4 bash scripts/compile_cuda.sh
#
# Needs nvcc, and a Python environment with what `pip install pybind11 ninja cmake` gives. cuBLAS comes from a Python package
# where the toolkit has none. Takes one to two hours of a core. What is compiled stays in the folder BUILD (default:
# build/cuda): a run that was cut off goes on there. The priority is low (nice 19), the jobs are JOBS (default 1).
set -euo pipefail
cd "$(dirname "$0")/.."

architecture=${ARCHITECTURE:-75-real}
build=${BUILD:-build/cuda}
mkdir -p "$build"
build=$(cd "$build" && pwd -P)

impossible() {
    printf 'scripts/compile_cuda.sh: %s\n' "$*" >&2
    exit 2
}

nvcc=$(command -v "${CUDACXX:-nvcc}") || impossible "there is no nvcc here: install NVIDIA's CUDA toolkit, or name it by CUDACXX"
for program in cmake ninja c++; do
    command -v $program >/dev/null || impossible "there is no $program here"
done
version=$("$nvcc" --version | sed -n 's/.*release \([0-9]*\.[0-9]*\),.*/\1/p')
# the toolkit's folder as nvcc itself prints it: what stands in PATH may be a script or a link
toolkit=$("$nvcc" --dryrun -x cu -c /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')
toolkit=$(cd "$toolkit" && pwd -P)

arguments=(-DGGML_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=$architecture" "-DCMAKE_CUDA_COMPILER=$nvcc")
flags=
if [ -z "$(find "$toolkit/" -name cublas_v2.h)" ]; then
    package=nvidia-cublas
    if [ "${version%%.*}" -lt 13 ]; then
        package=nvidia-cublas-cu${version%%.*}
    fi
    if [ ! -e "$build/cublas" ]; then
        rm -rf "$build/cublas.part"
        python3 -m pip install -q --no-deps --target "$build/cublas.part" "$package==$version.*"
        mv "$build/cublas.part" "$build/cublas"
    fi
    header=$(find "$build/cublas" -name cublas_v2.h)
    flags=-I$(dirname "$header")
    for library in cublas cublasLt; do
        arguments+=("-DCUDA_${library}_LIBRARY=$(find "$build/cublas" -name "lib$library.so.*")")
    done
fi
if [ -z "$(find "$toolkit/" -name 'libcuda.so*')" ]; then
    arguments+=(-DGGML_CUDA_NO_VMM=ON) # the one thing for which the driver's library is linked
fi
if command -v ccache >/dev/null; then
    arguments+=(-DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)
fi

printf 'nvcc %s in %s, %s, architecture %s\n' "$version" "$toolkit" "$(c++ --version | sed -n 1p)" "$architecture"
cmake -S . -B "$build" -G Ninja "${arguments[@]}" -DCMAKE_CUDA_FLAGS="$flags" -DCMAKE_CXX_FLAGS="$flags" \
    -DPython_EXECUTABLE="$(command -v python3)" -Dpybind11_DIR="$(python3 -m pybind11 --cmakedir)"
nice -n 19 cmake --build "$build" --target _core --parallel "${JOBS:-1}"

module=$(find "$build/cpp/bindings" -name '_core*.so')
printf 'compiled with nvcc: %s files; linked: %s (%s bytes), which uses\n' \
    "$(find "$build" -name '*.cu.o' | wc -l)" "$(basename "$module")" "$(stat -c %s "$module")"
objdump -p "$module" | sed -n 's/^ *NEEDED */    /p'
