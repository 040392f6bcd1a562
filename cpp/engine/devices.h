// Devices that layers of a model can lie on: those of ggml's backends, by ggml's names ("Vulkan0", "CUDA0").
#pragma once

#include <ggml-backend.h>

#include <cstdint>
#include <string>
#include <vector>

namespace ggtune {

struct DeviceInfo {
    std::string name;
    std::string description;  // "NVIDIA GeForce RTX 4060"
    std::string backend;      // "CUDA", "Vulkan", ...
    std::string kind;         // "gpu", "integrated" (shares the host's memory), "simulated" (simulated_device.h)
    uint64_t free_bytes;
    uint64_t total_bytes;
    bool half_products;  // operands of products are rounded to half precision, unless a model is opened as exact
};

// All that this build and this machine have, the CPU left out. Raises Error for a wrong GGTUNE_SIMULATED_DEVICES.
std::vector<DeviceInfo> list_devices();

// Raises Error and names those that there are.
ggml_backend_dev_t device_by_name(const std::string & name);

// From now on devices compute in float32 where they have a choice, or not. Raises Error where one has been opened
// otherwise in this process, since backends ask once; simulated devices can be asked again.
void open_devices(const std::vector<ggml_backend_dev_t> & devices, bool exact);

std::string device_name(ggml_backend_dev_t device);

// The device whose memory that is; nullptr: the host's, which the CPU computes on, or that of a device that shares it.
ggml_backend_dev_t device_of(ggml_backend_buffer_type_t type);
ggml_backend_dev_t device_of(const ggml_tensor * with_buffer);

// Bytes of the tensors of a graph or a model that have memory of their own, as the type of memory pads them.
size_t allocated_bytes(ggml_backend_buffer_type_t type, const ggml_tensor * t);

}  // namespace ggtune
