# ggtune for AMD's cards through ROCm:
#
#     docker build -f containers/rocm.Dockerfile -t ggtune-rocm .
#     docker run --rm --device /dev/kfd --device /dev/dri --group-add video --group-add render \
#         -v "$PWD:/work" ggtune-rocm ggtune devices
#
# The host needs the kernel's amdgpu driver. Cards that ROCm doesn't name often run with the code of a sister:
# -e HSA_OVERRIDE_GFX_VERSION=10.3.0 (docs/devices.md). To build for one kind of card alone takes a fraction of the time:
# --build-arg GPU_TARGETS=gfx1100.

FROM rocm/dev-ubuntu-24.04:6.4-complete
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libgomp1 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/ggtune
WORKDIR /src
COPY CMakeLists.txt pyproject.toml README.md LICENSE ./
COPY cmake cmake
COPY cpp cpp
COPY python python
COPY vendor/README.md vendor/
ARG GPU_TARGETS=gfx1030;gfx1100;gfx1101;gfx1102;gfx1200;gfx1201
ENV ROCM_PATH=/opt/rocm HIPCXX=/opt/rocm/llvm/bin/clang++
# GGML_NATIVE=OFF: code for every kind of CPU, since the image may run elsewhere than where it was built
RUN CMAKE_ARGS="-DGGML_HIP=ON -DGGML_NATIVE=OFF -DGPU_TARGETS=$GPU_TARGETS" /opt/ggtune/bin/pip install --no-cache-dir .
ENV PATH=/opt/ggtune/bin:$PATH
WORKDIR /work
CMD ["ggtune", "--help"]
