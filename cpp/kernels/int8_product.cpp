#include "kernels/int8_product.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/blocked_product.h"
#include "kernels/int8_unpack.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace ggtune::kernels {
namespace {

using detail::Int8Format;
using detail::round_up;
using simd::IntVec;
using simd::kWidth;
using simd::Vec;

// Register block: kTokens tokens times up to kVectors vectors of outputs, for each an integer and a float sum. 32
// registers on AVX-512 and NEON, 16 elsewhere.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTokens = 6;
#else
constexpr int kTokens = 3;
#endif
constexpr int kVectors = 2;
constexpr int64_t kPanelCols = kVectors * kWidth;

// Values of X that share a scale; the sums of X are kept for each kSumBlock values.
constexpr int64_t kScaleBlock = 32;
constexpr int64_t kSumBlock = 16;

// A panel of the unpacked tile (kTileK x kPanelCols bytes) stays in the L1 cache while it serves all tokens; the
// tokens' kTileK columns of X and kTileN columns of Y stay in L2. kTileK is a multiple of every ggml block size.
constexpr int64_t kTileK = 512;
constexpr int64_t kTileN = 128;
constexpr int64_t kTileTokens = 1020;

// Each lane of `sum` gains the dot product of four bytes of w and of x.
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
constexpr bool kFast = true;
constexpr bool kSignedWeights = false;
inline IntVec add_dot4(IntVec sum, IntVec w, IntVec x) {
    return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
}
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
constexpr bool kFast = true;
constexpr bool kSignedWeights = false;
inline IntVec add_dot4(IntVec sum, IntVec w, IntVec x) {
    return (IntVec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
}
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr bool kFast = true;
constexpr bool kSignedWeights = true;
inline IntVec add_dot4(IntVec sum, IntVec w, IntVec x) {
    return (IntVec)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x);
}
#else
constexpr bool kFast = false;
constexpr bool kSignedWeights = false;
inline IntVec add_dot4(IntVec sum, IntVec w, IntVec x) {
#pragma GCC unroll 4
    for (int byte = 0; byte < 4; ++byte) {
        sum += ((w >> (8 * byte)) & 255) * ((x << (24 - 8 * byte)) >> 24);
    }
    return sum;
}
#endif

// Quantized activations: blocks of kTokens tokens one after another, each
//   int8_t  values [n_in / 4][kTokens][4]
//   float   scales [n_in / kScaleBlock][kTokens]
//   int32_t sums   [n_in / kSumBlock][kTokens]    of the quantized values
// The tokens that are missing in the last block are zeros.
struct TokenBlock {
    int8_t * values;
    float * scales;
    int32_t * sums;

    static size_t size(int64_t n_in) {
        return static_cast<size_t>(kTokens * (n_in + n_in / kScaleBlock * 4 + n_in / kSumBlock * 4));
    }

