// Dropout (Srivastava et al., JMLR 15, 2014) with a counter-based mask: whether element i is kept is a hash of (seed,
// stream, i), so that the backward pass, a recomputation and any number of threads see the same mask.
#pragma once

#include <cstdint>

namespace ggtune::kernels {

struct DropoutMask {
    uint64_t seed;
    uint64_t stream;  // one per use of a mask: a counter of (micro-batch, layer, linear)
    float p;          // probability of dropping, 0 <= p < 1
};

namespace detail {

// SplitMix64: Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
inline uint64_t mix64(uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// The 32-bit finalizer of MurmurHash3 (Appleby), a bijection that compilers vectorize.
inline uint32_t mix32(uint32_t h) {
    h = (h ^ (h >> 16)) * 0x85ebca6bu;
    h = (h ^ (h >> 13)) * 0xc2b2ae35u;
    return h ^ (h >> 16);
}

}  // namespace detail

// y[j] = element first_index + j is kept ? x[j] / (1 - p) : 0, for 0 <= j < n. y may be x.
// The backward pass is the same function of dy.
inline void dropout(const DropoutMask & mask, int64_t first_index, const float * x, float * y, int64_t n) {
    const float scale = 1.0f / (1.0f - mask.p);
    const auto threshold = static_cast<uint32_t>(static_cast<double>(mask.p) * 4294967296.0);
    for (int64_t begin = 0; begin < n;) {
        // Hash the high half of the index once per run of equal high halves; the low half is 32-bit work per element.
        const auto index = static_cast<uint64_t>(first_index + begin);
        const int64_t run = static_cast<int64_t>((uint64_t{1} << 32) - (index & 0xffffffffu));
        const int64_t end = begin + run < n ? begin + run : n;
        const uint64_t key = detail::mix64(mask.seed ^ detail::mix64(mask.stream ^ detail::mix64(index >> 32)));
        const auto low_key = static_cast<uint32_t>(key);
        const auto high_key = static_cast<uint32_t>(key >> 32);
        const auto low_index = static_cast<uint32_t>(index);
        for (int64_t j = begin; j < end; ++j) {
            const uint32_t low = low_index + static_cast<uint32_t>(j - begin);
            const uint32_t hash = detail::mix32(detail::mix32(low ^ low_key) + high_key);
            y[j] = hash >= threshold ? x[j] * scale : 0.0f;
        }
        begin = end;
    }
}

}  // namespace ggtune::kernels
