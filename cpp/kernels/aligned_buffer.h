// Memory of one thread's kernels. Private to cpp/kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace ggtune::kernels::detail {

// Scratch on cache line boundaries (a vector load across two lines costs two).
template <typename T>
class AlignedBuffer {
  public:
    AlignedBuffer() = default;
    AlignedBuffer(const AlignedBuffer &) = delete;
    AlignedBuffer & operator=(const AlignedBuffer &) = delete;
    ~AlignedBuffer() { release(); }

    // At least n values, old contents lost.
    T * reserve(int64_t n) {
        if (n > size_) {
            release();
            data_ = static_cast<T *>(::operator new(static_cast<size_t>(n) * sizeof(T), kAlignment));
            size_ = n;
        }
        return data_;
    }

  private:
    static constexpr std::align_val_t kAlignment{64};

    void release() {
        ::operator delete(data_, kAlignment);
        data_ = nullptr;
        size_ = 0;
    }

    T * data_ = nullptr;
    int64_t size_ = 0;
};

using AlignedFloats = AlignedBuffer<float>;

}  // namespace ggtune::kernels::detail
