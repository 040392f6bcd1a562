// What rules of several families need to bring gradients into the shape of their operands.
#pragma once

#include "ops/ops.h"

namespace ggtune {

// The sum of dy over the dimensions that the operand was repeated along.
ggml_tensor * unbroadcast(Ops & ops, ggml_tensor * dy, const ggml_tensor * operand);

}  // namespace ggtune
