#include "kernels/bf16_product.h"

#include <algorithm>
#include <type_traits>

#include "kernels/bf16_unpack.h"
#include "kernels/huge_pages.h"
#include "kernels/tile.h"
#include "kernels/tile_pack.h"

namespace ggtune::kernels {
namespace {

using namespace detail;

// What is multiplied at a time: a side of a block of sums.
constexpr int64_t kSide = kMostRows;
constexpr int64_t kBlockSums = kSide * kSide;

// Cache blocking, measured: of the sum kDepth at a time, so that the weights of kSide columns of the result (32 KiB)
// stay in the L1 cache while the tokens pass by; those of kColumns, the tokens' values and the sums stay in the L2
// cache.
constexpr int64_t kDepth = 512;
constexpr int64_t kColumns = 512;
constexpr int64_t kTokens = 512;
constexpr int64_t kDepthTiles = kDepth / kTileDepth;

// A second term of so small a depth is summed together with the end of the first, in registers.
constexpr int64_t kMoreDepth = 64;

// --- packed tokens: for each kDepth of the sum all panels, one after another

Bf16 * aligned(const void * packed) {
    constexpr uintptr_t kLine = 64;
    return reinterpret_cast<Bf16 *>((reinterpret_cast<uintptr_t>(packed) + kLine - 1) / kLine * kLine);
}

// From panel to panel, where so much is left of the sum.
int64_t panel_stride(int64_t depth_left) {
    return std::min(kDepthTiles, tile_count(depth_left)) * kTileValues;
}

template <class Pack>
void pack(const float * x, int64_t x_row_stride, int64_t n, int64_t n_tokens, float scale, void * packed, int64_t first,
          int64_t end, const int32_t * rows, Pack pack_panel) {
    alignas(64) float gathered[kTileRows * kDepth];
    Bf16 * block = aligned(packed);
    for (int64_t k = 0; k < n; k += kDepth) {
        const int64_t depth = std::min(kDepth, n - k);
        const int64_t stride = panel_stride(depth);
        for (int64_t p = first; p < end; ++p) {
            const int64_t n_rows = std::min(kTileRows, n_tokens - p * kTileRows);
            if (rows == nullptr) {
                pack_panel(x + p * kTileRows * x_row_stride + k, x_row_stride, n_rows, depth, scale,
                           block + p * stride);
                continue;
            }
            for (int64_t i = 0; i < n_rows; ++i) {
                std::copy_n(x + rows[p * kTileRows + i] * x_row_stride + k, depth, gathered + i * depth);
            }
            pack_panel(gathered, depth, n_rows, depth, scale, block + p * stride);
        }
        block += bf16_panel_count(n_tokens) * stride;
    }
}

// --- the products

// Both operands of a part of the sum for some columns and tokens of the result.
struct Stage {
    int64_t column, end_column;
    int64_t token, end_token;
    int term;
    int64_t k, depth;
    bool first, last;  // of the sum
    int64_t more;      // depth of the term after it that is summed together with it

    int64_t token_blocks() const { return (end_token - token + kSide - 1) / kSide; }
};

// The stages of one call, one after another.
class Stages {
  public:
    Stages(const Bf16Term * terms, int n_terms, const Range & tokens, const Range & columns)
        : terms_(terms), n_terms_(n_terms), tokens_(tokens), columns_(columns) {
        const int64_t n_blocks = (tokens.size() + kTokens - 1) / kTokens;
        token_step_ = n_blocks == 0 ? 0 : round_up((tokens.size() + n_blocks - 1) / n_blocks, kSide);
        if (!done()) {
            set(columns.begin, tokens.begin, 0, 0);
        }
    }

    bool done() const { return columns_.size() <= 0 || tokens_.size() <= 0 || finished_; }
    const Stage & stage() const { return stage_; }

    void advance() {
        if (stage_.k + stage_.depth < terms_[stage_.term].depth) {
            set(stage_.column, stage_.token, stage_.term, stage_.k + stage_.depth);
        } else if (!stage_.last) {
            set(stage_.column, stage_.token, stage_.term + 1, 0);
        } else if (stage_.end_column < columns_.end) {
            set(stage_.end_column, stage_.token, 0, 0);
        } else if (stage_.end_token < tokens_.end) {
            set(columns_.begin, stage_.end_token, 0, 0);
        } else {
            finished_ = true;
        }
    }

