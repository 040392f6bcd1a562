#include "kernels/int16_gradient.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/blocked_product.h"
#include "kernels/int8_unpack.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace ggtune::kernels {
namespace {

using detail::Int8Format;
using detail::row_at;
using simd::IntVec;
using simd::kWidth;
using simd::Vec;

// Register block: kTokens tokens times up to kVectors vectors of columns.
constexpr int kTokens = simd::kPanelVectors == 2 ? 6 : 12;
constexpr int kVectors = 2;
constexpr int64_t kPanelCols = kVectors * kWidth;

// Outputs whose dY share a scale. Fewer where the integers of W can be large, since the sum of so many products has to
// fit 32 bits: with half as many, dY keeps another bit.
constexpr int64_t kMostOutputs = 256;
constexpr int32_t kLargeWeight = 1024;

constexpr int64_t kMostCols = 256;  // of a block of W
constexpr int64_t kMostSubBlocks = 16;

// Unpacked columns of W (kTileCols x kMostOutputs int16) stay in the L2 cache while they serve all tokens, kTileTokens
// at a time, whose dY are read from memory once for all those columns.
constexpr int64_t kTileCols = 1024;
constexpr int64_t kTileTokens = 24;
// dX of so many tokens and kTileCols columns (4 MB) stay in the L3 cache from one tile's outputs to the next.
constexpr int64_t kBlockTokens = 1008;
// from one token to the next, off a power of two that would crowd a few cache sets
constexpr int64_t kRowStride = kMostOutputs + 32;

// Products with mins: so many tokens at a time, with the mins of so many sub-blocks in a vector.
constexpr int64_t kMinTokens = 8;
constexpr int64_t kMinLanes = 8;
static_assert(kTileTokens % kTokens == 0 && kTileTokens % kMinTokens == 0);
typedef float MinVec __attribute__((vector_size(kMinLanes * sizeof(float))));

typedef int16_t ShortVec __attribute__((vector_size(kWidth * sizeof(int32_t))));

inline IntVec widened(const uint8_t * p) {
#if defined(__AVX512F__)
    // masked, since GCC warns of the undefined lanes of the other form
    return (IntVec)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
#elif defined(__AVX2__)
    return (IntVec)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
#else
    typedef uint8_t ByteVec __attribute__((vector_size(kWidth)));
    ByteVec bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(bytes, IntVec);
#endif
}

// Each lane of `sum` gains the dot product of two int16 of w and of x.
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
constexpr bool kFast = true;
inline IntVec add_dot2(IntVec sum, IntVec w, IntVec x) {
    return (IntVec)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
}
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
constexpr bool kFast = true;
inline IntVec add_dot2(IntVec sum, IntVec w, IntVec x) {
    return (IntVec)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
}
#elif defined(__AVX512BW__)
constexpr bool kFast = true;
inline IntVec add_dot2(IntVec sum, IntVec w, IntVec x) {
    return sum + (IntVec)_mm512_madd_epi16((__m512i)w, (__m512i)x);
}
#elif defined(__AVX2__) && !defined(__AVX512F__)
constexpr bool kFast = true;
inline IntVec add_dot2(IntVec sum, IntVec w, IntVec x) {
    return sum + (IntVec)_mm256_madd_epi16((__m256i)w, (__m256i)x);
}
#else
constexpr bool kFast = false;
inline IntVec add_dot2(IntVec sum, IntVec w, IntVec x) {
    return sum + ((w << 16) >> 16) * ((x << 16) >> 16) + (w >> 16) * (x >> 16);
}
#endif

// Up to kMostOutputs rows of W, columns [col0, col0 + n_cols) of one block of each.
struct WeightBlock {
    int64_t col0, n_cols;
    int64_t first_in_block;  // where col0 lies in its block
    int64_t n_sub_blocks;
    float scales[kMostOutputs];
    int32_t sums[kMostCols];  // of the integers' magnitudes, for each column of the block
    float largest;            // rounded dY that no sum of products with these integers can carry beyond 32 bits
    // panels of [outputs / 2][columns]: the integers of output 2 p and, in the upper half, 2 p + 1
    std::vector<int32_t> pairs;
    std::vector<float> mins;  // [n_sub_blocks / kMinLanes][outputs][kMinLanes]
};

// Up to kMostOutputs outputs by kTileCols columns of W.
struct WeightTile {
    size_t n_blocks;
    std::vector<WeightBlock> blocks;
};

struct Weight {
    const Int8Format & format;
    const uint8_t * data;
    size_t row_bytes;
    size_t block_bytes;