    TokenBlock(void * quantized, int64_t n_in, int64_t index) {
        char * begin = static_cast<char *>(quantized) + static_cast<size_t>(index) * size(n_in);
        values = reinterpret_cast<int8_t *>(begin);
        scales = reinterpret_cast<float *>(begin + kTokens * n_in);
        sums = reinterpret_cast<int32_t *>(begin + kTokens * (n_in + n_in / kScaleBlock * 4));
    }
};

// kScaleBlock values at x as q[i] * (the returned scale).
float quantize_block(const float * x, int8_t * q) {
    typedef int8_t ByteVec __attribute__((vector_size(kWidth)));
    constexpr int kBlockVectors = kScaleBlock / kWidth;
    constexpr int32_t kInfinityBits = 0x7f800000;
    // bits of non-negative floats, infinity and NaN included, are in the order of their values
    IntVec largest_bits = {};
    for (int i = 0; i < kBlockVectors; ++i) {
        const IntVec bits = (IntVec)simd::load(x + i * kWidth) & 0x7fffffff;
        const IntVec larger = bits > largest_bits;
        largest_bits = (bits & larger) | (largest_bits & ~larger);
    }
    int32_t bits = 0;
    for (int i = 0; i < kWidth; ++i) {
        bits = std::max(bits, static_cast<int32_t>(largest_bits[i]));
    }
    float largest;
    std::memcpy(&largest, &bits, sizeof largest);
    // below, 127 / largest would not be finite
    constexpr float kSmallest = 1e-36f;
    if (bits >= kInfinityBits || largest < kSmallest) {
        std::memset(q, 0, kScaleBlock);
        return bits >= kInfinityBits ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
    }
    // 1.5 * 2^23: adding it leaves the sum rounded to an integer in the low bits
    constexpr float kRounding = 12582912.0f;
    constexpr int32_t kRoundingBits = 0x4b400000;
    const float inverse = 127.0f / largest;
    for (int i = 0; i < kBlockVectors; ++i) {
        const Vec rounded = simd::load(x + i * kWidth) * inverse + kRounding;
        const ByteVec bytes = __builtin_convertvector((IntVec)rounded - kRoundingBits, ByteVec);
        std::memcpy(q + i * kWidth, &bytes, sizeof bytes);
    }
    return largest / 127.0f;
}

// Blocks [first, last) of the tokens of X; `quantized` is where block `first` goes.
void quantize_token_blocks(const float * x, int64_t x_row_stride, int64_t n_in, int64_t n_tokens, int64_t first,
                           int64_t last, void * quantized) {
    for (int64_t block = first; block < last; ++block) {
        const TokenBlock target(quantized, n_in, block - first);
        const int64_t filled = std::min<int64_t>(kTokens, n_tokens - block * kTokens);
        if (filled < kTokens) {
            std::memset(target.values, 0, TokenBlock::size(n_in));
        }
        for (int64_t t = 0; t < filled; ++t) {
            const float * row = x + (block * kTokens + t) * x_row_stride;
            for (int64_t i = 0; i < n_in; i += kScaleBlock) {
                int8_t q[kScaleBlock];
                target.scales[i / kScaleBlock * kTokens + t] = quantize_block(row + i, q);
                for (int64_t j = 0; j < kScaleBlock; j += 4) {
                    std::memcpy(target.values + (i + j) * kTokens + t * 4, q + j, 4);
                }
                for (int64_t j = 0; j < kScaleBlock; j += kSumBlock) {
                    int32_t sum = 0;
                    for (int64_t s = 0; s < kSumBlock; ++s) {
                        sum += q[j + s];
                    }
                    target.sums[(i + j) / kSumBlock * kTokens + t] = sum;
                }
            }
        }
    }
}

// A panel of unpacked weights: values [k / 4][width][4], scales and mins [k / sub_block][width].
struct Panel {
    const uint8_t * values;
    const float * scales;
    const float * mins;
};

// One token block and what its sums contribute to the product, [k / sub_block][kTokens]:
//   starts       where the integer sums begin, -offset * sum, for a format without mins
//   scaled_sums  the factors of the mins, scale * sum
struct Tokens {
    const int8_t * values;
    const float * scales;
    const int32_t * starts;
    const float * scaled_sums;
};

struct Output {
    float * y;
    int64_t row_stride;
    int64_t n_rows, n_cols;
    bool accumulate;
};

inline IntVec splat_bytes(const int8_t * p) {
    int32_t four;
    std::memcpy(&four, p, sizeof four);
    return IntVec{} + four;
}

inline IntVec load_bytes(const uint8_t * p) {
    IntVec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <int n_vectors, int sub_block, bool has_min>
void multiply(int64_t k, const Panel & w, const Tokens & x, const Output & out) {
    constexpr int64_t width = n_vectors * kWidth;
    const uint8_t * w_values = w.values;
    const int8_t * x_values = x.values;
    Vec sum[kTokens][n_vectors] = {};
    for (int64_t block = 0; block < k / sub_block; ++block) {
        IntVec dot[kTokens][n_vectors];
#pragma GCC unroll 6
        for (int t = 0; t < kTokens; ++t) {
            const IntVec start = has_min ? IntVec{} : IntVec{} + x.starts[block * kTokens + t];
#pragma GCC unroll 2
            for (int v = 0; v < n_vectors; ++v) {
                dot[t][v] = start;
            }
        }
        for (int four = 0; four < sub_block / 4; ++four) {
            IntVec weights[n_vectors];
#pragma GCC unroll 2
            for (int v = 0; v < n_vectors; ++v) {
                weights[v] = load_bytes(w_values + 4 * v * kWidth);
            }
#pragma GCC unroll 6
            for (int t = 0; t < kTokens; ++t) {
                const IntVec element = splat_bytes(x_values + 4 * t);
#pragma GCC unroll 2
                for (int v = 0; v < n_vectors; ++v) {
                    dot[t][v] = add_dot4(dot[t][v], weights[v], element);
                }
            }
            w_values += 4 * width;
            x_values += 4 * kTokens;
        }
        const float * x_scales = x.scales + block * sub_block / kScaleBlock * kTokens;
        Vec scales[n_vectors];
        Vec mins[n_vectors];
#pragma GCC unroll 2
        for (int v = 0; v < n_vectors; ++v) {
            scales[v] = simd::load(w.scales + block * width + v * kWidth);
            mins[v] = has_min ? simd::load(w.mins + block * width + v * kWidth) : Vec{};
        }
#pragma GCC unroll 6
        for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
            for (int v = 0; v < n_vectors; ++v) {
                sum[t][v] += (__builtin_convertvector(dot[t][v], Vec) * scales[v]) * x_scales[t];
                if constexpr (has_min) {
                    sum[t][v] -= mins[v] * x.scaled_sums[block * kTokens + t];
                }
            }
        }
    }
    if (out.n_rows == kTokens && out.n_cols == width) {
#pragma GCC unroll 6
        for (int t = 0; t < kTokens; ++t) {
            float * y = out.y + t * out.row_stride;
#pragma GCC unroll 2
            for (int v = 0; v < n_vectors; ++v) {
                simd::store(y + v * kWidth, out.accumulate ? simd::load(y + v * kWidth) + sum[t][v] : sum[t][v]);
            }
        }
        return;
    }
    float product[kTokens][width];
    std::memcpy(product, sum, sizeof product);
    for (int64_t t = 0; t < out.n_rows; ++t) {
        float * y = out.y + t * out.row_stride;
        for (int64_t j = 0; j < out.n_cols; ++j) {
            y[j] = out.accumulate ? y[j] + product[t][j] : product[t][j];
        }
    }
}

using Multiply = void (*)(int64_t k, const Panel & w, const Tokens & x, const Output & out);

template <int n_vectors>
Multiply multiply_kernel(const Int8Format & format) {
    if (format.sub_block == 16) {
        return format.has_min ? multiply<n_vectors, 16, true> : multiply<n_vectors, 16, false>;
    }
    return format.has_min ? multiply<n_vectors, 32, true> : multiply<n_vectors, 32, false>;
}

// A tile of W as panels of kPanelCols outputs one after another; the last one is narrower, a multiple of kWidth wide,
// its outputs beyond n_rows are zeros.
class WeightTile {
  public:
    WeightTile(ggml_type type, const void * data, size_t row_bytes)
        : format_(*detail::int8_format(type)),
          data_(static_cast<const uint8_t *>(data)),
          row_bytes_(row_bytes),
          block_(ggml_blck_size(type)),
          block_bytes_(ggml_type_size(type)) {}

