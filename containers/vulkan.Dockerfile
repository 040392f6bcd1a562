# ggtune for any card with a Vulkan driver of Mesa's (AMD, Intel), and for its device in software:
#
#     docker build -f containers/vulkan.Dockerfile -t ggtune-vulkan .
#     docker run --rm --device /dev/dri -v "$PWD:/work" ggtune-vulkan ggtune devices
#
# Without --device and with -e GGML_VK_VISIBLE_DEVICES=0 it computes on the CPU as if that were a card, slowly.

FROM debian:13 AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ glslc libvulkan-dev spirv-headers python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/ggtune
WORKDIR /src
COPY CMakeLists.txt pyproject.toml README.md LICENSE ./
COPY cmake cmake
COPY cpp cpp
COPY python python
COPY vendor/README.md vendor/
# GGML_NATIVE=OFF: code for every kind of CPU, since the image may run elsewhere than where it was built
RUN CMAKE_ARGS="-DGGML_VULKAN=ON -DGGML_NATIVE=OFF" /opt/ggtune/bin/pip install --no-cache-dir .

FROM debian:13
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 libvulkan1 mesa-vulkan-drivers python3 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/ggtune /opt/ggtune
ENV PATH=/opt/ggtune/bin:$PATH
WORKDIR /work
CMD ["ggtune", "--help"]
