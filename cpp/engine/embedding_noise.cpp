#include "engine/embedding_noise.h"

#include <cmath>

#include "kernels/dropout.h"

namespace ggtune {

std::vector<float> noise_values(const EmbeddingNoise & noise, int64_t n_embd, int64_t n_tokens,
                                const int32_t * sequences) {
    std::vector<float> values(static_cast<size_t>(n_embd * n_tokens));
    const uint64_t stream = kernels::detail::mix64(noise.seed ^ kernels::detail::mix64(~noise.counter));
    for (int64_t begin = 0; begin < n_tokens;) {
        int64_t end = begin + 1;
        while (end < n_tokens && sequences[end] == sequences[begin]) {
            end++;
        }
        const float size = noise.alpha / std::sqrt(static_cast<float>((end - begin) * n_embd));
        for (int64_t i = begin * n_embd; i < end * n_embd; i++) {
            const uint64_t bits = kernels::detail::mix64(stream ^ static_cast<uint64_t>(i)) >> 40;  // 24 of them
            values[static_cast<size_t>(i)] = size * (static_cast<float>(bits) * 0x1p-23f - 1.0f);
        }
        begin = end;
    }
    return values;
}

}  // namespace ggtune
