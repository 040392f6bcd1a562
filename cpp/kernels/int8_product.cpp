#include "kernels/int8_product.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/blocked_product.h"
#include "kernels/int8_unpack.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace ggtune::kernels {
namespace {

using detail::Int8Format;
using detail::round_up;
using detail::row_at;
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

// The sums of X are kept for each kSumBlock values.
constexpr int64_t kSumBlock = 16;
constexpr int64_t kLargestScaleBlock = 256;

// A tile of unpacked weights (kTileK x kTileN bytes, and their scales) stays in the L2 cache while it serves up to
// kTileTokens tokens, of which one register block (kTileK bytes a token) at a time is in L1. kTileK is a multiple of
// every ggml block size; a smaller one reads and writes Y more often.
constexpr int64_t kTileK = 2048;
constexpr int64_t kTileN = 64;
constexpr int64_t kTileTokens = 1020;

// Each lane of `sum` gains the dot product of four bytes of w and of x, x from -127 to 127. kSignedWeights: w are
// signed bytes.
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
#elif defined(__AVX2__) && !defined(__AVX512F__)
#define GGTUNE_PAIR_SUMS
constexpr int kMostTogether = 8;
constexpr bool kFast = true;
constexpr bool kSignedWeights = true;
inline IntVec add_dot4(IntVec sum, IntVec w, IntVec x) {
    // unsigned times signed bytes; two products have to fit 16 bits, which 128 * 127 * 2 does and 255 * 127 * 2 does
    // not
    const __m256i magnitudes = _mm256_abs_epi8((__m256i)w);
    const __m256i signed_x = _mm256_sign_epi8((__m256i)x, (__m256i)w);
    const __m256i pairs = _mm256_maddubs_epi16(magnitudes, signed_x);
    return sum + (IntVec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
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

#if !defined(GGTUNE_PAIR_SUMS)
constexpr int kMostTogether = 0;
#endif

// Where dot products are made of pairs of 16 bits: how many of small unsigned weights are summed up in these before
// they become 32 bits, 8, 4, 2 or 1; 0: weights are as kSignedWeights says.
int dots_in_16_bits(int32_t largest_value, int64_t sub_block) {
#if defined(GGTUNE_PAIR_SUMS)
    int n = kMostTogether;
    while (n > 0 && (2 * 127 * n * largest_value > std::numeric_limits<int16_t>::max() || 4 * n > sub_block)) {
        n /= 2;
    }
    return n;
#else
    (void)largest_value;
    (void)sub_block;
    return 0;
#endif
}

// Quantized activations: blocks of kTokens tokens one after another, each
//   int8_t  values [n_in / 4][kTokens][4]
//   float   scales [n_in / scale_block][kTokens]
//   int32_t sums   [n_in / kSumBlock][kTokens]    of the quantized values
// The tokens that are missing in the last block are zeros.
struct TokenBlock {
    int64_t n_in, scale_block;

    size_t scales() const { return static_cast<size_t>(kTokens * n_in); }
    size_t sums() const { return scales() + static_cast<size_t>(kTokens * n_in / scale_block) * sizeof(float); }
    size_t size() const { return sums() + static_cast<size_t>(kTokens * n_in / kSumBlock) * sizeof(int32_t); }
};

// n values at x as q[i] * (the returned scale). Plain loops, which the compiler turns into vector instructions.
template <int n>
float quantize_block(const float * x, int8_t * q) {
    constexpr int32_t kInfinityBits = 0x7f800000;
    // bits of non-negative floats, infinity and NaN included, are in the order of their values
    int32_t magnitudes[n];
    std::memcpy(magnitudes, x, sizeof magnitudes);
    int32_t bits = 0;
    for (int i = 0; i < n; ++i) {
        bits = std::max(bits, magnitudes[i] & 0x7fffffff);
    }
    float largest;
    std::memcpy(&largest, &bits, sizeof largest);
    // below, 127 / largest would not be finite
    constexpr float kSmallest = 1e-36f;
    if (bits >= kInfinityBits || largest < kSmallest) {
        std::memset(q, 0, n);
        return bits >= kInfinityBits ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
    }
    // 1.5 * 2^23: adding it leaves the sum rounded to an integer, in the low bits
    constexpr float kRounding = 12582912.0f;
    const float inverse = 127.0f / largest;
    float rounded[n];
    for (int i = 0; i < n; ++i) {
        rounded[i] = x[i] * inverse + kRounding;
    }
    int32_t integers[n];
    std::memcpy(integers, rounded, sizeof integers);
    for (int i = 0; i < n; ++i) {
        q[i] = static_cast<int8_t>(integers[i]);  // the low byte
    }
    return largest * (1.0f / 127.0f);
}

// Blocks [first, last) of the tokens of X, which are its rows or those that `rows` names.
void quantize_token_blocks(const float * x, int64_t x_row_stride, const int32_t * rows, const TokenBlock & layout,
                           int64_t n_tokens, int64_t first, int64_t last, char * quantized) {
    quantized += static_cast<size_t>(first) * layout.size();
    const int64_t scale_block = layout.scale_block;
    int8_t q[kLargestScaleBlock];
    for (int64_t block = first; block < last; ++block, quantized += layout.size()) {
        auto * values = reinterpret_cast<int8_t *>(quantized);
        auto * scales = reinterpret_cast<float *>(quantized + layout.scales());
        auto * sums = reinterpret_cast<int32_t *>(quantized + layout.sums());
        const int64_t filled = std::min<int64_t>(kTokens, n_tokens - block * kTokens);
        if (filled < kTokens) {
            std::memset(quantized, 0, layout.size());
        }
        for (int64_t i = 0; i < layout.n_in; i += scale_block) {
            for (int64_t t = 0; t < filled; ++t) {
                const float * row = x + row_at(rows, block * kTokens + t) * x_row_stride;
                scales[i / scale_block * kTokens + t] =
                    scale_block == 32 ? quantize_block<32>(row + i, q) : quantize_block<256>(row + i, q);
                for (int64_t j = 0; j < scale_block; j += 4) {
                    std::memcpy(values + (i + j) * kTokens + t * 4, q + j, 4);
                }
                for (int64_t j = 0; j < scale_block; j += kSumBlock) {
                    int32_t sum = 0;
                    for (int64_t s = 0; s < kSumBlock; ++s) {
                        sum += q[j + s];
                    }
                    sums[(i + j) / kSumBlock * kTokens + t] = sum;
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

// One token block: values and scales as in TokenBlock, and [k / sub_block][kTokens] what its sums contribute to the
// product: for a format without mins `starts`, where the integer sums begin (-offset * sum), else `sums`, the factors
// of the mins.
struct Tokens {
    const int8_t * values;
    const float * scales;
    const int32_t * starts;
    const float * sums;
};

struct Output {
    float * y;
    int64_t row_stride;
    const int32_t * rows;  // of Y, or nullptr: those from y on
    int64_t n_rows, n_cols;
    bool accumulate;

    float * row(int64_t t) const { return y + row_at(rows, t) * row_stride; }
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

// Dot products of 4 * n bytes of each weight and token.
template <int n_vectors, int n, int together>
inline void add_dots(const uint8_t * w_values, const int8_t * x_values, IntVec (&dot)[kTokens][n_vectors]) {
    constexpr int64_t kStep = 4 * n_vectors * kWidth;
#if defined(GGTUNE_PAIR_SUMS)
    if constexpr (together > 0) {
#pragma GCC unroll 8
        for (int first = 0; first < n; first += together) {
            __m256i pairs[kTokens][n_vectors];
#pragma GCC unroll 8
            for (int four = 0; four < together; ++four) {
                __m256i weights[n_vectors];
#pragma GCC unroll 2
                for (int v = 0; v < n_vectors; ++v) {
                    weights[v] = (__m256i)load_bytes(w_values + 4 * v * kWidth);
                }
#pragma GCC unroll 6
                for (int t = 0; t < kTokens; ++t) {
                    const auto element = (__m256i)splat_bytes(x_values + 4 * t);
#pragma GCC unroll 2
                    for (int v = 0; v < n_vectors; ++v) {
                        const __m256i products = _mm256_maddubs_epi16(weights[v], element);
                        pairs[t][v] = four == 0 ? products : _mm256_add_epi16(pairs[t][v], products);
                        // in this order: in another one, the registers do not suffice
                        asm("" : "+x"(pairs[t][v]));
                    }
                }
                w_values += kStep;
                x_values += 4 * kTokens;
            }
#pragma GCC unroll 6
            for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
                for (int v = 0; v < n_vectors; ++v) {
                    dot[t][v] += (IntVec)_mm256_madd_epi16(pairs[t][v], _mm256_set1_epi16(1));
                }
            }
        }
        return;
    }
#endif
#pragma GCC unroll 8
    for (int four = 0; four < n; ++four) {
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
        w_values += kStep;
        x_values += 4 * kTokens;
    }
}

// The sums are taken block by block in order: they do not depend on the register block.
template <int n_vectors, int sub_block, bool has_min, int scale_block, int together>
void multiply(int64_t k, const Panel & w, const Tokens & x, const Output & out) {
    constexpr int64_t kSumWidth = n_vectors * kWidth;
    const uint8_t * w_values = w.values;
    const int8_t * x_values = x.values;
    const float * x_scales = x.scales;
    Vec sum[kTokens][n_vectors] = {};
    for (int64_t block = 0; block < k / sub_block;) {
        Vec scaled[kTokens][n_vectors] = {};
        for (int i = 0; i < scale_block / sub_block; ++i, ++block) {
            IntVec dot[kTokens][n_vectors];
#pragma GCC unroll 6
            for (int t = 0; t < kTokens; ++t) {
                const IntVec start = has_min ? IntVec{} : IntVec{} + x.starts[block * kTokens + t];
#pragma GCC unroll 2
                for (int v = 0; v < n_vectors; ++v) {
                    dot[t][v] = start;
                }
            }
            add_dots<n_vectors, sub_block / 4, together>(w_values, x_values, dot);
            w_values += sub_block * kSumWidth;
            x_values += sub_block * kTokens;
#pragma GCC unroll 2
            for (int v = 0; v < n_vectors; ++v) {
                const Vec scale = simd::load(w.scales + block * kSumWidth + v * kWidth);
                const Vec min = has_min ? simd::load(w.mins + block * kSumWidth + v * kWidth) : Vec{};
#pragma GCC unroll 6
                for (int t = 0; t < kTokens; ++t) {
                    scaled[t][v] += __builtin_convertvector(dot[t][v], Vec) * scale;
                    if constexpr (has_min) {
                        scaled[t][v] -= min * x.sums[block * kTokens + t];
                    }
                }
            }
        }
#pragma GCC unroll 6
        for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
            for (int v = 0; v < n_vectors; ++v) {
                sum[t][v] += scaled[t][v] * x_scales[t];
            }
        }
        x_scales += kTokens;
    }
    if (out.n_rows == kTokens && out.n_cols == kSumWidth) {
#pragma GCC unroll 6
        for (int t = 0; t < kTokens; ++t) {
            float * y = out.row(t);
#pragma GCC unroll 2
            for (int v = 0; v < n_vectors; ++v) {
                simd::store(y + v * kWidth, out.accumulate ? simd::load(y + v * kWidth) + sum[t][v] : sum[t][v]);
            }
        }
        return;
    }
    float product[kTokens][kSumWidth];
    std::memcpy(product, sum, sizeof product);
    for (int64_t t = 0; t < out.n_rows; ++t) {
        float * y = out.row(t);
        for (int64_t j = 0; j < out.n_cols; ++j) {
            y[j] = out.accumulate ? y[j] + product[t][j] : product[t][j];
        }
    }
}

using Multiply = void (*)(int64_t k, const Panel & w, const Tokens & x, const Output & out);

template <int n_vectors, int sub_block, bool has_min, int together = kMostTogether>
Multiply multiply_kernel(int64_t scale_block, int dots_together) {
    if constexpr (together > 0) {
        if (dots_together != together) {
            return multiply_kernel<n_vectors, sub_block, has_min, together / 2>(scale_block, dots_together);
        }
    }
    return scale_block == 32 ? multiply<n_vectors, sub_block, has_min, 32, together>
                             : multiply<n_vectors, sub_block, has_min, 256, together>;
}

template <int n_vectors>
Multiply multiply_kernel(const Int8Format & format, int64_t scale_block, int dots_together) {
    if (format.sub_block == 16) {
        return format.has_min ? multiply_kernel<n_vectors, 16, true>(scale_block, dots_together)
                              : multiply_kernel<n_vectors, 16, false>(scale_block, dots_together);
    }
    return format.has_min ? multiply_kernel<n_vectors, 32, true>(scale_block, dots_together)
                          : multiply_kernel<n_vectors, 32, false>(scale_block, dots_together);
}

// A tile of W as panels of kPanelCols outputs one after another; the last one is narrower, a multiple of kWidth wide,
// its outputs beyond n_rows are zeros.
class WeightTile {
  public:
    void set_weight(ggml_type type, const void * data, size_t row_bytes) {
        format_ = detail::int8_format(type);
        data_ = static_cast<const uint8_t *>(data);
        row_bytes_ = row_bytes;
        block_ = ggml_blck_size(type);
        block_bytes_ = ggml_type_size(type);
        subtracted_ = 0;
        if (kSignedWeights && format_->offset == kMiddle) {
            // the weights as signed bytes, or as the smallest unsigned ones
            const int32_t magnitude = format_->largest_value - kMiddle;
            subtracted_ = dots_in_16_bits(2 * magnitude, format_->sub_block) > 0 ? kMiddle - magnitude : kMiddle;
        }
        dots_together_ =
            subtracted_ == kMiddle ? 0 : dots_in_16_bits(format_->largest_value - subtracted_, format_->sub_block);
    }

    const Int8Format & format() const { return *format_; }

    // What is subtracted from the bytes as they are in the tile.
    int32_t offset() const { return format_->offset - subtracted_; }

    // As dots_in_16_bits().
    int dots_together() const { return dots_together_; }

    static int64_t width(int64_t n_rows, int64_t row) { return std::min(kPanelCols, round_up(n_rows - row, kWidth)); }

    void unpack(int64_t row0, int64_t n_rows, int64_t k0, int64_t k) {
        const auto rows = static_cast<size_t>(round_up(n_rows, kWidth));
        const auto blocks = static_cast<size_t>(k / format_->sub_block);
        values_.resize(rows * static_cast<size_t>(k / 4));
        scales_.resize(rows * blocks);
        mins_.resize(format_->has_min ? rows * blocks : 0);
        row_values_.resize(static_cast<size_t>(kPanelCols * k / 4));
        row_scales_.resize(static_cast<size_t>(kPanelCols) * blocks);
        row_mins_.resize(static_cast<size_t>(kPanelCols) * blocks);
        for (int64_t row = 0; row < n_rows; row += kPanelCols) {
            unpack_panel(row0 + row, std::min(kPanelCols, n_rows - row), width(n_rows, row), k0, k,
                         values_.data() + row * k / 4, row * k / format_->sub_block);
        }
    }

    Panel panel(int64_t row, int64_t k) const {
        const int64_t scale = row * k / format_->sub_block;
        return {reinterpret_cast<const uint8_t *>(values_.data() + row * k / 4), scales_.data() + scale,
                format_->has_min ? mins_.data() + scale : nullptr};
    }

  private:
    static constexpr int32_t kMiddle = 128;  // the offset of formats with values up to 255

    void unpack_panel(int64_t row0, int64_t n_rows, int64_t width, int64_t k0, int64_t k, float * values,
                      int64_t scale) {
        const int64_t blocks = k / format_->sub_block;
        if (n_rows < width) {
            std::fill(row_values_.begin(), row_values_.end(), 0.0f);
            std::fill(row_scales_.begin(), row_scales_.end(), 0.0f);
            std::fill(row_mins_.begin(), row_mins_.end(), 0.0f);
        }
        for (int64_t i = 0; i < n_rows; ++i) {
            const uint8_t * src =
                data_ + static_cast<size_t>(row0 + i) * row_bytes_ + static_cast<size_t>(k0 / block_) * block_bytes_;
            auto * bytes = reinterpret_cast<uint8_t *>(row_values_.data() + i * k / 4);
            format_->unpack(src, k, bytes, row_scales_.data() + i * blocks, row_mins_.data() + i * blocks);
            if (subtracted_ != 0) {
                const auto subtracted = static_cast<uint8_t>(subtracted_);
                for (int64_t j = 0; j < k; ++j) {
                    bytes[j] -= subtracted;
                }
            }
        }
        // four bytes travel as one float
        detail::transpose_copy(row_values_.data(), k / 4, width, k / 4, values, width);
        detail::transpose_copy(row_scales_.data(), blocks, width, blocks, scales_.data() + scale, width);
        if (format_->has_min) {
            detail::transpose_copy(row_mins_.data(), blocks, width, blocks, mins_.data() + scale, width);
        }
    }

    const Int8Format * format_;
    const uint8_t * data_;
    size_t row_bytes_;
    int64_t block_;
    size_t block_bytes_;
    int32_t subtracted_;  // from the bytes that the format has
    int dots_together_;
    std::vector<float> values_, scales_, mins_;              // of the tile
    std::vector<float> row_values_, row_scales_, row_mins_;  // of a panel, output by output
};

detail::Part split(int64_t n_tokens, int64_t n_out, int ith, int nth) {
    // in units of the dot products of one value of a token with a vector of outputs; measured
    constexpr double kUnpackCost = 1.0;
    constexpr double kReadCost = 0.1;
    return detail::split_product(n_tokens, n_out, {kWidth, kUnpackCost, kReadCost, kTokens}, ith, nth);
}

// What the sums of all tokens contribute, one token block after another; see Tokens.
struct SumTerms {
    std::vector<int32_t> starts;
    std::vector<float> sums;

    void fill(const Int8Format & format, int32_t offset, const char * quantized, const TokenBlock & layout,
              int64_t n_blocks) {
        const int64_t parts = format.sub_block / kSumBlock;
        const int64_t n_sub_blocks = layout.n_in / format.sub_block;
        const auto n_terms = static_cast<size_t>(n_blocks * n_sub_blocks * kTokens);
        starts.resize(format.has_min ? 0 : n_terms);
        sums.resize(format.has_min ? n_terms : 0);
        size_t term = 0;
        for (int64_t b = 0; b < n_blocks; ++b, quantized += layout.size()) {
            const auto * x_sums = reinterpret_cast<const int32_t *>(quantized + layout.sums());
            for (int64_t i = 0; i < n_sub_blocks; ++i, x_sums += parts * kTokens) {
                for (int64_t t = 0; t < kTokens; ++t, ++term) {
                    const int32_t sum = parts == 1 ? x_sums[t] : x_sums[t] + x_sums[kTokens + t];
                    if (format.has_min) {
                        sums[term] = static_cast<float>(sum);
                    } else {
                        starts[term] = -offset * sum;
                    }
                }
            }
        }
    }
};

// y_rows: where the rows of the part lie in Y, or nullptr.
void multiply_part(ggml_type type, const void * w, size_t w_row_bytes, const TokenBlock & layout,
                   const char * quantized, const detail::Part & part, float * y, int64_t y_row_stride,
                   const int32_t * y_rows) {
    quantized += static_cast<size_t>(part.rows.begin / kTokens) * layout.size();
    thread_local WeightTile tile;
    thread_local SumTerms terms;
    tile.set_weight(type, w, w_row_bytes);
    const Int8Format & format = tile.format();
    const Multiply wide = multiply_kernel<2>(format, layout.scale_block, tile.dots_together());
    const Multiply narrow = multiply_kernel<1>(format, layout.scale_block, tile.dots_together());
    for (int64_t token0 = part.rows.begin; token0 < part.rows.end; token0 += kTileTokens) {
        const int64_t n_tokens = std::min(kTileTokens, part.rows.end - token0);
        terms.fill(format, tile.offset(), quantized, layout, int8_token_blocks(n_tokens));
        for (int64_t row0 = part.cols.begin; row0 < part.cols.end; row0 += kTileN) {
            const int64_t n_rows = std::min(kTileN, part.cols.end - row0);
            for (int64_t k0 = 0; k0 < layout.n_in; k0 += kTileK) {
                const int64_t k = std::min(kTileK, layout.n_in - k0);
                tile.unpack(row0, n_rows, k0, k);
                for (int64_t row = 0; row < n_rows; row += kPanelCols) {
                    const Multiply kernel = WeightTile::width(n_rows, row) == kPanelCols ? wide : narrow;
                    const Panel panel = tile.panel(row, k);
                    const char * block = quantized;
                    int64_t term = k0 / format.sub_block * kTokens;
                    for (int64_t t = 0; t < n_tokens; t += kTokens) {
                        const Tokens tokens = {reinterpret_cast<const int8_t *>(block) + k0 * kTokens,
                                               reinterpret_cast<const float *>(block + layout.scales()) +
                                                   k0 / layout.scale_block * kTokens,
                                               format.has_min ? nullptr : terms.starts.data() + term,
                                               format.has_min ? terms.sums.data() + term : nullptr};
                        kernel(k, panel, tokens,
                               {y + (y_rows != nullptr ? 0 : token0 + t) * y_row_stride + row0 + row, y_row_stride,
                                y_rows != nullptr ? y_rows + token0 + t : nullptr,
                                std::min<int64_t>(kTokens, n_tokens - t), std::min(kPanelCols, n_rows - row), k0 > 0});
                        block += layout.size();
                        term += layout.n_in / format.sub_block * kTokens;
                    }
                }
            }
        }
        quantized += static_cast<size_t>(int8_token_blocks(n_tokens)) * layout.size();
    }
}

}  // namespace

bool int8_product_supported(ggml_type type) {
    return detail::int8_format(type) != nullptr;
}

bool int8_product_fast() {
    return kFast;
}

int64_t int8_activation_block(ggml_type type) {
    return ggml_blck_size(type) == kLargestScaleBlock ? kLargestScaleBlock : 32;
}

int64_t int8_token_blocks(int64_t n_tokens) {
    return (n_tokens + kTokens - 1) / kTokens;
}

size_t int8_token_block_bytes(int64_t n_in, int64_t activation_block) {
    return TokenBlock{n_in, activation_block}.size();
}

void int8_quantize(const float * x, int64_t x_row_stride, int64_t n_in, int64_t activation_block, int64_t n_tokens,
                   void * quantized, int ith, int nth) {
    const Range blocks = split_range(int8_token_blocks(n_tokens), ith, nth);
    quantize_token_blocks(x, x_row_stride, nullptr, {n_in, activation_block}, n_tokens, blocks.begin, blocks.end,
                          static_cast<char *>(quantized));
}

void int8_quantize_rows(const float * x, int64_t x_row_stride, const int32_t * x_rows, int64_t n_in,
                        int64_t activation_block, int64_t n_tokens, void * quantized, const Range & blocks) {
    quantize_token_blocks(x, x_row_stride, x_rows, {n_in, activation_block}, n_tokens, blocks.begin, blocks.end,
                          static_cast<char *>(quantized));
}

void int8_forward(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, int64_t n_out,
                  const void * quantized, int64_t n_tokens, float * y, int64_t y_row_stride, int ith, int nth) {
    const detail::Part part = split(n_tokens, n_out, ith, nth);
    if (part.rows.size() > 0 && part.cols.size() > 0) {
        multiply_part(type, w, w_row_bytes, {n_in, int8_activation_block(type)}, static_cast<const char *>(quantized),
                      part, y, y_row_stride, nullptr);
    }
}

void int8_forward_rows(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, const void * quantized,
                       int64_t n_tokens, float * y, int64_t y_row_stride, const int32_t * y_rows,
                       const Range & columns) {
    multiply_part(type, w, w_row_bytes, {n_in, int8_activation_block(type)}, static_cast<const char *>(quantized),
                  {{0, n_tokens}, columns}, y, y_row_stride, y_rows);
}

}  // namespace ggtune::kernels
