#include "kernels/dequantize.h"

#include <ggml-cpu.h>

#include <cstring>

namespace ggtune::kernels {

bool can_dequantize(ggml_type type) {
    return type == GGML_TYPE_F32 ||
           (type >= 0 && type < GGML_TYPE_COUNT && ggml_get_type_traits(type)->to_float != nullptr);
}

void dequantize_row(ggml_type type, const void * src, float * dst, int64_t n) {
    switch (type) {
        case GGML_TYPE_F32:
            std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
            break;
        // ggml-cpu's conversions use the CPU's instructions, the generic ones of the type traits do not
        case GGML_TYPE_F16:
            ggml_cpu_fp16_to_fp32(static_cast<const ggml_fp16_t *>(src), dst, n);
            break;
        case GGML_TYPE_BF16:
            ggml_cpu_bf16_to_fp32(static_cast<const ggml_bf16_t *>(src), dst, n);
            break;
        default:
            ggml_get_type_traits(type)->to_float(src, dst, n);
    }
}

}  // namespace ggtune::kernels
