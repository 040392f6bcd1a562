# The only place that knows where llama.cpp comes from and with which options it is built.
# Order: -DLLAMA_CPP_DIR=/path, then vendor/llama.cpp, then the pinned and hash-checked package (llama_cpp_pin.txt).

set(LLAMA_CPP_DIR "" CACHE PATH "llama.cpp source tree to build against (default: vendor/llama.cpp)")
set(_pin_file "${CMAKE_CURRENT_LIST_DIR}/llama_cpp_pin.txt")
set(_vendor_dir "${PROJECT_SOURCE_DIR}/vendor/llama.cpp")

function(ggtune_fetch_llama_cpp destination)
    set(download_dir "${CMAKE_BINARY_DIR}/llama_cpp_download")
    file(REMOVE_RECURSE "${download_dir}")
    file(MAKE_DIRECTORY "${download_dir}")
    message(STATUS "ggtune: fetching the pinned llama.cpp (cmake/llama_cpp_pin.txt)")
    execute_process(
        COMMAND "${Python_EXECUTABLE}" -m pip --disable-pip-version-check download --no-deps --no-build-isolation
                --no-binary llama-cpp-python --require-hashes -r "${_pin_file}" -d "${download_dir}"
        RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
    file(GLOB archive "${download_dir}/*.tar.gz")
    if(NOT status EQUAL 0 OR NOT archive)
        message(FATAL_ERROR
            "ggtune needs the sources of llama.cpp and could not fetch the package named in cmake/llama_cpp_pin.txt:\n"
            "${output}\n"
            "Connect to the network and try again, or put a llama.cpp source tree at vendor/llama.cpp, or pass "
            "CMAKE_ARGS=\"-DLLAMA_CPP_DIR=/path/to/llama.cpp\".")
    endif()
    file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${download_dir}" PATTERNS "*/vendor/llama.cpp/*")
    file(GLOB extracted "${download_dir}/*/vendor/llama.cpp")
    # beside, then renamed: an interrupted extraction must not pass for a source tree
    file(RENAME "${extracted}" "${destination}")
    file(REMOVE_RECURSE "${download_dir}")
endfunction()

if(NOT LLAMA_CPP_DIR)
    if(NOT EXISTS "${_vendor_dir}/CMakeLists.txt")
        ggtune_fetch_llama_cpp("${_vendor_dir}")
    endif()
    set(LLAMA_CPP_SOURCE_DIR "${_vendor_dir}")
else()
    set(LLAMA_CPP_SOURCE_DIR "${LLAMA_CPP_DIR}")
endif()
if(NOT EXISTS "${LLAMA_CPP_SOURCE_DIR}/src/llama-graph.h")
    message(FATAL_ERROR "${LLAMA_CPP_SOURCE_DIR} is not a llama.cpp source tree (src/llama-graph.h is missing)")
endif()

# one statically linked module: nothing of llama.cpp is installed beside it
set(BUILD_SHARED_LIBS OFF)
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_TESTS OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_TOOLS OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_EXAMPLES OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_SERVER OFF CACHE BOOL "" FORCE)
set(GGML_BUILD_TESTS OFF CACHE BOOL "" FORCE)
set(GGML_BUILD_EXAMPLES OFF CACHE BOOL "" FORCE)
option(GGML_CCACHE "ggml: use ccache" OFF) # CMakeLists.txt sets the launcher for the whole project

add_subdirectory("${LLAMA_CPP_SOURCE_DIR}" llama.cpp EXCLUDE_FROM_ALL)

# for what is compiled from llama.cpp's sources elsewhere (cpp/dispatch): its imported targets don't leave its folder
if(GGML_OPENMP_ENABLED)
    find_package(OpenMP REQUIRED)
endif()
