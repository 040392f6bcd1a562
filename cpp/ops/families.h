// ggml's ops that have a descriptor, by family. A new family has a line here and one in op.cpp.
#pragma once

#include <vector>

#include "ops/op.h"

namespace ggtune {

std::vector<GgmlOp> activation_ops();
std::vector<GgmlOp> elementwise_ops();
std::vector<GgmlOp> expert_ops();
std::vector<GgmlOp> hyper_connection_ops();
std::vector<GgmlOp> norm_ops();
std::vector<GgmlOp> product_ops();
std::vector<GgmlOp> recurrent_ops();
std::vector<GgmlOp> rope_ops();
std::vector<GgmlOp> shape_ops();
std::vector<GgmlOp> softmax_ops();

}  // namespace ggtune
