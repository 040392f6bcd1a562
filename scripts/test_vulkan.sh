#!/usr/bin/env bash
# Build the module with Vulkan and run tests/devices on a Vulkan device in software (Mesa's lavapipe), from nothing:
#
#     bash scripts/test_vulkan.sh                          the tests; further arguments are pytest's
#     bash scripts/test_vulkan.sh run ggtune demo          a command instead of the tests
#     BUILD=/var/tmp/vulkan bash scripts/test_vulkan.sh    keeps everything in that folder: the next time is much faster
#
# Where the system has a Vulkan driver, and headers that are new enough, these are used. Elsewhere they come from Debian 13,
# installed into a folder (600 MB): that needs root, debootstrap, and leave to mount. Python and the compiler are the
# system's in both cases. Programs that are missing are installed if there is apt and we are root.
# PYTHON, JOBS, MIRROR (of Debian), GLSLC_CACHE, GGML_VK_VISIBLE_DEVICES (default: 0) and GGTUNE_TEST_DEVICE (default: Vulkan0)
# may be set.
# The status is pytest's; 2 where it can't be run at all.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=$PWD

if [ -n "${BUILD:-}" ]; then
    mkdir -p "$BUILD"
    build=$(cd "$BUILD" && pwd -P)
else
    build=$(mktemp -d /var/tmp/ggtune-vulkan.XXXXXX)
    trap 'rm -rf --one-file-system "$build"' EXIT
fi
export GLSLC_CACHE=${GLSLC_CACHE:-$build/shaders} MESA_SHADER_CACHE_DIR=$build/mesa
export GGML_VK_VISIBLE_DEVICES=${GGML_VK_VISIBLE_DEVICES-0} # ggml leaves a software device out unless it is named
export GGTUNE_TEST_DEVICE=${GGTUNE_TEST_DEVICE:-Vulkan0}    # that which tests/devices are about, else a simulated one

heading() { printf '\n== %s (%ss)\n' "$1" "$SECONDS"; }

impossible() {
    printf 'scripts/test_vulkan.sh: %s\n' "$*" >&2
    exit 2
}

# Prints the end of what the command says only if it fails.
quietly() {
    "$@" >"$build/log.txt" 2>&1 || {
        tail -n 60 "$build/log.txt"
        exit 1
    }
}

# need PROGRAM PACKAGE: Debian's package of that name where there is apt
need() {
    if ! command -v "$1" >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        { apt-get update -qq && apt-get install -y -qq "$2"; } >"$build/log.txt" 2>&1 || true
    fi
    command -v "$1" >/dev/null || impossible "there is no $1 here (Debian and Ubuntu: apt install $2)"
}

# The version of the Vulkan headers in a folder, such as 1.4.309; nothing if there are none.
header_version() {
    sed -n -e 's/^#define VK_HEADER_VERSION \([0-9]*\).*/\1/p' \
        -e 's/^#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION([0-9]*, *\([0-9]*\), *\([0-9]*\),.*/\1.\2/p' \
        "$1/vulkan/vulkan_core.h" 2>/dev/null | sort -r -t. -k2 | paste -sd.
}

system_suffices() {
    local needed version
    needed=$(sed -n 's/^set(_vulkan_headers_needed \(.*\))/\1/p' cmake/devices.cmake)
    version=$(header_version /usr/include)
    [ -n "$version" ] && [ "$(printf '%s\n' "$needed" "$version" | sort -V | sed -n 1p)" = "$needed" ] &&
        compgen -G '/usr/share/vulkan/icd.d/*.json' >/dev/null &&
        [ -n "$(find /usr/share /usr/lib -name SPIRV-HeadersConfig.cmake 2>/dev/null)" ]
}

