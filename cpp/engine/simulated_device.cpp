#include "engine/simulated_device.h"

#include <ggml-backend-impl.h>
#include <ggml-cpp.h>
#include <ggml-cpu.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "engine/llama_access.h"

namespace ggtune {

namespace {

constexpr size_t kAlignment = 128;

struct Simulated {
    std::string name;
    size_t total_bytes = 0;
    bool half = false;
    std::atomic<bool> exact{false};  // in spite of it
    int64_t lost_after = -1;
    std::vector<std::string> lacks;

    std::atomic<size_t> used_bytes{0};
    std::atomic<int64_t> n_computations{0};
    ggml_backend_device device = {};
    ggml_backend_buffer_type memory = {};
};

Simulated & of(ggml_backend_dev_t device) {
    return *static_cast<Simulated *>(device->context);
}
Simulated & of(ggml_backend_buffer_type_t type) {
    return *static_cast<Simulated *>(type->context);
}

std::vector<std::unique_ptr<Simulated>> & all_devices() {
    static std::vector<std::unique_ptr<Simulated>> devices;
    return devices;
}

// ---- memory

void free_buffer(ggml_backend_buffer_t buffer) {
    of(buffer->buft).used_bytes -= buffer->size;
    ::operator delete(buffer->context, std::align_val_t(kAlignment));
}

void * base_of(ggml_backend_buffer_t buffer) {
    return buffer->context;
}

void memset_tensor(ggml_backend_buffer_t, ggml_tensor * t, uint8_t value, size_t offset, size_t size) {
    std::memset(static_cast<char *>(t->data) + offset, value, size);
}

void set_tensor(ggml_backend_buffer_t, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    std::memcpy(static_cast<char *>(t->data) + offset, data, size);
}

void get_tensor(ggml_backend_buffer_t, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    std::memcpy(data, static_cast<const char *>(t->data) + offset, size);
}

void clear(ggml_backend_buffer_t buffer, uint8_t value) {
    std::memset(buffer->context, value, buffer->size);
}

constexpr ggml_backend_buffer_i kBuffer = {free_buffer, base_of, nullptr, memset_tensor, set_tensor, get_tensor,
                                           nullptr,     nullptr, nullptr, clear,         nullptr};

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    Simulated & device = of(type);
    if (device.used_bytes + size > device.total_bytes) {
        return nullptr;
    }
    device.used_bytes += size;
    void * memory = ::operator new(std::max<size_t>(size, 1), std::align_val_t(kAlignment));
    return ggml_backend_buffer_init(type, kBuffer, memory, size);
}

// ---- computation

// `t` with values rounded to half precision, in memory of its own and with the same strides.
struct Rounded {
    std::vector<float> values;
    ggml_tensor tensor;

    explicit Rounded(const ggml_tensor * t) : values(ggml_nbytes(t) / sizeof(float)), tensor(*t) {
        const auto * from = static_cast<const float *>(t->data);
        std::transform(from, from + values.size(), values.begin(),
                       [](float x) { return ggml_fp16_to_fp32(ggml_fp32_to_fp16(x)); });
        tensor.data = values.data();
    }
};

// Node i of a graph with rounded operands.
ggml_status compute_rounded(ggml_backend_t cpu, ggml_cgraph * graph, int i) {
    ggml_tensor * node = ggml_graph_node(graph, i);
    const bool multiplies = node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_MUL_MAT_ID;
    if (!multiplies) {
        return compute_slice(cpu, graph, i, i + 1);
    }
    std::vector<std::pair<ggml_tensor **, ggml_tensor *>> operands;
    std::vector<std::unique_ptr<Rounded>> rounded;
    for (ggml_tensor ** src : {&node->src[0], &node->src[1]}) {
        if ((*src)->type == GGML_TYPE_F32) {
            rounded.push_back(std::make_unique<Rounded>(*src));
            operands.emplace_back(src, *src);
            *src = &rounded.back()->tensor;
        }
    }
    const ggml_status status = compute_slice(cpu, graph, i, i + 1);
    for (const auto & [place, original] : operands) {
        *place = original;
    }
    return status;
}

ggml_status graph_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    Simulated & device = of(backend->device);
    if (device.lost_after >= 0 && ++device.n_computations > device.lost_after) {
        return GGML_STATUS_FAILED;
    }
    auto * cpu = static_cast<ggml_backend_t>(backend->context);
    if (!device.half || device.exact) {
        return ggml_backend_graph_compute(cpu, graph);
    }
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        const ggml_status status = compute_rounded(cpu, graph, i);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
    }
    return GGML_STATUS_SUCCESS;
}

const char * backend_name(ggml_backend_t backend) {
    return of(backend->device).name.c_str();
}

void free_backend(ggml_backend_t backend) {
    ggml_backend_free(static_cast<ggml_backend_t>(backend->context));
    delete backend;
}

ggml_backend_t init_backend(ggml_backend_dev_t device, const char *) {
    static ggml_guid guid = {0x67, 0x67, 0x74, 0x75, 0x6e, 0x65, 0x2d, 0x73, 0x69, 0x6d, 0, 0, 0, 0, 0, 1};
    ggml_backend_i iface = {};
    iface.get_name = backend_name;
    iface.free = free_backend;
    iface.graph_compute = graph_compute;
    ggml_backend_t cpu = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(cpu, static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 8u)));
    return new ggml_backend{&guid, iface, device, cpu};
}

// ---- the device

const char * device_name(ggml_backend_dev_t device) {
    return of(device).name.c_str();
}

const char * device_description(ggml_backend_dev_t) {
    return "simulated in main memory";
}