    const Int8Format & format() const { return format_; }

    // What is subtracted from the bytes as they are in the tile.
    int32_t offset() const { return recentred() ? 0 : format_.offset; }

    static int64_t width(int64_t n_rows, int64_t row) { return std::min(kPanelCols, round_up(n_rows - row, kWidth)); }

    void unpack(int64_t row0, int64_t n_rows, int64_t k0, int64_t k) {
        const auto rows = static_cast<size_t>(round_up(n_rows, kWidth));
        const auto blocks = static_cast<size_t>(k / format_.sub_block);
        values_.resize(rows * static_cast<size_t>(k / 4));
        scales_.resize(rows * blocks);
        mins_.resize(format_.has_min ? rows * blocks : 0);
        row_values_.resize(static_cast<size_t>(kPanelCols * k / 4));
        row_scales_.resize(static_cast<size_t>(kPanelCols) * blocks);
        row_mins_.resize(static_cast<size_t>(kPanelCols) * blocks);
        for (int64_t row = 0; row < n_rows; row += kPanelCols) {
            unpack_panel(row0 + row, std::min(kPanelCols, n_rows - row), width(n_rows, row), k0, k,
                         values_.data() + row * k / 4, row * k / format_.sub_block);
        }
    }

    Panel panel(int64_t row, int64_t k) const {
        const int64_t scale = row * k / format_.sub_block;
        return {reinterpret_cast<const uint8_t *>(values_.data() + row * k / 4), scales_.data() + scale,
                format_.has_min ? mins_.data() + scale : nullptr};
    }

