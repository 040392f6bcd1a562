// Parameters of the gradients of products.
#pragma once

#include <ggml.h>

namespace ggtune {

struct ProductGradient {
    float scale;
    bool accumulate;  // in place: ggml puts the tensor written to before the operands

    const ggml_tensor * operand(const ggml_tensor * node, int index) const {
        return node->src[index + (accumulate ? 1 : 0)];
    }
};

}  // namespace ggtune
