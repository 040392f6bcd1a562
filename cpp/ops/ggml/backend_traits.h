// What ggml's backends can do: the one place for their peculiarities.
#pragma once

#include <ggml-backend.h>

#include <cstdint>

namespace ggtune {

// As it stands, ggml's CPU backend.
struct BackendTraits {
    bool rounds_gelu = true;  // GELU and GELU_QUICK read a half-precision table; devices compute them
    // Has GET_ROWS_BACK, as all but Metal, and should use it: else rows are set (SET_ROWS), which may be taken once at
    // most. Of a training graph that is so: the rows of the hidden state that have a target are taken.
    bool adds_rows = true;
    // A tile of a weight in float32. Some devices bind no more than 128 MiB at once.
    int64_t max_tile_bytes = 64 << 20;
    // Scores of attention that are there at once, of a stretch of rows. As much again is needed several times.
    int64_t max_score_bytes = 48 << 20;
    // Has SOFT_MAX_BACK and RMS_NORM_BACK: one node instead of several. Metal lacks them; on the CPU they are wrong
    // where ggml's allocator puts the result over the second operand, which it may.
    bool has_norm_back = false;
    // Multiplies by a transpose without making one (OUT_PROD by cuBLAS and its like); elsewhere that is slow or
    // missing.
    bool has_fast_out_prod = false;
    // Rounds operands of products to half precision where their rows do not lie one after another: so they are copied.
    bool wants_contiguous_operands = false;
    // Products with quantized weights are to be made in float32, from weights in tiles: backends round activations to
    // integers or to half precision for theirs.
    bool exact = false;
    // SET, ACC and SILU_BACK take no larger tensors: Vulkan starts a thread for each element in one dimension, and
    // aborts where the device has not so many.
    int64_t max_flat_elements = INT64_MAX;
    // Products of floats round their operands to half precision, whose range is small.
    bool half_products = false;
};

// exact: it has been opened to compute in float32 where it has a choice.
BackendTraits traits_of(ggml_backend_dev_t device, bool exact);

// Whether a node is within the limits that ggml_backend_dev_supports_op() does not know of.
bool is_within_limits(const BackendTraits & traits, const ggml_tensor * node);

}  // namespace ggtune