    void unpack(int64_t output0, int64_t n_outputs, int64_t col0, int64_t n_cols, WeightTile & tile) const {
        tile.n_blocks = 0;
        for (int64_t col = col0; col < col0 + n_cols;) {
            const int64_t end = std::min((col / format.block + 1) * format.block, col0 + n_cols);
            if (tile.n_blocks == tile.blocks.size()) {
                tile.blocks.emplace_back();
            }
            prepare(tile.blocks[tile.n_blocks++], n_outputs, col, end - col);
            col = end;
        }
        const uint8_t * row =
            data + static_cast<size_t>(output0) * row_bytes + static_cast<size_t>(col0 / format.block) * block_bytes;
        for (int64_t o = 0; o < n_outputs; o += 2, row += 2 * row_bytes) {
            for (size_t b = 0; b < tile.n_blocks; ++b) {
                unpack_pair(row + b * block_bytes, o, n_outputs, tile.blocks[b]);
            }
        }
        for (size_t b = 0; b < tile.n_blocks; ++b) {
            WeightBlock & block = tile.blocks[b];
            const int32_t sum = std::max(1, *std::max_element(block.sums, block.sums + format.block));
            block.largest = static_cast<float>(
                std::min<int32_t>(std::numeric_limits<int16_t>::max(), std::numeric_limits<int32_t>::max() / sum));
        }
    }

  private:
    void prepare(WeightBlock & block, int64_t n_outputs, int64_t col0, int64_t n_cols) const {
        const int64_t in_block = col0 % format.block;
        block.col0 = col0;
        block.n_cols = n_cols;
        block.first_in_block = in_block;
        block.n_sub_blocks = (in_block + n_cols - 1) / format.sub_block + 1 - in_block / format.sub_block;
        block.pairs.resize(static_cast<size_t>((n_outputs + 1) / 2 * n_cols));
        if (format.has_min) {
            block.mins.resize(static_cast<size_t>(detail::round_up(block.n_sub_blocks, kMinLanes) * n_outputs));
        }
        std::fill(std::begin(block.sums), std::end(block.sums), 0);
        std::fill(block.scales + n_outputs, block.scales + detail::round_up(n_outputs, kWidth), 0.0f);
    }

    // Outputs o and, unless it is beyond the last, o + 1.
    void unpack_pair(const uint8_t * src, int64_t o, int64_t n_outputs, WeightBlock & block) const {
        uint8_t values[2][kMostCols];
        // read kMinLanes at a time
        int16_t factors[2][kMostSubBlocks + kMinLanes] = {};
        float mins[kMostSubBlocks + kMinLanes] = {};
        int32_t pairs[kMostCols];
        for (int64_t i = 0; i < 2; ++i, src += row_bytes) {
            if (o + i == n_outputs) {
                std::fill_n(values[i], format.block, uint8_t{0});
                std::fill_n(factors[i], format.block / format.sub_block, int16_t{0});
                break;
            }
            __builtin_prefetch(src + 4 * row_bytes);
            __builtin_prefetch(src + 4 * row_bytes + 64);
            block.scales[o + i] = format.unpack_block(src, values[i], factors[i], mins);
            if (format.has_min) {
                write_mins(mins, factors[i], o + i, n_outputs, block);
            }
        }
        // all of them, also where only some of the columns are wanted: rounding must not depend on that
        multiply_by_factors(values, factors, pairs, block.sums);
        write_pair(pairs + block.first_in_block, o / 2, (n_outputs + 1) / 2, block);
    }

    // Values about zero are smaller integers; the mins are smaller, too.
    void write_mins(const float * mins, const int16_t * factors, int64_t o, int64_t n_outputs,
                    WeightBlock & block) const {
        const int64_t first = block.first_in_block / format.sub_block;
        const float center = block.scales[o] * static_cast<float>(format.center);
        for (int64_t s = 0; s < block.n_sub_blocks; s += kMinLanes) {
            float * centered = block.mins.data() + s * n_outputs + o * kMinLanes;
            for (int64_t i = 0; i < kMinLanes; ++i) {
                centered[i] = mins[first + s + i] - center * static_cast<float>(factors[first + s + i]);
            }
        }
    }

