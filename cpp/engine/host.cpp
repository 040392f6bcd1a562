#include "engine/host.h"

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <llama.h>

#include <sstream>

#include "base/error.h"
#include "dispatch/cpu_variants.h"

namespace ggtune {

std::string kernel_variant() {
    try {
        return cpu_variant();
    } catch (const std::runtime_error & error) {
        throw Error(error.what());
    }
}

std::map<std::string, std::string> build_info() {
    std::string backends;
    for (size_t i = 0; i < ggml_backend_reg_count(); ++i) {
        backends += (i > 0 ? ", " : "") + std::string(ggml_backend_reg_name(ggml_backend_reg_get(i)));
    }
    std::string cpu;
    if (ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)) {
        cpu = ggml_backend_dev_description(device);
    }
    // "NAME = 1" of llama.cpp's own summary line, for each feature that is there
    std::string features;
    std::istringstream info(llama_print_system_info());
    std::string word;
    std::string previous;
    while (info >> word) {
        if (word == "1" && !previous.empty()) {
            features += (features.empty() ? "" : " ") + previous;
        }
        if (word != "=" && word != "|") {
            previous = word;
        }
    }
    return {{"llama.cpp", llama_version()},
            {"backends", backends},
            {"cpu", cpu},
            {"cpu_features", features},
            {"cpu_variant", kernel_variant()}};
}

}  // namespace ggtune
