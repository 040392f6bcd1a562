// The scans over the tokens of a sequence: SSM_SCAN, GATED_DELTA_NET, RWKV_WKV6, RWKV_WKV7, GATED_LINEAR_ATTN.
#pragma once

#include "ops/ops.h"

namespace ggtune {

// Raises Error where the filters of a convolution need a gradient: they are never trained.
void refuse_filters(const BackwardStep & s, const ggml_tensor * filters);
// Of y = SSM_CONV(x, filters), x = y->src[0], filters = y->src[1].
void add_ssm_conv_gradient(const BackwardStep & s);

// Whether a scan has no state in its result but the last one. Earlier ones are of use for taking tokens back, which
// training never does.
bool keeps_last_state_alone(const ggml_tensor * scan);

// Of y, a node with the operands of `scan`. Its gradient holds that of the outputs and that of the last states, as y
// holds them.
void add_scan_gradients(const BackwardStep & s, ggml_op scan);

}  // namespace ggtune