    // The integers of two outputs, the second one's in the upper halves, and their magnitudes added to the sums.
    void multiply_by_factors(const uint8_t (&values)[2][kMostCols],
                             const int16_t (&factors)[2][kMostSubBlocks + kMinLanes], int32_t * pairs,
                             int32_t * sums) const {
        const ShortVec center = ShortVec{} + static_cast<int16_t>(format.center);
        const IntVec ones = IntVec{} + 0x00010001;
        for (int64_t j = 0; j < format.block; j += kWidth) {
            const int64_t s = j / format.sub_block;
            const auto factor = static_cast<int32_t>(static_cast<uint16_t>(factors[0][s]) |
                                                     static_cast<uint32_t>(static_cast<uint16_t>(factors[1][s])) << 16);
            const IntVec both = widened(values[0] + j) | widened(values[1] + j) << 16;
            const ShortVec integers = ((ShortVec)both - center) * (ShortVec)(IntVec{} + factor);
            std::memcpy(pairs + j, &integers, sizeof integers);
            const ShortVec magnitudes = integers < 0 ? -integers : integers;
            IntVec sum;
            std::memcpy(&sum, sums + j, sizeof sum);
            sum = add_dot2(sum, (IntVec)magnitudes, ones);
            std::memcpy(sums + j, &sum, sizeof sum);
        }
    }

    static void write_pair(const int32_t * pairs, int64_t pair, int64_t n_pairs, WeightBlock & block) {
        int64_t j = 0;
        for (; j + kPanelCols <= block.n_cols; j += kPanelCols) {
            std::copy_n(pairs + j, kPanelCols, block.pairs.data() + j * n_pairs + pair * kPanelCols);
        }
        if (j < block.n_cols) {
            const int64_t width = block.n_cols - j;
            std::copy_n(pairs + j, width, block.pairs.data() + j * n_pairs + pair * width);
        }
    }
};

// Rows of a matrix: those that `index` names, or nullptr: those from `data` on.
struct Rows {
    const float * data;
    int64_t stride;
    const int32_t * index;

    const float * row(int64_t i) const { return data + row_at(index, i) * stride; }
    Rows from(int64_t i) const {
        return index != nullptr ? Rows{data, stride, index + i} : Rows{data + i * stride, stride, nullptr};
    }
};

// dY of up to kTileTokens tokens for the outputs of a tile, and what becomes of it for one block of columns. What is
// missing to whole vectors of outputs and to kMinTokens is zeros in dy; `rounded` of missing tokens is never stored.
struct Gradient {
    alignas(64) float dy[kTileTokens][kRowStride];
    alignas(64) int16_t rounded[kTileTokens][kRowStride];
    float scales[kTileTokens];
    alignas(64) float min_terms[kTileTokens][kMostSubBlocks];

    void copy(const Rows & from, int64_t n_tokens, int64_t n_outputs) {
        const auto n_padded = static_cast<size_t>(detail::round_up(n_outputs, kWidth));
        const auto n = static_cast<size_t>(n_outputs);
        for (int64_t t = 0; t < n_tokens; ++t) {
            std::memcpy(dy[t], from.row(t), n * sizeof(float));
            std::fill(dy[t] + n, dy[t] + n_padded, 0.0f);
        }
        for (int64_t t = n_tokens; t < detail::round_up(n_tokens, kMinTokens); ++t) {
            std::fill(dy[t], dy[t] + n_padded, 0.0f);
        }
    }
};

// Rows of a matrix that are wanted soon: they lie too far apart for the CPU to foresee them.
void prefetch_rows(const Rows & from, int64_t n_rows, int64_t n) {
    constexpr int64_t kLine = 16;
    for (int64_t i = 0; i < n_rows; ++i) {
        for (int64_t j = 0; j < n; j += kLine) {
            __builtin_prefetch(from.row(i) + j, 0, 2);
        }
    }
}

// dy [n_outputs] times the scales of W, as integers of at most `largest`, times the returned scale.
float round_token(const float * dy, const float * w_scales, int64_t n_outputs, float largest, int16_t * rounded) {
    constexpr int32_t kInfinityBits = 0x7f800000;
    alignas(64) float scaled[kMostOutputs];
    // bits of non-negative floats, infinity and NaN included, are in the order of their values
    IntVec most = {};
    for (int64_t o = 0; o < n_outputs; o += kWidth) {
        const Vec product = simd::load(dy + o) * simd::load(w_scales + o);
        simd::store(scaled + o, product);
        const IntVec bits = (IntVec)product & 0x7fffffff;
        most = most > bits ? most : bits;
    }
    int32_t lanes[kWidth];
    std::memcpy(lanes, &most, sizeof lanes);
    const int32_t bits = *std::max_element(std::begin(lanes), std::end(lanes));
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    // below, largest / magnitude would not be finite
    constexpr float kSmallest = 1e-34f;
    if (bits >= kInfinityBits || magnitude < kSmallest) {
        std::fill_n(rounded, n_outputs, int16_t{0});
        return bits >= kInfinityBits ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
    }
    // 1.5 * 2^23: adding it leaves the sum rounded to an integer, in the low bits
    constexpr float kRounding = 12582912.0f;
    const float inverse = largest / magnitude;
    for (int64_t o = 0; o < n_outputs; ++o) {
        const float shifted = scaled[o] * inverse + kRounding;
        int32_t integer;
        std::memcpy(&integer, &shifted, sizeof integer);
        rounded[o] = static_cast<int16_t>(integer);
    }
    return magnitude / largest;
}

// Of kMinTokens tokens: min_terms[t][s] = sum_o dy[t][o] * mins[o][s]
void multiply_mins(const float * dy, const float * mins, int64_t n_outputs, float * min_terms) {
    MinVec sum[kMinTokens] = {};
    for (int64_t o = 0; o < n_outputs; ++o) {
        MinVec m;
        std::memcpy(&m, mins + o * kMinLanes, sizeof m);
#pragma GCC unroll 8
        for (int t = 0; t < kMinTokens; ++t) {
            sum[t] += dy[t * kRowStride + o] * m;
        }
    }
    for (int t = 0; t < kMinTokens; ++t) {
        std::memcpy(min_terms + t * kMostSubBlocks, &sum[t], sizeof(MinVec));
    }
}

struct Output {
    float * dx;
    int64_t row_stride;
    const int32_t * rows;  // of dX, or nullptr: those from dx on
    int64_t n_rows;
    bool accumulate;

