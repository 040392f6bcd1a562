// Gradients of the products of a mixture of experts, for the rules of all nodes that have some.
#pragma once

#include "ops/ops.h"

namespace ggtune {

// Whether the rule and the makers of nodes are for a product as ggml's MUL_MAT_ID has it: one row of x for each expert
// of a token, or one for all of them.
bool is_expert_product(const ggml_tensor * w, const ggml_tensor * x, const ggml_tensor * ids);

// Of y = w x by experts: w = y->src[0], x = y->src[1], ids = y->src[2].
void expert_product_rule(const BackwardStep & s);

// dx and dw of such a product that was multiplied by `scale`
void add_expert_gradients(const BackwardStep & s, ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids, float scale);

}  // namespace ggtune
