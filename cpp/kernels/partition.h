// How work is shared among the threads of a ggml operation: thread `ith` of `nth`, no barrier, no shared scratch.
#pragma once

#include <cstdint>

namespace ggtune::kernels {

struct Range {
    int64_t begin;
    int64_t end;  // one past the last
    int64_t size() const { return end - begin; }
};

// Part ith of nth of [0, n), in multiples of `unit` (the last part ends at n); parts differ by at most one unit.
inline Range split_range(int64_t n, int ith, int nth, int64_t unit = 1) {
    const int64_t n_units = (n + unit - 1) / unit;
    const int64_t begin = n_units * ith / nth * unit;
    const int64_t end = n_units * (ith + 1) / nth * unit;
    return {begin < n ? begin : n, end < n ? end : n};
}

}  // namespace ggtune::kernels
