// Noise on the embeddings of what is trained on (NEFTune: Jain et al. 2023, arXiv:2310.05914): uniform within
// +- alpha / sqrt(L d) for a sample of L tokens and embeddings of d values.
#pragma once

#include <cstdint>
#include <vector>

namespace ggtune {

struct EmbeddingNoise {
    float alpha = 0;  // 0: none
    uint64_t seed = 0;
    uint64_t counter = 0;  // number of the micro-batch
};

// ne = [n_embd, n_tokens]; sequences[i]: the sample of row i, rows of one contiguous. The values follow from seed,
// counter and place alone.
std::vector<float> noise_values(const EmbeddingNoise & noise, int64_t n_embd, int64_t n_tokens,
                                const int32_t * sequences);

}  // namespace ggtune
