// Memory on huge pages, where the system has them: the rows of a matrix and the tiles of a panel lie further apart than
// the few entries of the CPU's tables for small pages reach.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ggtune::kernels {

inline constexpr size_t kHugePage = size_t{2} << 20;

// Asks for huge pages where whole ones lie in the range (madvise(2), MADV_HUGEPAGE); only a wish.
inline void prefer_huge_pages(void * data, size_t n_bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const auto begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
    const auto end = (reinterpret_cast<uintptr_t>(data) + n_bytes) / kHugePage * kHugePage;
    if (begin < end) {
        madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
    }
#else
    static_cast<void>(data);
    static_cast<void>(n_bytes);
#endif
}

// One T, uninitialized. Raises std::bad_alloc.
template <class T>
class HugePages {
    static_assert(std::is_trivially_default_constructible_v<T> && std::is_trivially_destructible_v<T>);

  public:
    HugePages() : memory_(static_cast<T *>(std::aligned_alloc(kHugePage, kSize))) {
        if (memory_ == nullptr) {
            throw std::bad_alloc();
        }
        prefer_huge_pages(memory_, kSize);
    }
    ~HugePages() { std::free(memory_); }
    HugePages(const HugePages &) = delete;
    HugePages & operator=(const HugePages &) = delete;

    T & operator*() const { return *memory_; }

  private:
    static constexpr size_t kSize = (sizeof(T) + kHugePage - 1) / kHugePage * kHugePage;

    T * const memory_;
};

}  // namespace ggtune::kernels