    float * row(int64_t t) const { return dx + row_at(rows, t) * row_stride; }
};

// Columns of one panel: which sub-block each vector belongs to.
struct Columns {
    bool has_min;
    int sub_block[kVectors];
};

template <int n_vectors>
void multiply(int64_t n_pairs, const int32_t * w, const int16_t * rounded, const float * scales,
              const float * min_terms, const Columns & columns, const Output & out) {
    for (int64_t t = 0; t < out.n_rows && out.accumulate; ++t) {
        for (int v = 0; v < n_vectors; ++v) {
            __builtin_prefetch(out.row(t) + v * kWidth, 1);
        }
    }
    IntVec sum[kTokens][n_vectors] = {};
    for (int64_t p = 0; p < n_pairs; ++p) {
        IntVec weights[n_vectors];
#pragma GCC unroll 2
        for (int v = 0; v < n_vectors; ++v) {
            std::memcpy(&weights[v], w + v * kWidth, sizeof(IntVec));
        }
        w += n_vectors * kWidth;
#pragma GCC unroll 12
        for (int t = 0; t < kTokens; ++t) {
            int32_t pair;
            std::memcpy(&pair, rounded + t * kRowStride, sizeof pair);
            const IntVec element = IntVec{} + pair;
#pragma GCC unroll 2
            for (int v = 0; v < n_vectors; ++v) {
                sum[t][v] = add_dot2(sum[t][v], weights[v], element);
            }
        }
        rounded += 2;
    }
#pragma GCC unroll 12
    for (int t = 0; t < kTokens; ++t) {
        if (t == out.n_rows) {
            break;
        }
        float * dx = out.row(t);
#pragma GCC unroll 2
        for (int v = 0; v < n_vectors; ++v) {
            Vec product = __builtin_convertvector(sum[t][v], Vec) * scales[t];
            if (columns.has_min) {
                product -= min_terms[t * kMostSubBlocks + columns.sub_block[v]];
            }
            simd::store(dx + v * kWidth, out.accumulate ? simd::load(dx + v * kWidth) + product : product);
        }
    }
}

void multiply_block(const WeightBlock & w, int64_t n_outputs, const Int8Format & format, Gradient & gradient,
                    int64_t n_tokens, float * dx, int64_t dx_row_stride, const int32_t * dx_rows, bool accumulate) {
    for (int64_t t = 0; t < n_tokens; ++t) {
        gradient.scales[t] = round_token(gradient.dy[t], w.scales, n_outputs, w.largest, gradient.rounded[t]);
    }
    for (int64_t s = 0; s < w.n_sub_blocks && format.has_min; s += kMinLanes) {
        for (int64_t t = 0; t < n_tokens; t += kMinTokens) {
            multiply_mins(gradient.dy[t], w.mins.data() + s * n_outputs, n_outputs, gradient.min_terms[t] + s);
        }
    }
    const int64_t n_pairs = (n_outputs + 1) / 2;
    for (int64_t j = 0; j < w.n_cols; j += kPanelCols) {
        const auto kernel = w.n_cols - j >= kPanelCols ? multiply<kVectors> : multiply<1>;
        Columns columns = {format.has_min, {}};
        for (int v = 0; v < kVectors; ++v) {
            columns.sub_block[v] =
                static_cast<int>((w.first_in_block % format.sub_block + j + v * kWidth) / format.sub_block);
        }
        for (int64_t t = 0; t < n_tokens; t += kTokens) {
            kernel(n_pairs, w.pairs.data() + j * n_pairs, gradient.rounded[t], gradient.scales + t,
                   gradient.min_terms[t], columns,
                   {dx + (dx_rows != nullptr ? 0 : t) * dx_row_stride + w.col0 + j, dx_row_stride,
                    dx_rows != nullptr ? dx_rows + t : nullptr, std::min<int64_t>(kTokens, n_tokens - t), accumulate});
        }
    }
}

// Columns `cols` of dX; dx_rows: where its rows lie, or nullptr.
void multiply_part(const Weight & weight, int64_t n_out, const Rows & dy, int64_t n_tokens, float * dx,
                   int64_t dx_row_stride, const int32_t * dx_rows, bool accumulate, const Range & cols) {
    thread_local WeightTile tile;
    thread_local Gradient gradient;
    const int64_t tile_outputs = weight.format.largest > kLargeWeight ? kMostOutputs / 2 : kMostOutputs;
    for (int64_t col0 = cols.begin; col0 < cols.end; col0 += kTileCols) {
        for (int64_t output0 = 0; output0 < n_out; output0 += tile_outputs) {
            const int64_t n_outputs = std::min(tile_outputs, n_out - output0);
            weight.unpack(output0, n_outputs, col0, std::min(kTileCols, cols.end - col0), tile);
            for (int64_t t = 0; t < n_tokens; t += kTileTokens) {
                const int64_t n = std::min(kTileTokens, n_tokens - t);
                const Rows rows = Rows{dy.data + output0, dy.stride, dy.index}.from(t);
                gradient.copy(rows, n, n_outputs);
                prefetch_rows(rows.from(n), std::min(kTileTokens, n_tokens - t - n), n_outputs);
                for (size_t b = 0; b < tile.n_blocks; ++b) {
                    multiply_block(tile.blocks[b], n_outputs, weight.format, gradient, n,
                                   dx + (dx_rows != nullptr ? 0 : t) * dx_row_stride, dx_row_stride,
                                   dx_rows != nullptr ? dx_rows + t : nullptr, accumulate || output0 > 0);
                }
            }
        }
    }
}

}  // namespace

