#include "kernels/bf16_product.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "kernels/bf16_unpack.h"
#include "kernels/huge_pages.h"
#include "kernels/tile.h"
#include "kernels/tile_pack.h"

namespace ggtune::kernels {
namespace {

using namespace detail;

// What is multiplied at a time: a side of a block of sums.
constexpr int64_t kSide = kMostPanels * kTileRows;
constexpr int64_t kBlockSums = kSide * kSide;

// Cache blocking, measured: of the sum kDepth at a time, so that the weights of kSide columns of the result (32 KiB) stay in
// the L1 cache while the tokens pass by; those of kColumns, the tokens' values and the sums stay in the L2 cache.
constexpr int64_t kDepth = 512;
constexpr int64_t kColumns = 256;
constexpr int64_t kTokens = 512;
constexpr int64_t kDepthTiles = kDepth / kTileDepth;

// Weights that are unpacked at a time, beside the products: a multiple of every type's block.
constexpr int64_t kPiece = 256;

int64_t round_up(int64_t n, int64_t unit) {
    return (n + unit - 1) / unit * unit;
}

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
          int64_t end, Pack pack_panel) {
    Bf16 * block = aligned(packed);
    for (int64_t k = 0; k < n; k += kDepth) {
        const int64_t depth = std::min(kDepth, n - k);
        const int64_t stride = panel_stride(depth);
        for (int64_t p = first; p < end; ++p) {
            pack_panel(x + p * kTileRows * x_row_stride + k, x_row_stride,
                       std::min(kTileRows, n_tokens - p * kTileRows), depth, scale, block + p * stride);
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

    int64_t column_blocks() const { return (end_column - column + kSide - 1) / kSide; }
    int64_t token_blocks() const { return (end_token - token + kSide - 1) / kSide; }
    int64_t weight_stride() const { return tile_count(depth) * kTileValues; }
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
        } else if (stage_.term + 1 < n_terms_) {
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
        stage_ = {column,
                  std::min(columns_.end, column + kColumns),
                  token,
                  std::min(tokens_.end, token + token_step_),
                  term,
                  k,
                  depth,
                  term == 0 && k == 0,
                  term + 1 == n_terms_ && k + depth == whole};
    }

    const Bf16Term * const terms_;
    const int n_terms_;
    const Range tokens_, columns_;
    int64_t token_step_;
    Stage stage_;
    bool finished_ = false;
};

// Unpacks the weights of a stage piece by piece, so that it can be done beside the products of the stage before.
class Unpacker {
  public:
    // pieces [begin, end) of n_pieces()
    virtual void unpack(int64_t begin, int64_t end) = 0;
    virtual ~Unpacker() = default;

    int64_t n_pieces() const { return n_pieces_; }

  protected:
    int64_t n_pieces_ = 0;
};

// Rows lie too far apart for the CPU to foresee them.
constexpr int64_t kRowsAhead = 4;

inline void bring_near(const char * data, size_t n_bytes) {
    constexpr size_t kLine = 64;
    for (size_t i = 0; i < n_bytes; i += kLine) {
        __builtin_prefetch(data + i);
    }
}

// Rows of W are rows of A: outputs times inputs.
class OutputUnpacker final : public Unpacker {
  public:
    void start(const Bf16Term & term, const Stage & stage, Bf16 * weights) {
        term_ = &term;
        stage_ = &stage;
        weights_ = weights;
        per_row_ = (stage.depth + kPiece - 1) / kPiece;
        n_pieces_ = (stage.end_column - stage.column) * per_row_;
    }

    void unpack(int64_t begin, int64_t end) override {
        for (int64_t piece = begin; piece < end; ++piece) {
            const int64_t row = piece / per_row_;
            const int64_t k = piece % per_row_ * kPiece;
            const auto * from = static_cast<const char *>(term_->w) +
                                static_cast<size_t>(stage_->column + row) * term_->row_bytes +
                                ggml_row_size(term_->type, stage_->k + k);
            bring_near(from + kRowsAhead * term_->row_bytes, ggml_row_size(term_->type, kPiece));
            unpack_bf16(term_->type, from, std::min(kPiece, stage_->depth - k),
                        weights_ + row / kTileRows * stage_->weight_stride() + k / kTileDepth * kTileValues +
                            row % kTileRows * kTileDepth,
                        kTileValues);
        }
    }

  private:
    const Bf16Term * term_ = nullptr;
    const Stage * stage_ = nullptr;
    Bf16 * weights_ = nullptr;
    int64_t per_row_ = 0;
};

// Pairs of rows of W are pairs of rows of B: outputs times inputs.
class InputUnpacker final : public Unpacker {
  public:
    void start(const Bf16Term & term, const Stage & stage, Bf16 * weights) {
        term_ = &term;
        stage_ = &stage;
        weights_ = weights;
        n_pieces_ = tile_count(stage.depth) * kTilePairs;
        // the columns may begin inside a block of W
        const int64_t block = ggml_blck_size(term.type);
        from_ = stage.column / block * block;
        n_ = round_up(stage.end_column - from_, block);
    }

    void unpack(int64_t begin, int64_t end) override {
        for (int64_t pair = begin; pair < end; ++pair) {
            for (int64_t i = 0; i < 2; ++i) {
                const int64_t row = 2 * pair + i;
                if (row >= stage_->depth) {
                    std::fill(rows_[i], rows_[i] + n_, Bf16{0});
                    continue;
                }
                const auto * from =
                    static_cast<const char *>(term_->w) + static_cast<size_t>(stage_->k + row) * term_->row_bytes;
                from += ggml_row_size(term_->type, from_);
                bring_near(from + kRowsAhead * term_->row_bytes, ggml_row_size(term_->type, n_));
                unpack_bf16(term_->type, from, n_, rows_[i], kTileDepth);
            }
            Bf16 * to = weights_ + pair * kTileDepth;
            const int64_t stride = stage_->weight_stride();
            for (int64_t column = stage_->column; column < stage_->end_column; column += kSide, to += 2 * stride) {
                interleave(rows_[0] + (column - from_), rows_[1] + (column - from_), to, to + stride);
            }
        }
    }

  private:
    const Bf16Term * term_ = nullptr;
    const Stage * stage_ = nullptr;
    Bf16 * weights_ = nullptr;
    int64_t from_ = 0;
    int64_t n_ = 0;
    // blocks of up to 256 before and behind the columns
    alignas(64) Bf16 rows_[2][kColumns + 2 * kPiece];
};

// Scratch of a thread.
struct Scratch {
    alignas(64) Bf16 weights[kDepth * kColumns];
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
void store(const Stage & stage, const float * sums, float * result, int64_t stride, bool accumulate) {
    for (int64_t token = stage.token; token < stage.end_token; token += kSide) {
        const int64_t n = std::min(kSide, stage.end_token - token);
        for (int64_t column = stage.column; column < stage.end_column; column += kSide) {
            const int64_t n_columns = std::min(kSide, stage.end_column - column);
            const int64_t block =
                (column - stage.column) / kSide * stage.token_blocks() + (token - stage.token) / kSide;
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
template <class StageUnpacker>
void multiply(const Bf16Term * terms, int n_terms, int64_t n_tokens, float * result, int64_t stride, bool accumulate,
              const Range & tokens, const Range & columns) {
    constexpr bool kWeightsAreA = std::is_same_v<StageUnpacker, OutputUnpacker>;
    const TileSession session(tile_unit());
    Scratch & buffers = scratch();
    StageUnpacker unpacker;
    Stages stages(terms, n_terms, tokens, columns);
    if (stages.done()) {
        return;
    }
    const int64_t n_panels = bf16_panel_count(n_tokens);
    for (; !stages.done(); stages.advance()) {
        const Stage & stage = stages.stage();
        unpacker.start(terms[stage.term], stage, buffers.weights);
        unpacker.unpack(0, unpacker.n_pieces());
        const Bf16 * packed = aligned(terms[stage.term].packed) + n_panels * tile_count(stage.k) * kTileValues;
        float * sums = buffers.sums;
        for (int64_t column = stage.column; column < stage.end_column; column += kSide) {
            const int64_t n_columns = std::min(kSide, stage.end_column - column);
            const Bf16 * w = buffers.weights + (column - stage.column) / kTileRows * stage.weight_stride();
            for (int64_t token = stage.token; token < stage.end_token; token += kSide, sums += kBlockSums) {
                const int64_t n = std::min(kSide, stage.end_token - token);
                const int64_t x_stride = panel_stride(stage.depth);
                const Bf16 * x = packed + token / kTileRows * x_stride;
                TileProduct product = {tile_count(stage.depth),
                                       kWeightsAreA ? w : x,
                                       kWeightsAreA ? stage.weight_stride() : x_stride,
                                       kWeightsAreA ? x : w,
                                       kWeightsAreA ? x_stride : stage.weight_stride(),
                                       sums,
                                       kSide,
                                       panels_of(kWeightsAreA ? n_columns : n),
                                       panels_of(kWeightsAreA ? n : n_columns),
                                       !stage.first};
                product.streamed = kWeightsAreA ? Streamed::b : Streamed::a;
                product.next_c = sums + kBlockSums;
                session.multiply(product);
            }
        }
        if (stage.last) {
            store<kWeightsAreA>(stage, buffers.sums, result, stride, accumulate);
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
    pack(x, x_row_stride, n, n_tokens, scale, packed, first, end, pack_columns);
}

void bf16_pack_gradients(const float * dy, int64_t dy_row_stride, int64_t n, int64_t n_tokens, float scale,
                         void * packed, int64_t first, int64_t end) {
    pack(dy, dy_row_stride, n, n_tokens, scale, packed, first, end, pack_rows);
}

Bf16Blocks bf16_blocks(int64_t n_tokens, int64_t n_columns, int nth) {
    // several for each thread, so that one that is held up holds up the others little; narrow results by tokens
    const int64_t columns = std::clamp(round_up((n_columns + nth - 1) / nth, kSide), kSide, kColumns);
    const int64_t n_blocks = (n_columns + columns - 1) / columns;
    const int64_t wanted = n_blocks >= nth ? 1 : (nth + n_blocks - 1) / n_blocks;
    return {std::max(kSide, round_up((n_tokens + wanted - 1) / wanted, kSide)), columns};
}

void bf16_forward(const Bf16Term * terms, int n_terms, int64_t n_tokens, float * y, int64_t y_row_stride,
                  bool accumulate, const Range & tokens, const Range & columns) {
    multiply<OutputUnpacker>(terms, n_terms, n_tokens, y, y_row_stride, accumulate, tokens, columns);
}

void bf16_input_gradient(const Bf16Term * terms, int n_terms, int64_t n_tokens, float * dx, int64_t dx_row_stride,
                         bool accumulate, const Range & tokens, const Range & columns) {
    multiply<InputUnpacker>(terms, n_terms, n_tokens, dx, dx_row_stride, accumulate, tokens, columns);
}

}  // namespace ggtune::kernels