  private:
    // Values up to 255 do not fit signed bytes, until 128 is subtracted.
    bool recentred() const { return kSignedWeights && format_.offset == 128; }

    void unpack_panel(int64_t row0, int64_t n_rows, int64_t width, int64_t k0, int64_t k, float * values,
                      int64_t scale) {
        const int64_t blocks = k / format_.sub_block;
        if (n_rows < width) {
            std::fill(row_values_.begin(), row_values_.end(), 0.0f);
            std::fill(row_scales_.begin(), row_scales_.end(), 0.0f);
            std::fill(row_mins_.begin(), row_mins_.end(), 0.0f);
        }
        for (int64_t i = 0; i < n_rows; ++i) {
            const uint8_t * src =
                data_ + static_cast<size_t>(row0 + i) * row_bytes_ + static_cast<size_t>(k0 / block_) * block_bytes_;
            auto * bytes = reinterpret_cast<uint8_t *>(row_values_.data() + i * k / 4);
            format_.unpack(src, k, bytes, row_scales_.data() + i * blocks, row_mins_.data() + i * blocks);
            for (int64_t j = 0; j < k && recentred(); ++j) {
                bytes[j] ^= 128;
            }
        }
        // four bytes travel as one float
        detail::transpose_copy(row_values_.data(), k / 4, width, k / 4, values, width);
        detail::transpose_copy(row_scales_.data(), blocks, width, blocks, scales_.data() + scale, width);
        if (format_.has_min) {
            detail::transpose_copy(row_mins_.data(), blocks, width, blocks, mins_.data() + scale, width);
        }
    }

    const Int8Format & format_;
    const uint8_t * data_;
    size_t row_bytes_;
    int64_t block_;
    size_t block_bytes_;
    // kept by the thread from one product to the next
    static thread_local std::vector<float> values_, scales_, mins_, row_values_, row_scales_, row_mins_;
};

thread_local std::vector<float> WeightTile::values_, WeightTile::scales_, WeightTile::mins_, WeightTile::row_values_,
    WeightTile::row_scales_, WeightTile::row_mins_;

detail::Part split(int64_t n_tokens, int64_t n_out, int ith, int nth) {
    // unpacking a weight, and quantizing an activation, in units of a quarter of a float vector operation
    constexpr double kUnpackCycles = 2.0;
    constexpr double kQuantizeCycles = 4.0;
    return detail::split_product(n_tokens, n_out, {kWidth, kUnpackCycles, kQuantizeCycles}, ith, nth);
}

// `quantized` holds the tokens of `part` only.
void multiply_part(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, void * quantized,
                   const detail::Part & part, float * y, int64_t y_row_stride) {
    WeightTile tile(type, w, w_row_bytes);
    const int64_t sub_block = tile.format().sub_block;
    const bool has_min = tile.format().has_min;
    const Multiply wide = multiply_kernel<2>(tile.format());
    const Multiply narrow = multiply_kernel<1>(tile.format());
    const int64_t n_terms = n_in / sub_block * kTokens;  // of a token block
    thread_local std::vector<int32_t> starts;
    thread_local std::vector<float> scaled_sums;
    for (int64_t token0 = part.rows.begin; token0 < part.rows.end; token0 += kTileTokens) {
        const int64_t n_tokens = std::min(kTileTokens, part.rows.end - token0);
        const int64_t first_block = (token0 - part.rows.begin) / kTokens;
        const int64_t n_blocks = (n_tokens + kTokens - 1) / kTokens;
        starts.resize(static_cast<size_t>(has_min ? 0 : n_blocks * n_terms));
        scaled_sums.resize(static_cast<size_t>(has_min ? n_blocks * n_terms : 0));
        for (int64_t b = 0; b < n_blocks; ++b) {
            const TokenBlock block(quantized, n_in, first_block + b);
            for (int64_t i = 0; i < n_in / sub_block; ++i) {
                for (int64_t t = 0; t < kTokens; ++t) {
                    const int32_t * sums = block.sums + i * (sub_block / kSumBlock) * kTokens + t;
                    const int32_t sum = sub_block == kSumBlock ? sums[0] : sums[0] + sums[kTokens];
                    const auto term = static_cast<size_t>(b * n_terms + i * kTokens + t);
                    if (has_min) {
                        const float scale = block.scales[i * sub_block / kScaleBlock * kTokens + t];
                        scaled_sums[term] = scale * static_cast<float>(sum);
                    } else {
                        starts[term] = -tile.offset() * sum;
                    }
                }
            }
        }
        for (int64_t row0 = part.cols.begin; row0 < part.cols.end; row0 += kTileN) {
            const int64_t n_rows = std::min(kTileN, part.cols.end - row0);
            for (int64_t k0 = 0; k0 < n_in; k0 += kTileK) {
                const int64_t k = std::min(kTileK, n_in - k0);
                tile.unpack(row0, n_rows, k0, k);
                for (int64_t row = 0; row < n_rows; row += kPanelCols) {
                    const Multiply kernel = WeightTile::width(n_rows, row) == kPanelCols ? wide : narrow;
                    const Panel panel = tile.panel(row, k);
                    for (int64_t b = 0; b < n_blocks; ++b) {
                        const TokenBlock block(quantized, n_in, first_block + b);
                        const int64_t term = b * n_terms + k0 / sub_block * kTokens;
                        const Tokens tokens = {block.values + k0 * kTokens, block.scales + k0 / kScaleBlock * kTokens,
                                               has_min ? nullptr : starts.data() + term,
                                               has_min ? scaled_sums.data() + term : nullptr};
                        const Output output = {y + (token0 + b * kTokens) * y_row_stride + row0 + row, y_row_stride,
                                               std::min<int64_t>(kTokens, n_tokens - b * kTokens),
                                               std::min(kPanelCols, n_rows - row), k0 > 0};
                        kernel(k, panel, tokens, output);
                    }
                }
            }
        }
    }
}

}  // namespace