bool int16_gradient_supported(ggml_type type) {
    const Int8Format * format = detail::int8_format(type);
    return format != nullptr && format->unpack_block != nullptr &&
           !(format->has_min && format->block == format->sub_block);
}

bool int16_gradient_fast() {
    return kFast;
}

void int16_input_gradient(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_in, int64_t n_out,
                          const float * dy, int64_t dy_row_stride, int64_t n_tokens, float * dx, int64_t dx_row_stride,
                          bool accumulate, int ith, int nth) {
    const Int8Format & format = *detail::int8_format(type);
    const Weight weight = {format, static_cast<const uint8_t *>(w), w_row_bytes, ggml_type_size(type)};
    // in units of the dot products of one output of a token with a vector of columns; measured
    constexpr double kUnpackCost = 1.0;
    constexpr double kRoundCost = 1.5;
    const detail::Part part =
        detail::split_product(n_tokens, n_in, {format.block, kUnpackCost, kRoundCost, kTokens}, ith, nth);
    for (int64_t token0 = part.rows.begin; token0 < part.rows.end; token0 += kBlockTokens) {
        const int64_t n_block = std::min(kBlockTokens, part.rows.end - token0);
        multiply_part(weight, n_out, {dy + token0 * dy_row_stride, dy_row_stride, nullptr}, n_block,
                      dx + token0 * dx_row_stride, dx_row_stride, nullptr, accumulate, part.cols);
    }
}

void int16_input_gradient_rows(ggml_type type, const void * w, size_t w_row_bytes, int64_t n_out, const float * dy,
                               int64_t dy_row_stride, const int32_t * dy_rows, int64_t n_tokens, float * dx,
                               int64_t dx_row_stride, const int32_t * dx_rows, bool accumulate, const Range & columns) {
    const Int8Format & format = *detail::int8_format(type);
    const Weight weight = {format, static_cast<const uint8_t *>(w), w_row_bytes, ggml_type_size(type)};
    for (int64_t token0 = 0; token0 < n_tokens; token0 += kBlockTokens) {
        multiply_part(weight, n_out, {dy, dy_row_stride, dy_rows + token0}, std::min(kBlockTokens, n_tokens - token0),
                      dx, dx_row_stride, dx_rows + token0, accumulate, columns);
    }
}

}  // namespace ggtune::kernels
