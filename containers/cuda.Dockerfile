# ggtune for NVIDIA's cards:
#
#     docker build -f containers/cuda.Dockerfile -t ggtune-cuda .
#     docker run --rm --gpus all -v "$PWD:/work" ggtune-cuda ggtune devices
#
# The host needs NVIDIA's driver (570 or later for CUDA 12.8) and its container toolkit. To build for one kind of card alone
# takes a fraction of the time: --build-arg CUDA_ARCHITECTURES=89-real (docs/devices.md lists them).

ARG CUDA_VERSION=12.8.1

FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu24.04 AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/ggtune
WORKDIR /src
COPY CMakeLists.txt pyproject.toml README.md LICENSE ./
COPY cmake cmake
COPY cpp cpp
COPY python python
COPY vendor/README.md vendor/
# empty: those that ggml chooses
ARG CUDA_ARCHITECTURES=
# GGML_NATIVE=OFF: code for every kind of CPU, since the image may run elsewhere than where it was built
RUN CMAKE_ARGS="-DGGML_CUDA=ON -DGGML_NATIVE=OFF ${CUDA_ARCHITECTURES:+-DCMAKE_CUDA_ARCHITECTURES=$CUDA_ARCHITECTURES}" \
    /opt/ggtune/bin/pip install --no-cache-dir .

FROM nvidia/cuda:${CUDA_VERSION}-runtime-ubuntu24.04
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/ggtune /opt/ggtune
ENV PATH=/opt/ggtune/bin:$PATH
WORKDIR /work
CMD ["ggtune", "--help"]
