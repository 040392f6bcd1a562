#include "ops/ggml/backend_traits.h"

#include <cstdlib>
#include <string>

namespace ggtune {

namespace {

// In whose place a simulated device stands is told by what it says of itself.
constexpr const char * kHalfProducts = "ggtune_half_products";

// Cooperative matrices round operands whether or not shaders use half precision otherwise.
bool vulkan_rounds_to_half() {
    return std::getenv("GGML_VK_DISABLE_F16") == nullptr || std::getenv("GGML_VK_DISABLE_COOPMAT") == nullptr ||
           std::getenv("GGML_VK_DISABLE_COOPMAT2") == nullptr;
}

}  // namespace

BackendTraits traits_of(ggml_backend_dev_t device, bool exact) {
    ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(device);
    const std::string name = ggml_backend_reg_name(registry);
    BackendTraits traits;
    traits.exact = exact;
    if (name == "CPU") {
        return traits;
    }
    if (name == "Simulated") {
        using AsksDevice = bool (*)(ggml_backend_dev_t);
        const auto rounds = reinterpret_cast<AsksDevice>(ggml_backend_reg_get_proc_address(registry, kHalfProducts));
        traits.half_products = !exact && rounds(device);
        return traits;
    }
    traits.rounds_gelu = false;
    traits.adds_rows = name != "MTL";
    traits.has_norm_back = name == "CUDA" || name == "ROCm" || name == "Vulkan";
    traits.has_fast_out_prod = name == "CUDA" || name == "ROCm";
    traits.wants_contiguous_operands = name == "Vulkan";
    if (name == "Vulkan") {
        constexpr int64_t kGroups = 65535, kGroupSize = 512;  // what every device has
        traits.max_flat_elements = kGroups * kGroupSize;
    }
    traits.half_products = name == "MTL" || (name == "Vulkan" && vulkan_rounds_to_half());
    return traits;
}

bool is_within_limits(const BackendTraits & traits, const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_SET:
        case GGML_OP_ACC:
        case GGML_OP_SILU_BACK:
            return ggml_nelements(node) <= traits.max_flat_elements;
        default:
            return true;
    }
}

}  // namespace ggtune
