// How work is shared among the threads of a ggml operation: thread `ith` of `nth`, no barrier, no shared scratch.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace ggtune::kernels {

struct Range {
    int64_t begin;
    int64_t end;  // one past the last
    int64_t size() const { return end - begin; }
};

namespace detail {

// Of the rows that an index names, where there is one, else of all in order.
inline int64_t row_at(const int32_t * rows, int64_t i) {
    return rows != nullptr ? rows[i] : i;
}

inline int64_t round_up(int64_t x, int64_t unit) {
    return (x + unit - 1) / unit * unit;
}

}  // namespace detail

// Part ith of nth of [0, n), in multiples of `unit` (the last part ends at n); parts differ by at most one unit.
inline Range split_range(int64_t n, int ith, int nth, int64_t unit = 1) {
    const int64_t n_units = (n + unit - 1) / unit;
    const int64_t begin = n_units * ith / nth * unit;
    const int64_t end = n_units * (ith + 1) / nth * unit;
    return {begin < n ? begin : n, end < n ? end : n};
}

// Deals n units of work out to the threads of an operation as they come free: large portions first, single ones at the
// end. For results that do not depend on who computes what. Each of the nth threads calls run() once; then the dealer
// is ready for the next time.
class Dealer {
  public:
    // work(range) for portions of [0, n) until all are taken.
    template <class Work>
    void run(int64_t n, int nth, Work && work) {
        int64_t begin = next_.load(std::memory_order_relaxed);
        while (begin < n) {
            const int64_t end = begin + std::max<int64_t>(1, (n - begin) / (2 * nth));
            if (next_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) {
                work(Range{begin, end});
                begin = next_.load(std::memory_order_relaxed);
            }
        }
        if (n_finished_.fetch_add(1) + 1 == nth) {
            n_finished_ = 0;
            next_ = 0;
        }
    }

  private:
    std::atomic<int64_t> next_{0};
    std::atomic<int> n_finished_{0};
};

}  // namespace ggtune::kernels
