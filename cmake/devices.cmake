# What GGML_CUDA, GGML_HIP and GGML_VULKAN need is looked for before ggml does: all that is missing or too old is said at once,
# with what to install. docs/devices.md has more.

# with 1.3.275 ggml's Vulkan backend compiles, with 1.3.239 it doesn't
set(_vulkan_headers_needed 1.3.275)
# nvcc 11.5 fails on GCC 11's <functional>
set(_cuda_needed 11.7)
# ggml-hip/CMakeLists.txt
set(_hip_needed 6.1)

# Ends the configuration with the list `problems`, if there are any, and the lines of advice after it.
function(_ggtune_report backend problems)
    if(NOT problems)
        return()
    endif()
    set(text "ggtune can't be built with ${backend}=ON here:\n")
    foreach(problem IN LISTS problems)
        string(APPEND text "  - ${problem}\n")
    endforeach()
    foreach(line IN LISTS ARGN)
        string(APPEND text "  ${line}\n")
    endforeach()
    message(FATAL_ERROR "${text}  docs/devices.md tells more. Without ${backend} everything is built for the CPU.")
endfunction()

function(_ggtune_check_vulkan)
    set(problems "")
    find_package(Vulkan QUIET OPTIONAL_COMPONENTS glslc)
    set(header "${Vulkan_INCLUDE_DIR}/vulkan/vulkan_core.h")
    if(Vulkan_INCLUDE_DIR AND EXISTS "${header}")
        file(STRINGS "${header}" defined REGEX "^#define VK_HEADER_VERSION(_COMPLETE)? ")
        string(REGEX MATCH "VK_HEADER_VERSION ([0-9]+)" _ "${defined}")
        set(patch "${CMAKE_MATCH_1}")
        string(REGEX MATCH "VK_MAKE_API_VERSION\\([0-9]+, ([0-9]+), ([0-9]+)," _ "${defined}")
        set(version "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}.${patch}")
        if(version VERSION_LESS _vulkan_headers_needed)
            list(APPEND problems
                "Vulkan's headers have to be ${_vulkan_headers_needed} or later, those in ${Vulkan_INCLUDE_DIR} are ${version}")
        endif()
    else()
        list(APPEND problems "Vulkan's headers (${_vulkan_headers_needed} or later) were not found")
    endif()
    if(NOT Vulkan_LIBRARY)
        list(APPEND problems "Vulkan's loader (libvulkan.so) was not found")
    endif()
    if(NOT Vulkan_GLSLC_EXECUTABLE)
        list(APPEND problems "the shader compiler glslc was not found")
    endif()
    if(DEFINED ENV{VULKAN_SDK})
        list(APPEND CMAKE_PREFIX_PATH "$ENV{VULKAN_SDK}")
    endif()
    find_package(SPIRV-Headers CONFIG QUIET)
    if(NOT SPIRV-Headers_FOUND)
        list(APPEND problems "SPIRV-Headers (SPIRV-HeadersConfig.cmake) were not found")
    endif()
    _ggtune_report(GGML_VULKAN "${problems}"
        "Debian 13, Ubuntu 24.04 and later: apt install libvulkan-dev glslc spirv-headers"
        "Fedora: dnf install vulkan-headers vulkan-loader-devel glslc spirv-headers-devel"
        "Elsewhere: LunarG's Vulkan SDK (the environment variable VULKAN_SDK names its folder), or newer headers in a folder"
        "of their own: -DVulkan_INCLUDE_DIR=.../include -DSPIRV-Headers_DIR=.../share/cmake/SPIRV-Headers")
endfunction()

