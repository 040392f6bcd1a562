// Activation functions, alone and in gated linear units.
#pragma once

#include "ops/ops.h"

namespace ggtune {

// Which one a node of ggml's applies (UNARY, SQR, GLU); false for functions that cpp/kernels does not have.
bool activation_of(const ggml_tensor * node, Activation & f);

// Its parameters where a node of ggml's is a gated unit with limits; false where it is none.
bool limited_glu_of(const ggml_tensor * node, LimitedGlu & f);

// Of y = f(x), x = y->src[0].
void add_activation_gradient(const BackwardStep & s, Activation f);
// Of y = f(gate) up, gate = y->src[0], up = y->src[1], or both halves of each row of src[0].
void add_glu_gradient(const BackwardStep & s, Activation f, bool swapped);
void add_limited_glu_gradient(const BackwardStep & s, const LimitedGlu & f, bool swapped);

}  // namespace ggtune
