// Work on rows by several threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace ggtune {

// Calls work(begin, end) for parts of [0, n) on several threads; the first exception of a part is thrown again here.
template <typename Work>
void parallel(int threads, int64_t n, const Work & work) {
    const int64_t n_parts = std::min<int64_t>(std::max(1, threads), n);
    std::vector<std::exception_ptr> errors(static_cast<size_t>(n_parts));
    const auto run = [&](int64_t part) {
        try {
            work(n * part / n_parts, n * (part + 1) / n_parts);
        } catch (...) {
            errors[static_cast<size_t>(part)] = std::current_exception();
        }
    };
    std::vector<std::thread> workers;
    for (int64_t part = 1; part < n_parts; ++part) {
        workers.emplace_back(run, part);
    }
    run(0);
    for (std::thread & worker : workers) {
        worker.join();
    }
    for (const std::exception_ptr & error : errors) {
        if (error) {
            std::rethrow_exception(error);
        }
    }
}

}  // namespace ggtune