  private:
    void set(int64_t column, int64_t token, int term, int64_t k) {
        const int64_t whole = terms_[term].depth;
        const int64_t depth = std::min(kDepth, whole - k);
        const bool ends = k + depth == whole;
        const int64_t next = ends && term + 1 < n_terms_ ? terms_[term + 1].depth : 0;
        const int64_t more = next <= kMoreDepth ? next : 0;
        stage_ = {column,
                  std::min(columns_.end, column + kColumns),
                  token,
                  std::min(tokens_.end, token + token_step_),
                  term,
                  k,
                  depth,
                  term == 0 && k == 0,
                  ends && term + (more > 0 ? 2 : 1) == n_terms_,
                  more};
    }

    const Bf16Term * const terms_;
    const int n_terms_;
    const Range tokens_, columns_;
    int64_t token_step_;
    Stage stage_;
    bool finished_ = false;
};

// Rows lie too far apart for the CPU to foresee them.
constexpr int64_t kRowsAhead = 4;

inline void bring_near(const char * data, size_t n_bytes) {
    constexpr size_t kLine = 64;
    for (size_t i = 0; i < n_bytes; i += kLine) {
        __builtin_prefetch(data + i);
    }
}

// Columns [column, end_column) of the result are rows of W and rows of A; `depth` inputs from k on.
struct OutputUnpacker {
    static void unpack(const Bf16Term & term, int64_t k, int64_t depth, int64_t column, int64_t end_column,
                       Bf16 * weights) {
        const int64_t stride = panel_stride(depth);
        const size_t n_bytes = ggml_row_size(term.type, round_up(depth, ggml_blck_size(term.type)));
        for (int64_t row = 0; row < end_column - column; ++row) {
            const auto * from = static_cast<const char *>(term.w) + static_cast<size_t>(column + row) * term.row_bytes +
                                ggml_row_size(term.type, k);
            bring_near(from + kRowsAhead * term.row_bytes, n_bytes);
            unpack_bf16(term.type, from, depth, weights + row / kTileRows * stride + row % kTileRows * kTileDepth,
                        kTileValues);
        }
    }
};

// They are columns of W, of which pairs of rows are pairs of rows of B; `depth` outputs from k on.
struct InputUnpacker {
    static void unpack(const Bf16Term & term, int64_t k, int64_t depth, int64_t column, int64_t end_column,
                       Bf16 * weights) {
        // blocks of W of up to 256 columns may begin before and end behind
        constexpr int64_t kMostBlock = 256;
        alignas(64) Bf16 rows[2][kColumns + 2 * kMostBlock];
        const int64_t block = ggml_blck_size(term.type);
        const int64_t first = column / block * block;
        const int64_t n = round_up(end_column - first, block);
        const size_t n_bytes = ggml_row_size(term.type, n);
        const int64_t stride = panel_stride(depth);
        for (int64_t pair = 0; pair < tile_count(depth) * kTilePairs; ++pair) {
            for (int64_t i = 0; i < 2; ++i) {
                if (2 * pair + i >= depth) {
                    std::fill(rows[i], rows[i] + n, Bf16{0});
                    continue;
                }
                const auto * from = static_cast<const char *>(term.w) +
                                    static_cast<size_t>(k + 2 * pair + i) * term.row_bytes +
                                    ggml_row_size(term.type, first);
                bring_near(from + kRowsAhead * term.row_bytes, n_bytes);
                unpack_bf16(term.type, from, n, rows[i], kTileDepth);
            }
            Bf16 * to = weights + pair / kTilePairs * kTileValues + pair % kTilePairs * kTileDepth;
            for (int64_t c = column - first; c < end_column - first; c += kSide, to += 2 * stride) {
                interleave(rows[0] + c, rows[1] + c, to, to + stride);
            }
        }
    }
};

// Scratch of a thread.
struct Scratch {
    alignas(64) Bf16 weights[kDepth * kColumns];
    alignas(64) Bf16 more[kMoreDepth * kColumns];
    alignas(64) float sums[kColumns * kTokens];
};

Scratch & scratch() {
    thread_local HugePages<Scratch> buffers;
    return *buffers;
}

int panels_of(int64_t n) {
    return n > kTileRows ? 2 : 1;
}

// A block of sums to its place in the result [n_rows, n_cols], added where `accumulate`.
void store_block(const float * sums, int64_t n_rows, int64_t n_cols, float * result, int64_t stride, bool accumulate) {
    if (n_cols == kSide) {
        for (int64_t i = 0; i < n_rows; ++i, sums += kSide, result += stride) {
            for (int64_t j = 0; j < kSide; ++j) {
                result[j] = accumulate ? result[j] + sums[j] : sums[j];
            }
        }
        return;
    }
    for (int64_t i = 0; i < n_rows; ++i, sums += kSide, result += stride) {
        for (int64_t j = 0; j < n_cols; ++j) {
            result[j] = accumulate ? result[j] + sums[j] : sums[j];
        }
    }
}

// The sums of a stage to the result, some rows of it at a time.
template <bool transposed>
void store(const Stage & stage, const float * sums, float * result, int64_t stride, bool accumulate,
           const int32_t * rows) {
    alignas(64) float block_rows[kBlockSums];
    for (int64_t token = stage.token; token < stage.end_token; token += kSide) {
        const int64_t n = std::min(kSide, stage.end_token - token);
        for (int64_t column = stage.column; column < stage.end_column; column += kSide) {
            const int64_t n_columns = std::min(kSide, stage.end_column - column);
            const int64_t block =
                (column - stage.column) / kSide * stage.token_blocks() + (token - stage.token) / kSide;
            if (rows != nullptr) {
                const float * from = sums + block * kBlockSums;
                if (transposed) {
                    store_transposed(from, n_columns, n, block_rows, kSide, false);
                    from = block_rows;
                }
                for (int64_t i = 0; i < n; ++i) {
                    store_block(from + i * kSide, 1, n_columns, result + rows[token + i] * stride + column, stride,
                                accumulate);
                }
                continue;
            }
            float * place = result + token * stride + column;
            if (transposed) {
                store_transposed(sums + block * kBlockSums, n_columns, n, place, stride, accumulate);
            } else {
                store_block(sums + block * kBlockSums, n, n_columns, place, stride, accumulate);
            }
        }
    }
}

// The stationary operand, the weights, is A in the forward product, whose sums are then outputs times tokens, and B in
// that of the gradient.
template <class Unpacker>
void multiply(const Bf16Term * terms, int n_terms, int64_t n_tokens, float * result, int64_t stride, bool accumulate,
              const Range & tokens, const Range & columns, const int32_t * rows) {
    constexpr bool kWeightsAreA = std::is_same_v<Unpacker, OutputUnpacker>;
    const TileSession session(tile_unit());
    Scratch & buffers = scratch();
    const int64_t n_panels = bf16_panel_count(n_tokens);
    // of some columns and tokens of a term, `depth` of the sum from k on
    const auto operands = [&](int term, int64_t k, int64_t depth, const Bf16 * weights, int64_t column, int64_t token) {
        const int64_t panel = panel_stride(depth);
        const Bf16 * w = weights + column / kTileRows * panel;
        const Bf16 * x =
            aligned(terms[term].packed) + n_panels * tile_count(k) * kTileValues + token / kTileRows * panel;
        return TileTerm{tile_count(depth), kWeightsAreA ? w : x, panel, kWeightsAreA ? x : w, panel};
    };
    for (Stages stages(terms, n_terms, tokens, columns); !stages.done(); stages.advance()) {
        const Stage & stage = stages.stage();
        Unpacker::unpack(terms[stage.term], stage.k, stage.depth, stage.column, stage.end_column, buffers.weights);
        if (stage.more > 0) {
            Unpacker::unpack(terms[stage.term + 1], 0, stage.more, stage.column, stage.end_column, buffers.more);
        }
        float * sums = buffers.sums;
        for (int64_t column = stage.column; column < stage.end_column; column += kSide) {
            const int column_panels = panels_of(stage.end_column - column);
            for (int64_t token = stage.token; token < stage.end_token; token += kSide, sums += kBlockSums) {
                const int token_panels = panels_of(stage.end_token - token);
                TileProduct product;
                product.term =
                    operands(stage.term, stage.k, stage.depth, buffers.weights, column - stage.column, token);
                if (stage.more > 0) {
                    product.more = operands(stage.term + 1, 0, stage.more, buffers.more, column - stage.column, token);
                }
                product.c = sums;
                product.c_stride = kSide;
                product.a_panels = kWeightsAreA ? column_panels : token_panels;
                product.b_panels = kWeightsAreA ? token_panels : column_panels;
                product.accumulate = !stage.first;
                product.streamed = kWeightsAreA ? Streamed::b : Streamed::a;
                product.next_c = sums + kBlockSums;
                session.multiply(product);
            }
        }
        if (stage.last) {
            store<kWeightsAreA>(stage, buffers.sums, result, stride, accumulate, rows);
        }
    }
}

}  // namespace

bool bf16_product_fast() {
    return tile_unit().fast;
}

int64_t bf16_panel_count(int64_t n_tokens) {
    return (n_tokens + kTileRows - 1) / kTileRows;
}

size_t bf16_panel_bytes(int64_t n) {
    return static_cast<size_t>(tile_count(n) * kTileValues) * sizeof(Bf16);
}

void bf16_pack_inputs(const float * x, int64_t x_row_stride, int64_t n, int64_t n_tokens, float scale, void * packed,
                      int64_t first, int64_t end) {
    bf16_pack_input_rows(x, x_row_stride, nullptr, n, n_tokens, scale, packed, first, end);
}

void bf16_pack_input_rows(const float * x, int64_t x_row_stride, const int32_t * rows, int64_t n, int64_t n_tokens,
                          float scale, void * packed, int64_t first, int64_t end) {
    pack(x, x_row_stride, n, n_tokens, scale, packed, first, end, rows, pack_columns);
}

void bf16_pack_gradients(const float * dy, int64_t dy_row_stride, int64_t n, int64_t n_tokens, float scale,
                         void * packed, int64_t first, int64_t end) {
    bf16_pack_gradient_rows(dy, dy_row_stride, nullptr, n, n_tokens, scale, packed, first, end);
}

void bf16_pack_gradient_rows(const float * dy, int64_t dy_row_stride, const int32_t * rows, int64_t n, int64_t n_tokens,
                             float scale, void * packed, int64_t first, int64_t end) {
    pack(dy, dy_row_stride, n, n_tokens, scale, packed, first, end, rows, pack_rows);
}

Bf16Blocks bf16_blocks(int64_t n_tokens, int64_t n_columns, int nth) {
    // as many for every thread; narrow results are divided by tokens as well
    const int64_t fewest = round_up((n_columns + kColumns - 1) / kColumns, nth);
    const int64_t columns = std::max(kSide, round_up((n_columns + fewest - 1) / fewest, kSide));
    const int64_t n_blocks = (n_columns + columns - 1) / columns;
    const int64_t wanted = n_blocks >= nth ? 1 : (nth + n_blocks - 1) / n_blocks;
    return {std::max(kSide, round_up((n_tokens + wanted - 1) / wanted, kSide)), columns};
}

void bf16_forward(const Bf16Term * terms, int n_terms, int64_t n_tokens, float * y, int64_t y_row_stride,
                  bool accumulate, const Range & tokens, const Range & columns) {
    bf16_forward_rows(terms, n_terms, n_tokens, y, y_row_stride, nullptr, accumulate, tokens, columns);
}

void bf16_forward_rows(const Bf16Term * terms, int n_terms, int64_t n_tokens, float * y, int64_t y_row_stride,
                       const int32_t * rows, bool accumulate, const Range & tokens, const Range & columns) {
    multiply<OutputUnpacker>(terms, n_terms, n_tokens, y, y_row_stride, accumulate, tokens, columns, rows);
}

void bf16_input_gradient(const Bf16Term * terms, int n_terms, int64_t n_tokens, float * dx, int64_t dx_row_stride,
                         bool accumulate, const Range & tokens, const Range & columns) {
    bf16_input_gradient_rows(terms, n_terms, n_tokens, dx, dx_row_stride, nullptr, accumulate, tokens, columns);
}

void bf16_input_gradient_rows(const Bf16Term * terms, int n_terms, int64_t n_tokens, float * dx, int64_t dx_row_stride,
                              const int32_t * rows, bool accumulate, const Range & tokens, const Range & columns) {
    multiply<InputUnpacker>(terms, n_terms, n_tokens, dx, dx_row_stride, accumulate, tokens, columns, rows);
}

}  // namespace ggtune::kernels
