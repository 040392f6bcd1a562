#!/usr/bin/env bash
# The C++ tests and tests/engine under AddressSanitizer and UndefinedBehaviorSanitizer; any finding ends a test.
#
#     bash scripts/sanitize.sh                  everything
#     bash scripts/sanitize.sh cpp              the C++ tests alone; likewise python
#     LLAMA=1 bash scripts/sanitize.sh          llama.cpp and ggml compiled with AddressSanitizer, too
#     CPU_FLAGS=-march=haswell bash scripts/sanitize.sh cpp
#
# Needs Linux, GCC and a Python environment with what `pip install '.[dev]' cmake ninja pybind11` gives; the package
# that is tested is this tree's. The kernels are compiled once, for CPU_FLAGS (default: this machine): the objects of
# several CPU variants can't be told apart with the sanitizers' own symbols among them. BUILD is the folder for it all.
set -euo pipefail
cd "$(dirname "$0")/.."

build=${BUILD:-build/sanitize}
parts=${*:-cpp python}
llama_flags=
if [ "${LLAMA:-0}" = 1 ]; then
    llama_flags="-fsanitize=address -fno-omit-frame-pointer -g1"
fi

mkdir -p "$build"
build=$(cd "$build" && pwd)
quietly() {
    "$@" >"$build/log.txt" 2>&1 || {
        tail -n 60 "$build/log.txt"
        exit 1
    }
}
quietly cmake -S . -B "$build" -G Ninja -DGGTUNE_BUILD_PYTHON=ON -DGGTUNE_BUILD_TESTS=ON \
    -DGGTUNE_SANITIZE=address,undefined -DGGTUNE_CPU_FLAGS="${CPU_FLAGS:--march=native}" \
    -DCMAKE_C_FLAGS="$llama_flags" -DCMAKE_CXX_FLAGS="$llama_flags" \
    -DPython_EXECUTABLE="$(command -v python)" -Dpybind11_DIR="$(python -m pybind11 --cmakedir)"

export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1

run_cpp() {
    quietly cmake --build "$build" --target ggtune_tests
    ctest --test-dir "$build" --output-on-failure -j"$(nproc)"
}

run_python() {
    quietly cmake --build "$build" --target _core
    rm -rf "$build/site"
    mkdir "$build/site"
    cp -r python/ggtune "$build/site/"
    find "$build/site" -name '_core*.so' -delete
    cp "$build"/cpp/bindings/_core*.so "$build/site/ggtune/"
    # an editable install answers for ggtune before the path does
    cat >"$build/site/sitecustomize.py" <<'END'
import sys

sys.meta_path[:] = [finder for finder in sys.meta_path if not hasattr(finder, "known_wheel_files")]
END
    # The interpreter isn't linked with the sanitizers, nor with the library in which they look for C++'s exceptions.
    # It frees little when it exits, so leaks don't count. Left out is what measures how soon an interrupt is obeyed.
    # pytest captures nothing: a report is written by the process that it ends, and tests fork.
    libraries=
    for library in libasan.so libubsan.so libstdc++.so; do
        libraries="$libraries $(gcc -print-file-name=$library)"
    done
    PYTHONPATH="$build/site" PYTHONDONTWRITEBYTECODE=1 ASAN_OPTIONS="$ASAN_OPTIONS:detect_leaks=0" \
        LD_PRELOAD="$libraries" python -c '
import pathlib, sys
import pytest
from ggtune import _core

assert pathlib.Path(sys.argv[1]).resolve() in pathlib.Path(_core.__file__).resolve().parents, _core.__file__
sys.exit(pytest.main(["-q", "--capture=no", "-p", "no:cacheprovider", "tests/engine",
                      "--deselect", "tests/engine/test_merge.py::test_interrupt_leaves_nothing_behind"]))
' "$build/site"
}

for part in $parts; do
    case $part in
        cpp | python)
            "run_$part"
            printf '== sanitizers, %s: clean after %ss\n' "$part" "$SECONDS"
            ;;
        *)
            echo "$part is neither cpp nor python" >&2
            exit 2
            ;;
    esac
done
