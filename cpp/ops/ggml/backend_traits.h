// What ggml's backends can do: the one place for their peculiarities.
#pragma once

#include <ggml-backend.h>

#include <cstdint>

namespace ggtune {

// As it stands, ggml's CPU backend.
struct BackendTraits {
    bool rounds_gelu = true;  // GELU and GELU_QUICK read a half-precision table; devices compute them
    // Has GET_ROWS_BACK, as all but Metal: else rows are set (SET_ROWS), which may be taken once at most. Of a training
    // graph that is so: the rows of the hidden state that have a target are taken.
    bool adds_rows = true;
    // A tile of a weight in float32. Some devices bind no more than 128 MiB at once.
    int64_t max_tile_bytes = 64 << 20;
    // Products of floats round their operands to half precision, whose range is small.
    bool half_products = false;
};

// exact: it has been opened to compute in float32 where it has a choice.
BackendTraits traits_of(ggml_backend_dev_t device, bool exact);

}  // namespace ggtune