function(_ggtune_check_cuda)
    set(problems "")
    find_package(CUDAToolkit QUIET)
    if(NOT CUDAToolkit_FOUND)
        list(APPEND problems "NVIDIA's CUDA toolkit (nvcc, ${_cuda_needed} or later) was not found")
    elseif(CUDAToolkit_VERSION VERSION_LESS _cuda_needed)
        list(APPEND problems
            "the CUDA toolkit has to be ${_cuda_needed} or later, that in ${CUDAToolkit_BIN_DIR} is ${CUDAToolkit_VERSION}")
    else()
        if(NOT TARGET CUDA::cublas)
            list(APPEND problems
                "CUDA ${CUDAToolkit_VERSION} in ${CUDAToolkit_BIN_DIR} lacks cuBLAS (libcublas.so, cublas_v2.h)")
        endif()
        if(NOT TARGET CUDA::cuda_driver AND NOT GGML_CUDA_NO_VMM)
            list(APPEND problems "neither the driver's library libcuda.so nor the toolkit's stub of it was found: \
-DGGML_CUDA_NO_VMM=ON does without")
        endif()
    endif()
    _ggtune_report(GGML_CUDA "${problems}"
        "Debian (non-free), Ubuntu 24.04 and later: apt install nvidia-cuda-toolkit"
        "Fedora and others: NVIDIA's own packages: dnf install cuda-toolkit"
        "A toolkit in another folder: put its bin into PATH, or -DCUDAToolkit_ROOT=/usr/local/cuda"
        "-DCMAKE_CUDA_COMPILER=/usr/local/cuda/bin/nvcc")
endfunction()

# The folder of NAME-config.cmake under ROCm's folder, or a false value.
function(_ggtune_find_rocm_package name result)
    find_path(_ggtune_${name}_dir NAMES ${name}-config.cmake
        HINTS "${rocm}" PATH_SUFFIXES "lib/cmake/${name}" "lib64/cmake/${name}" "lib/${CMAKE_LIBRARY_ARCHITECTURE}/cmake/${name}")
    mark_as_advanced(_ggtune_${name}_dir)
    set(${result} "${_ggtune_${name}_dir}" PARENT_SCOPE)
endfunction()

function(_ggtune_check_hip)
    set(problems "")
    # as ggml looks for it
    set(rocm "$ENV{ROCM_PATH}")
    if(NOT rocm OR NOT EXISTS "${rocm}")
        set(rocm /usr)
        if(EXISTS /opt/rocm)
            set(rocm /opt/rocm)
        endif()
    endif()
    find_program(_ggtune_hipcc NAMES hipcc HINTS "${rocm}/bin")
    mark_as_advanced(_ggtune_hipcc)
    if(NOT _ggtune_hipcc)
        list(APPEND problems "ROCm's compiler hipcc was found neither in PATH nor in ${rocm}/bin")
    endif()
    _ggtune_find_rocm_package(hip hip)
    if(NOT hip)
        list(APPEND problems "HIP (hip-config.cmake, ${_hip_needed} or later) was not found under ${rocm}")
    else()
        # not find_package: it would look for HIP's compiler before ggml has named it
        set(PACKAGE_FIND_VERSION "")
        include("${hip}/hip-config-version.cmake" OPTIONAL)
        if(PACKAGE_VERSION VERSION_LESS _hip_needed)
            list(APPEND problems "HIP has to be ${_hip_needed} or later, that in ${hip} is ${PACKAGE_VERSION}")
        endif()
    endif()
    foreach(name hipblas rocblas)
        _ggtune_find_rocm_package(${name} found)
        if(NOT found)
            list(APPEND problems "${name} (${name}-config.cmake) was not found under ${rocm}")
        endif()
    endforeach()
    _ggtune_report(GGML_HIP "${problems}"
        "Debian 13 and Ubuntu 24.04 have HIP 5.7, which is too old: AMD's own packages have a newer one"
        "(apt install rocm-hip-sdk, into /opt/rocm), Debian sid, too:"
        "apt install hipcc libamdhip64-dev libhipblas-dev librocblas-dev"
        "Fedora 42 and later: dnf install rocm-hip-devel hipblas-devel rocblas-devel"
        "Another folder than /opt/rocm or /usr: the environment variable ROCM_PATH. An AMD card runs with -DGGML_VULKAN=ON, too.")
endfunction()

if(GGML_CUDA AND GGML_HIP)
    message(FATAL_ERROR
        "ggtune can't be built with GGML_CUDA=ON and GGML_HIP=ON at once: both are made of the same sources of ggml's, under the "
        "same names, and the module is linked from all its backends. Choose one; GGML_VULKAN=ON may go with either and "
        "serves the other card.")
endif()
if(GGML_BACKEND_DL)
    message(FATAL_ERROR
        "ggtune can't be built with GGML_BACKEND_DL=ON: its module is linked from all its backends, nothing is loaded beside it.")
endif()
if(GGML_VULKAN)
    _ggtune_check_vulkan()
endif()
if(GGML_CUDA)
    _ggtune_check_cuda()
endif()
if(GGML_HIP)
    _ggtune_check_hip()
endif()
