#!/usr/bin/env bash
# glslc with a cache: ggml's Vulkan backend compiles over a thousand shaders in each new build folder, which takes minutes.
#
#     cmake ... -DGGML_VULKAN=ON -DVulkan_GLSLC_EXECUTABLE=$PWD/scripts/glslc_cached.sh
#
# GLSLC names the compiler itself (default: glslc), GLSLC_CACHE the folder (default: ~/.cache/ggtune/glslc). A result is
# found again by the arguments, the compiler, and every shader source beside the one compiled, since they include one
# another; folders don't count. Anything but a shader compiled into a file goes to the compiler as it is.
set -euo pipefail

compiler=$(command -v "${GLSLC:-glslc}") || {
    echo "glslc_cached.sh: no ${GLSLC:-glslc} in PATH" >&2
    exit 127
}
cache=${GLSLC_CACHE:-$HOME/.cache/ggtune/glslc}
source='' output='' dependencies='' keyed=()
expected=
for argument in "$@"; do
    case $expected in
        -o) output=$argument ;;
        -MF) dependencies=$argument ;;
        *)
            case $argument in
                *.comp)
                    source=$argument
                    keyed+=("${argument##*/}")
                    ;;
                *) keyed+=("$argument") ;;
            esac
            ;;
    esac
    expected=$argument
done
if [ -z "$source" ] || [ -z "$output" ] || [ "$output" = - ]; then
    exec "$compiler" "$@"
fi

folder=$(dirname "$source")
key=$({
    printf '%s\n' "${keyed[@]}"
    stat -L -c '%n %s %Y' "$compiler"
    cat "$folder"/*.comp "$folder"/*.glsl
} | sha256sum)
entry=$cache/${key:0:40}

if [ ! -e "$entry" ]; then
    "$compiler" "$@"
    # beside, then renamed: shaders are compiled several at a time, and builds are interrupted
    mkdir -p "$cache"
    if [ -n "$dependencies" ]; then
        text=$(<"$dependencies")
        text=${text//"$output"/@OUTPUT@}
        printf '%s\n' "${text//"$folder"/@FOLDER@}" >"$entry.d.$$"
        mv "$entry.d.$$" "$entry.d"
    fi
    cp "$output" "$entry.$$"
    mv "$entry.$$" "$entry"
    exit
fi
cp "$entry" "$output"
if [ -n "$dependencies" ]; then
    text=$(<"$entry.d")
    text=${text//@OUTPUT@/"$output"}
    printf '%s\n' "${text//@FOLDER@/"$folder"}" >"$dependencies"
fi