bool int8_product_supported(ggml_type type) {
    return detail::int8_format(type) != nullptr;
}

bool int8_product_fast() {
    return kFast;
}

size_t quantized_activations_size(int64_t n_in, int64_t n_tokens) {
    return static_cast<size_t>((n_tokens + kTokens - 1) / kTokens) * TokenBlock::size(n_in);
}

void quantize_activations(const float * x, int64_t x_row_stride, int64_t n_in, int64_t n_tokens, void * quantized,
                          int ith, int nth) {
    const Range part = split_range((n_tokens + kTokens - 1) / kTokens, ith, nth);
    quantize_token_blocks(x, x_row_stride, n_in, n_tokens, part.begin, part.end,
                          static_cast<char *>(quantized) + static_cast<size_t>(part.begin) * TokenBlock::size(n_in));
}

void int8_forward_quantized(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, int64_t n_out,
                            const void * quantized, int64_t n_tokens, float * y, int64_t y_row_stride, int ith,
                            int nth) {
    const detail::Part part = split(n_tokens, n_out, ith, nth);
    const size_t skipped = static_cast<size_t>(part.rows.begin / kTokens) * TokenBlock::size(n_in);
    multiply_part(type, w, w_row_bytes, n_in, (char *)quantized + skipped, part, y, y_row_stride);
}

void int8_forward(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, int64_t n_out, const float * x,
                  int64_t x_row_stride, int64_t n_tokens, float * y, int64_t y_row_stride, int ith, int nth) {
    const detail::Part part = split(n_tokens, n_out, ith, nth);
    if (part.rows.size() == 0 || part.cols.size() == 0) {
        return;
    }
    thread_local std::vector<char> quantized;
    quantized.resize(quantized_activations_size(n_in, part.rows.size()));
    quantize_token_blocks(x, x_row_stride, n_in, part.rows.end, part.rows.begin / kTokens,
                          (part.rows.end + kTokens - 1) / kTokens, quantized.data());
    multiply_part(type, w, w_row_bytes, n_in, quantized.data(), part, y, y_row_stride);
}

}  // namespace ggtune::kernels