void device_memory(ggml_backend_dev_t device, size_t * free, size_t * total) {
    const Simulated & d = of(device);
    *total = d.total_bytes;
    *free = d.total_bytes - std::min<size_t>(d.used_bytes, d.total_bytes);
}

enum ggml_backend_dev_type device_type(ggml_backend_dev_t) {
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props * props) {
    *props = {};
    props->name = device_name(device);
    props->description = device_description(device);
    props->type = device_type(device);
    device_memory(device, &props->memory_free, &props->memory_total);
}

ggml_backend_buffer_type_t device_buffer_type(ggml_backend_dev_t device) {
    return &of(device).memory;
}

bool supports_op(ggml_backend_dev_t device, const ggml_tensor * op) {
    const std::vector<std::string> & lacks = of(device).lacks;
    const auto is_called = [&](const char * name) {
        return std::find(lacks.begin(), lacks.end(), name) != lacks.end();
    };
    if (is_called(ggml_op_name(op->op)) || is_called(ggml_op_desc(op))) {
        return false;
    }
    switch (op->op) {
        case GGML_OP_CUSTOM:
        case GGML_OP_MAP_CUSTOM1:
        case GGML_OP_MAP_CUSTOM2:
        case GGML_OP_MAP_CUSTOM3:
            return false;
        default:
            return ggml_backend_dev_supports_op(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), op);
    }
}

bool supports_buft(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) {
    return type == &of(device).memory;
}

const char * memory_name(ggml_backend_buffer_type_t type) {
    return of(type).name.c_str();
}

size_t alignment(ggml_backend_buffer_type_t) {
    return kAlignment;
}

bool is_host(ggml_backend_buffer_type_t) {
    return false;
}

// ---- the registry's entry

const char * reg_name(ggml_backend_reg_t) {
    return "Simulated";
}

size_t reg_count(ggml_backend_reg_t) {
    return all_devices().size();
}

ggml_backend_dev_t reg_get(ggml_backend_reg_t, size_t index) {
    return &all_devices()[index]->device;
}

bool half_products(ggml_backend_dev_t device) {
    return of(device).half;
}

void * proc_address(ggml_backend_reg_t, const char * name) {
    return std::strcmp(name, "ggtune_half_products") == 0 ? reinterpret_cast<void *>(half_products) : nullptr;
}

ggml_backend_reg registry = {GGML_BACKEND_API_VERSION, {reg_name, reg_count, reg_get, proc_address}, nullptr};

std::vector<std::string> split(const std::string & text, char separator) {
    std::vector<std::string> parts;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, separator);) {
        parts.push_back(part);
    }
    return parts;
}

[[noreturn]] void refuse(const std::string & text) {
    throw Error(
        "GGTUNE_SIMULATED_DEVICES: '" + text +
        "' is no device: give its memory and what else holds of it, such as 200M or 64M:half:lost=10:lacks=SCALE");
}

size_t bytes_of(const std::string & text, const std::string & whole) {
    size_t n_digits = 0;
    double number = 0;
    try {
        number = std::stod(text, &n_digits);
    } catch (const std::exception &) {
        refuse(whole);
    }
    const std::string unit = text.substr(n_digits);
    const double factor = unit == "K" ? 1024.0 : unit == "M" ? 1048576.0 : unit == "G" ? 1073741824.0 : 0.0;
    if (!(number > 0) || factor == 0.0) {
        refuse(whole);
    }
    return static_cast<size_t>(number * factor);
}

std::unique_ptr<Simulated> parse(const std::string & text, size_t index) {
    const std::vector<std::string> parts = split(text, ':');
    if (parts.empty()) {
        refuse(text);
    }
    auto device = std::make_unique<Simulated>();
    device->name = "SIM" + std::to_string(index);
    device->total_bytes = bytes_of(parts[0], text);
    for (size_t i = 1; i < parts.size(); i++) {
        const std::string & part = parts[i];
        if (part == "half") {
            device->half = true;
        } else if (part.rfind("lost=", 0) == 0 && part.size() > 5 &&
                   part.find_first_not_of("0123456789", 5) == std::string::npos && part.size() < 16) {
            device->lost_after = std::stoll(part.substr(5));
        } else if (part.rfind("lacks=", 0) == 0 && part.size() > 6) {
            device->lacks.push_back(part.substr(6));
        } else {
            refuse(text);
        }
    }
    device->device = {
        {device_name, device_description, device_memory, device_type, device_props, init_backend, device_buffer_type,
         nullptr, nullptr, supports_op, supports_buft, nullptr, nullptr, nullptr, nullptr},
        &registry,
        device.get()};
    device->memory = {{memory_name, alloc_buffer, alignment, nullptr, nullptr, is_host}, &device->device, device.get()};
    return device;
}

}  // namespace

void register_simulated_devices() {
    static std::mutex registering;
    const std::lock_guard<std::mutex> lock(registering);
    const char * text = std::getenv("GGTUNE_SIMULATED_DEVICES");
    if (text == nullptr || *text == '\0' || !all_devices().empty()) {
        return;
    }
    std::vector<std::unique_ptr<Simulated>> devices;
    for (const std::string & part : split(text, ',')) {
        devices.push_back(parse(part, devices.size()));
    }
    all_devices() = std::move(devices);
    ggml_backend_register(&registry);
}

bool is_simulated(ggml_backend_dev_t device) {
    return ggml_backend_dev_backend_reg(device) == &registry;
}

void open_simulated(ggml_backend_dev_t device, bool exact) {
    of(device).exact = exact;
}

}  // namespace ggtune
