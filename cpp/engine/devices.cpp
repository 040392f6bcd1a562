#include "engine/devices.h"

#include <cstdlib>
#include <mutex>
#include <optional>

#include "base/error.h"
#include "engine/simulated_device.h"
#include "ops/ggml/backend_traits.h"

namespace ggtune {

namespace {

std::mutex opening;
std::optional<bool> opened_exact;

std::string backend_name(ggml_backend_dev_t device) {
    return ggml_backend_reg_name(ggml_backend_dev_backend_reg(device));
}

std::string kind_of(ggml_backend_dev_t device) {
    if (is_simulated(device)) {
        return "simulated";
    }
    return ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_IGPU ? "integrated" : "gpu";
}

std::vector<ggml_backend_dev_t> training_devices() {
    register_simulated_devices();
    std::vector<ggml_backend_dev_t> devices;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        const enum ggml_backend_dev_type type = ggml_backend_dev_type(device);
        if (type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU) {
            devices.push_back(device);
        }
    }
    return devices;
}

}  // namespace

std::vector<DeviceInfo> list_devices() {
    std::vector<DeviceInfo> infos;
    for (ggml_backend_dev_t device : training_devices()) {
        size_t free_bytes = 0, total_bytes = 0;
        ggml_backend_dev_memory(device, &free_bytes, &total_bytes);
        infos.push_back({device_name(device), ggml_backend_dev_description(device), backend_name(device),
                         kind_of(device), free_bytes, total_bytes, traits_of(device, false).half_products});
    }
    return infos;
}

ggml_backend_dev_t device_by_name(const std::string & name) {
    std::string known;
    for (ggml_backend_dev_t device : training_devices()) {
        if (device_name(device) == name) {
            return device;
        }
        known += (known.empty() ? "" : ", ") + device_name(device);
    }
    throw Error("there is no device " + name +
                (known.empty() ? "; this machine or this build has none" : "; there are: " + known) +
                " (docs/devices.md)");
}

void open_devices(const std::vector<ggml_backend_dev_t> & devices, bool exact) {
    const std::lock_guard<std::mutex> lock(opening);
    bool are_simulated = true;
    for (ggml_backend_dev_t device : devices) {
        if (is_simulated(device)) {
            open_simulated(device, exact);
        } else {
            are_simulated = false;
        }
    }
    if (are_simulated) {
        return;
    }
    if (opened_exact && *opened_exact != exact) {
        throw Error(std::string("devices have been opened ") +
                    (exact ? "with products in half precision" : "as exact") +
                    " in this process, which can't be changed: start another");
    }
    opened_exact = exact;
    if (exact) {
        // asked for by ggml-vulkan and by cuBLAS (TF32) when they open a device
        setenv("GGML_VK_DISABLE_F16", "1", 1);
        setenv("GGML_VK_DISABLE_COOPMAT", "1", 1);  // matrix units, which round operands whatever else is asked for
        setenv("GGML_VK_DISABLE_COOPMAT2", "1", 1);
        setenv("NVIDIA_TF32_OVERRIDE", "0", 1);
    }
}

std::string device_name(ggml_backend_dev_t device) {
    return ggml_backend_dev_name(device);
}

ggml_backend_dev_t device_of(ggml_backend_buffer_type_t type) {
    return ggml_backend_buft_is_host(type) ? nullptr : ggml_backend_buft_get_device(type);
}

ggml_backend_dev_t device_of(const ggml_tensor * with_buffer) {
    return with_buffer->buffer != nullptr ? device_of(ggml_backend_buffer_get_type(with_buffer->buffer)) : nullptr;
}

size_t allocated_bytes(ggml_backend_buffer_type_t type, const ggml_tensor * t) {
    return GGML_PAD(ggml_backend_buft_get_alloc_size(type, t), ggml_backend_buft_get_alignment(type));
}

}  // namespace ggtune