# Debian 13 in $root: a Vulkan driver to run with, headers to compile with, and what the system's Python is linked to.
install_debian() {
    [ "$(uname -s)" = Linux ] || impossible "the software device needs Linux"
    [ "$(id -u)" = 0 ] ||
        impossible "this system has no Vulkan driver, or too old headers, and installing Debian 13 into a folder needs root"
    need debootstrap debootstrap
    unshare --mount true 2>/dev/null || impossible "nothing may be mounted here, such as in a container without privileges"
    if [ -d "$root" ]; then
        return
    fi
    rm -rf --one-file-system "$root.part"
    quietly debootstrap --variant=minbase --include="$(paste -sd, <<END
mesa-vulkan-drivers
libvulkan-dev
spirv-headers
libgomp1
libssl3t64
libffi8
libsqlite3-0
libreadline8t64
libncursesw6
libbz2-1.0
liblzma5
libexpat1
libuuid1
libcrypt1
END
)" trixie "$root.part" ${MIRROR:+"$MIRROR"}
    mv "$root.part" "$root"
}

# Runs a command in $root, in the same working folder, with this tree, Python and the build folder in their places. The mounts
# are the command's own: none is left behind, whatever happens to it.
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
        exec chroot "$root" /usr/bin/env -C "$PWD" "$@"' inside "$root" "$folders" "$@"
}

heading "environment"
need "${PYTHON:-python3}" python3
need c++ g++
need glslc glslc
root=
if ! system_suffices; then
    root=$build/debian-13
    install_debian
fi
python=$build/venv/bin/python
if [ ! -x "$python" ]; then
    # copies: what a link points to may be another Python inside
    quietly "${PYTHON:-python3}" -m venv --copies "$build/venv"
    quietly "$python" -m pip install -q scikit-build-core pybind11 ninja cmake
fi
export PATH=$build/venv/bin:$PATH

options="-DGGML_VULKAN=ON -DVulkan_GLSLC_EXECUTABLE=$tree/scripts/glslc_cached.sh"
include=/usr/include
on_device=()
if [ -n "$root" ]; then
    # a folder of their own: beside them may lie the headers of another C library
    include=$build/include
    mkdir -p "$include"
    for folder in vulkan vk_video spirv; do
        ln -sfn "$root/usr/include/$folder" "$include/$folder"
    done
    loader=$(find "$root/usr/lib" -name libvulkan.so)
    options="$options -DVulkan_INCLUDE_DIR=$include -DVulkan_LIBRARY=$loader"
    options="$options -DSPIRV-Headers_DIR=$root/usr/share/cmake/SPIRV-Headers"
    folders=$("$python" - "$tree" "$build" "${TMPDIR:-/tmp}" <<'END'
import os, sys, sysconfig

# of a Python in /usr, the standard library alone, whose folder is named for its version: the rest is Debian 13's
paths = [*sys.argv[1:], sysconfig.get_path("stdlib"), *([] if sys.base_prefix == "/usr" else [sys.base_prefix])]
print("\n".join(dict.fromkeys(map(os.path.realpath, paths))))
END
    )
    on_device=(inside)
fi
"$python" --version
c++ --version | sed -n 1p
printf 'Vulkan headers %s\n' "$(header_version "$include")"
glslc --version | sed -n 1p

heading "build"
export CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-$(nproc)} CMAKE_ARGS="${CMAKE_ARGS:-} $options"
quietly "$python" -m pip install -q --no-build-isolation -C build-dir="$build/cmake" '.[test]'

heading "device"
"${on_device[@]}" "$python" - <<'END'
import sys

from ggtune import _core

print(_core.build_info())
found = [device for device in _core.devices() if device.backend == "Vulkan"]
for device in found:
    print(f"{device.name}: {device.description}, {device.total_bytes >> 20} MiB")
sys.exit(0 if found else "no Vulkan device was found")
END

if [ "${1:-}" = run ]; then
    shift
    heading "$*"
    "${on_device[@]}" "$@"
else
    heading "tests/devices"
    "${on_device[@]}" "$python" -m pytest -p no:cacheprovider tests/devices "$@"
fi
