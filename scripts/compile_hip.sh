#!/usr/bin/env bash
# Compile everything with HIP for one architecture of AMD's cards and link the module. It shows that the code compiles and
# links; it needs no graphics card, nor its driver, and runs nothing.
#
#     bash scripts/compile_hip.sh
#     ARCHITECTURE=gfx1100 JOBS=4 bash scripts/compile_hip.sh
#
# Where ROCm 6.1 or later is installed (hipconfig in PATH or in ROCM_PATH/bin), it is used, with what `pip install pybind11
# ninja cmake` gives. Elsewhere ROCm, the compilers and Python come from Debian sid, installed into a folder (6 GB): that needs
# root, debootstrap, and leave to mount. Takes one to two hours of a core. What is compiled stays in the folder BUILD (default:
# build/hip): a run that was cut off goes on there. The priority is low (nice 19), the jobs are JOBS (default 1), MIRROR is
# Debian's. The status is 2 where it can't be run at all.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=$PWD

architecture=${ARCHITECTURE:-gfx1030}
build=${BUILD:-build/hip}
mkdir -p "$build"
build=$(cd "$build" && pwd -P)
root=$build/debian-sid

impossible() {
    printf 'scripts/compile_hip.sh: %s\n' "$*" >&2
    exit 2
}

quietly() {
    "$@" >"$build/log.txt" 2>&1 || {
        tail -n 60 "$build/log.txt"
        exit 1
    }
}

# Runs a command in $root, in the same working folder; the mounts are the command's own.
# shellcheck disable=SC2016 # the words are expanded by the shell that is started
inside() {
    unshare --mount --propagation private bash -c '
        set -e
        root=$1 folders=$2
        shift 2
        for folder in /proc /dev /sys; do
            mount --rbind $folder "$root$folder"
        done
        while IFS= read -r folder; do
            mkdir -p "$root$folder"
            mount --bind "$folder" "$root$folder"
        done <<<"$folders"
        exec chroot "$root" /usr/bin/env -C "$PWD" PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"' \
        inside "$root" "$folders" "$@"
}

install_debian() {
    [ "$(uname -s)" = Linux ] || impossible "HIP needs Linux"
    [ "$(id -u)" = 0 ] || impossible "there is no ROCm here, and installing Debian sid into a folder needs root"
    command -v debootstrap >/dev/null || impossible "there is no debootstrap here (Debian and Ubuntu: apt install debootstrap)"
    unshare --mount true 2>/dev/null || impossible "nothing may be mounted here, such as in a container without privileges"
    if [ -e "$root/usr/bin/hipcc" ]; then
        return
    fi
    if [ ! -d "$root" ]; then
        rm -rf --one-file-system "$root.part"
        quietly debootstrap --variant=minbase sid "$root.part" ${MIRROR:+"$MIRROR"}
        mv "$root.part" "$root"
    fi
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    # a mirror, or a clock, may be weeks off: nothing that is installed here is run but compilers
    quietly inside apt-get update -q -o Acquire::Check-Valid-Until=false
    quietly inside env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        cmake ninja-build g++ ccache python3-dev python3-pip pybind11-dev hipcc libamdhip64-dev librocblas-dev libhipblas-dev
    inside apt-get clean
}

rocm=${ROCM_PATH:-/opt/rocm}
hipconfig=$(command -v hipconfig || command -v "$rocm/bin/hipconfig" || true)
if [ -n "$hipconfig" ]; then
    run=()
    for program in cmake ninja c++; do
        command -v $program >/dev/null || impossible "there is no $program here"
    done
    pybind11=$(python3 -m pybind11 --cmakedir)
else
    folders=$(printf '%s\n' "$tree" "$build" "$(cd vendor/llama.cpp 2>/dev/null && pwd -P)" | sed '/^$/d')
    if command -v ccache >/dev/null; then
        CCACHE_DIR=$(ccache --get-config cache_dir)
        export CCACHE_DIR
        folders=$folders$'\n'$CCACHE_DIR
    fi
    install_debian
    run=(inside)
    hipconfig=hipconfig
    rocm=/usr
    pybind11=$(dirname "$("${run[@]}" find /usr -name pybind11Config.cmake)")
fi

arguments=(-DGGML_HIP=ON "-DGPU_TARGETS=$architecture")
# Debian's clang doesn't find the code for the device by itself
bitcode=$("${run[@]}" sh -c 'find /usr/lib/llvm-*/lib/clang -type d -path "*/amdgcn/bitcode" 2>/dev/null | sort -V | tail -n 1')
if [ "$rocm" = /usr ] && [ -n "$bitcode" ]; then
    arguments+=("-DCMAKE_HIP_FLAGS=--rocm-device-lib-path=$bitcode")
fi
if command -v ccache >/dev/null; then
    arguments+=(-DCMAKE_HIP_COMPILER_LAUNCHER=ccache)
fi
printf 'HIP %s, architecture %s\n' "$("${run[@]}" "$hipconfig" --version)" "$architecture"
export ROCM_PATH=$rocm
"${run[@]}" cmake -S . -B "$build/cmake" -G Ninja "${arguments[@]}" -Dpybind11_DIR="$pybind11"
for target in ggml-hip _core; do
    "${run[@]}" nice -n 19 cmake --build "$build/cmake" --target $target --parallel "${JOBS:-1}"
done

module=$(find "$build/cmake/cpp/bindings" -name '_core*.so')
printf 'compiled for %s: %s files; linked: %s (%s bytes), which uses\n' "$architecture" \
    "$(find "$build/cmake" -name '*.cu.o' | wc -l)" "$(basename "$module")" "$(stat -c %s "$module")"
objdump -p "$module" | sed -n 's/^ *NEEDED */    /p'
