#include "kernels/expert_product.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/bf16_product.h"
#include "kernels/dequantize.h"
#include "kernels/gemm.h"
#include "kernels/int16_gradient.h"
#include "kernels/int8_product.h"
#include "kernels/reduce.h"
#include "kernels/weight_product.h"

namespace ggtune::kernels {
namespace {

using detail::round_up;

// Columns of a unit: at most so many, since the tiles of a kernel are no wider (float32, int16) or since that many are
// enough for what is done once for each unit to be cheap (int8).
constexpr int64_t kMostFloatColumns = 512;
constexpr int64_t kMostInt8Columns = 512;
constexpr int64_t kMostInt16Columns = 1024;
constexpr int64_t kMostBf16Columns = 512;
// Multiples of this where there are enough of them: of the blocks of a weight none is unpacked twice.
constexpr int64_t kColumnStep = 256;
constexpr int64_t kSmallColumnStep = 32;

// Rows are gathered until so many floats are together; more rows share the weights that are unpacked for them.
constexpr int64_t kMostGathered = 2 << 20;
constexpr int64_t kMostRows = 1008;
constexpr int64_t kLeastRows = 96;

// Units enough for the threads, each of one of n_parts independent results; a single result is cut as seldom as it can
// be, since each of its units reads all rows.
ExpertUnits divided(int64_t n_parts, int64_t n_columns, int64_t most_columns, int n_threads) {
    const int64_t wanted = n_parts == 1 ? n_threads : (2 * n_threads + n_parts - 1) / n_parts;
    const int64_t width = (n_columns + wanted - 1) / wanted;
    int64_t columns = std::min(most_columns, round_up(width, kColumnStep));
    if ((n_columns + columns - 1) / columns * n_parts < n_threads) {
        columns = round_up(width, kSmallColumnStep);
    }
    return {n_parts * ((n_columns + columns - 1) / columns), columns};
}

// Unit by unit: work(expert, columns), the experts after each other for all columns.
template <class Work>
void for_units(const Range & units, int64_t n_columns, int64_t unit_columns, Work && work) {
    const int64_t n_tiles = (n_columns + unit_columns - 1) / unit_columns;
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
        const int64_t begin = unit % n_tiles * unit_columns;
        work(unit / n_tiles, Range{begin, std::min(begin + unit_columns, n_columns)});
    }
}

int64_t chunk_rows(int64_t n_columns) {
    return std::clamp(kMostGathered / n_columns, kLeastRows, kMostRows);
}

// Columns [columns.begin, columns.end) of n rows, one after another.
void gather(const float * from, int64_t row_stride, const int32_t * rows, int64_t n, const Range & columns,
            std::vector<float> & to) {
    to.resize(static_cast<size_t>(n * columns.size()));
    for (int64_t i = 0; i < n; ++i) {
        std::copy_n(from + rows[i] * row_stride + columns.begin, columns.size(), to.data() + i * columns.size());
    }
}

void scatter(const std::vector<float> & from, const int32_t * rows, int64_t n, const Range & columns, float scale,
             bool accumulate, float * to, int64_t row_stride) {
    for (int64_t i = 0; i < n; ++i) {
        const float * source = from.data() + i * columns.size();
        float * target = to + rows[i] * row_stride + columns.begin;
        for (int64_t j = 0; j < columns.size(); ++j) {
            target[j] = scale * source[j] + (accumulate ? target[j] : 0.0f);
        }
    }
}

// Rows of pairs that have no expert.
void fill_lost(const ExpertRows & pairs, const int32_t * rows, const Range & columns, float * to, int64_t row_stride) {
    for (int64_t i = pairs.first[pairs.n_experts]; i < pairs.n_pairs; ++i) {
        std::fill_n(to + rows[i] * row_stride + columns.begin, columns.size(), std::numeric_limits<float>::quiet_NaN());
    }
}

// work(chunk) for the sorted pairs of an expert, so many at a time.
template <class Work>
void for_chunks(const Range & pairs, int64_t n, Work && work) {
    for (int64_t begin = pairs.begin; begin < pairs.end; begin += n) {
        work(Range{begin, std::min(begin + n, pairs.end)});
    }
}

// dX a unit at a time. add(expert, columns, accumulate) computes the columns that an expert gives.
template <class Add>
void input_gradient(const ExpertWeights & w, const ExpertRows & pairs, bool accumulate, float * dx,
                    const ExpertInputs & inputs, int64_t unit_columns, const Range & units, Add && add) {
    for_units(units, w.n_in, unit_columns, [&](int64_t part, const Range & columns) {
        if (!inputs.shared) {
            add(part, columns, accumulate);
        } else {
            for (int64_t t = 0; t < inputs.n_rows && !accumulate; ++t) {
                std::fill_n(dx + t * inputs.row_stride + columns.begin, columns.size(), 0.0f);
            }
            for (int64_t expert = 0; expert < w.n_experts; ++expert) {
                add(expert, columns, true);
            }
        }
        if (part == 0) {
            fill_lost(pairs, inputs.rows(pairs), columns, dx, inputs.row_stride);
        }
    });
}

int64_t n_parts(const ExpertWeights & w, const ExpertInputs & inputs) {
    return inputs.shared ? 1 : w.n_experts;
}

// What all rows of a kind are quantized or packed to, expert by expert: in so many blocks of an expert's rows.
using CountBlocks = int64_t (*)(int64_t n_rows);

int64_t blocks_of(const ExpertRows & pairs, int64_t expert, CountBlocks count) {
    return count(pairs.of(expert).size());
}

// Blocks of the experts before one, which are asked for in ascending order.
class BlocksBefore {
  public:
    BlocksBefore(const ExpertRows & pairs, CountBlocks count) : pairs_(pairs), count_(count) {}

    int64_t operator()(int64_t expert) {
        for (; expert_ < expert; ++expert_) {
            sum_ += blocks_of(pairs_, expert_, count_);
        }
        return sum_;
    }

  private:
    const ExpertRows & pairs_;
    const CountBlocks count_;
    int64_t expert_ = 0, sum_ = 0;
};

// work(expert, blocks, first) for blocks [units.begin, units.end) of all: `blocks` among those of the expert, whose
// first one is `first` of all.
template <class Work>
void for_blocks(const ExpertRows & pairs, CountBlocks count, const Range & units, Work && work) {
    int64_t first = 0;
    for (int64_t expert = 0; expert < pairs.n_experts && first < units.end; ++expert) {
        const int64_t n = blocks_of(pairs, expert, count);
        const Range blocks = {std::max<int64_t>(units.begin - first, 0), std::min(units.end - first, n)};
        if (blocks.begin < blocks.end) {
            work(expert, blocks, first);
        }
        first += n;
    }
}

int64_t all_blocks(const ExpertRows & pairs, CountBlocks count) {
    return BlocksBefore(pairs, count)(pairs.n_experts);
}

// One more panel than there are leaves room for it.
template <class Byte>
Byte * on_cache_line(Byte * packed) {
    constexpr uintptr_t kLine = 64;
    return packed + (kLine - reinterpret_cast<uintptr_t>(packed) % kLine) % kLine;
}

constexpr int64_t kWeightGradientColumns = 512;

int64_t weight_gradient_tiles(const ExpertShape & shape) {
    return (std::max(shape.n_in, shape.n_out) + kWeightGradientColumns - 1) / kWeightGradientColumns;
}

}  // namespace

int64_t sorted_pairs_size(int64_t n_experts, int64_t n_pairs) {
    return n_experts + 1 + 2 * n_pairs;
}

void sort_pairs(const int32_t * ids, int64_t k_stride, int64_t t_stride, int64_t n_used, int64_t n_tokens,
                int64_t n_experts, int32_t * sorted) {
    const auto expert = [&](int64_t k, int64_t t) {
        const int32_t id = ids[k * k_stride + t * t_stride];
        return static_cast<size_t>(id >= 0 && id < n_experts ? id : n_experts);
    };
    std::vector<int32_t> next(static_cast<size_t>(n_experts + 2), 0);
    for (int64_t t = 0; t < n_tokens; ++t) {
        for (int64_t k = 0; k < n_used; ++k) {
            next[expert(k, t) + 1]++;
        }
    }
    for (size_t e = 1; e < next.size(); ++e) {
        next[e] += next[e - 1];
    }
    std::copy_n(next.begin(), n_experts + 1, sorted);
    int32_t * pairs = sorted + n_experts + 1;
    int32_t * tokens = pairs + n_used * n_tokens;
    for (int64_t t = 0; t < n_tokens; ++t) {
        for (int64_t k = 0; k < n_used; ++k) {
            const int32_t place = next[expert(k, t)]++;
            pairs[place] = static_cast<int32_t>(t * n_used + k);
            tokens[place] = static_cast<int32_t>(t);
        }
    }
}

ExpertRows expert_rows(const int32_t * sorted, int64_t n_experts, int64_t n_pairs) {
    const int32_t * pairs = sorted + n_experts + 1;
    return {n_experts, n_pairs, sorted, pairs, pairs + n_pairs};
}

ExpertUnits expert_forward_units(const ExpertWeights & w, int n_threads) {
    return divided(w.n_experts, w.n_out, kMostFloatColumns, n_threads);
}

void expert_forward(const ExpertWeights & w, const ExpertRows & pairs, const float * x, const ExpertInputs & inputs,
                    float scale, bool accumulate, float * y, int64_t y_row_stride, int64_t unit_columns,
                    const Range & units) {
    thread_local std::vector<float> x_rows, y_rows;
    for_units(units, w.n_out, unit_columns, [&](int64_t expert, const Range & columns) {
        for_chunks(pairs.of(expert), chunk_rows(w.n_in), [&](const Range & chunk) {
            gather(x, inputs.row_stride, inputs.rows(pairs) + chunk.begin, chunk.size(), {0, w.n_in}, x_rows);
            y_rows.resize(static_cast<size_t>(chunk.size() * columns.size()));
            weight_forward(w.type, w.row(expert, columns.begin), w.row_bytes, w.n_in, columns.size(), x_rows.data(),
                           w.n_in, chunk.size(), y_rows.data(), columns.size(), false, 0, 1);
            scatter(y_rows, pairs.pairs + chunk.begin, chunk.size(), columns, scale, accumulate, y, y_row_stride);
        });
        if (expert == 0) {
            fill_lost(pairs, pairs.pairs, columns, y, y_row_stride);
        }
    });
}

void expert_forward_reference(const ExpertWeights & w, const ExpertRows & pairs, const float * x,
                              const ExpertInputs & inputs, float scale, bool accumulate, float * y,
                              int64_t y_row_stride) {
    std::vector<float> row(static_cast<size_t>(w.n_in));
    for (int64_t expert = 0; expert < w.n_experts; ++expert) {
        for (int64_t o = 0; o < w.n_out; ++o) {
            dequantize_row(w.type, w.row(expert, o), row.data(), w.n_in);
            for (int64_t i = pairs.of(expert).begin; i < pairs.of(expert).end; ++i) {
                const float * x_row = x + inputs.rows(pairs)[i] * inputs.row_stride;
                double sum = 0.0;
                for (int64_t j = 0; j < w.n_in; ++j) {
                    sum += static_cast<double>(x_row[j]) * row[static_cast<size_t>(j)];
                }
                float & output = y[pairs.pairs[i] * y_row_stride + o];
                output = static_cast<float>(scale * sum + (accumulate ? output : 0.0f));
            }
        }
    }
    fill_lost(pairs, pairs.pairs, {0, w.n_out}, y, y_row_stride);
}

ExpertUnits expert_input_gradient_units(const ExpertWeights & w, const ExpertInputs & inputs, int n_threads) {
    return divided(n_parts(w, inputs), w.n_in, kMostFloatColumns, n_threads);
}

void expert_input_gradient(const ExpertWeights & w, const ExpertRows & pairs, const float * dy, int64_t dy_row_stride,
                           float scale, bool accumulate, float * dx, const ExpertInputs & inputs, int64_t unit_columns,
                           const Range & units) {
    thread_local std::vector<float> dy_rows, dx_rows;
    const auto add = [&](int64_t expert, const Range & columns, bool to_dx) {
        // a unit may begin and end inside a block of the weights
        const int64_t block = ggml_blck_size(w.type);
        const Range whole = {columns.begin / block * block, round_up(columns.end, block)};
        const char * first = w.row(expert, 0) + static_cast<size_t>(whole.begin / block) * ggml_type_size(w.type);
        for_chunks(pairs.of(expert), chunk_rows(w.n_out), [&](const Range & chunk) {
            gather(dy, dy_row_stride, pairs.pairs + chunk.begin, chunk.size(), {0, w.n_out}, dy_rows);
            dx_rows.resize(static_cast<size_t>(chunk.size() * whole.size()));
            weight_input_gradient(w.type, first, w.row_bytes, whole.size(), w.n_out, dy_rows.data(), w.n_out,
                                  chunk.size(), dx_rows.data(), whole.size(), false, 0, 1);
            for (int64_t i = 0; i < chunk.size() && whole.size() > columns.size(); ++i) {
                std::copy_n(dx_rows.begin() + i * whole.size() + columns.begin - whole.begin, columns.size(),
                            dx_rows.begin() + i * columns.size());
            }
            scatter(dx_rows, inputs.rows(pairs) + chunk.begin, chunk.size(), columns, scale, to_dx, dx,
                    inputs.row_stride);
        });
    };
    input_gradient(w, pairs, accumulate, dx, inputs, unit_columns, units, add);
}

void expert_input_gradient_reference(const ExpertWeights & w, const ExpertRows & pairs, const float * dy,
                                     int64_t dy_row_stride, float scale, bool accumulate, float * dx,
                                     const ExpertInputs & inputs) {
    std::vector<float> row(static_cast<size_t>(w.n_in));
    for (int64_t t = 0; t < inputs.n_rows && !accumulate; ++t) {
        std::fill_n(dx + t * inputs.row_stride, w.n_in, 0.0f);
    }
    for (int64_t expert = 0; expert < w.n_experts; ++expert) {
        for (int64_t o = 0; o < w.n_out; ++o) {
            dequantize_row(w.type, w.row(expert, o), row.data(), w.n_in);
            for (int64_t i = pairs.of(expert).begin; i < pairs.of(expert).end; ++i) {
                const float factor = scale * dy[pairs.pairs[i] * dy_row_stride + o];
                for (int64_t j = 0; j < w.n_in; ++j) {
                    dx[inputs.rows(pairs)[i] * inputs.row_stride + j] += factor * row[static_cast<size_t>(j)];
                }
            }
        }
    }
    fill_lost(pairs, inputs.rows(pairs), {0, w.n_in}, dx, inputs.row_stride);
}

int64_t expert_int8_blocks(int64_t n_experts, int64_t n_pairs) {
    return int8_token_blocks(n_pairs) + n_experts;
}

int64_t expert_int8_quantize_units(const ExpertRows & pairs) {
    return all_blocks(pairs, int8_token_blocks);
}

void expert_int8_quantize(const ExpertRows & pairs, const float * x, const ExpertInputs & inputs, int64_t n_in,
                          int64_t activation_block, void * quantized, const Range & units) {
    const size_t block_bytes = int8_token_block_bytes(n_in, activation_block);
    for_blocks(pairs, int8_token_blocks, units, [&](int64_t expert, const Range & blocks, int64_t first) {
        int8_quantize_rows(x, inputs.row_stride, inputs.rows(pairs) + pairs.first[expert], n_in, activation_block,
                           pairs.of(expert).size(),
                           static_cast<char *>(quantized) + static_cast<size_t>(first) * block_bytes, blocks);
    });
}

ExpertUnits expert_int8_forward_units(const ExpertWeights & w, int n_threads) {
    return divided(w.n_experts, w.n_out, kMostInt8Columns, n_threads);
}

void expert_int8_forward(const ExpertWeights & w, const ExpertRows & pairs, const void * quantized, float * y,
                         int64_t y_row_stride, int64_t unit_columns, const Range & units) {
    const size_t block_bytes = int8_token_block_bytes(w.n_in, int8_activation_block(w.type));
    BlocksBefore blocks_before(pairs, int8_token_blocks);
    for_units(units, w.n_out, unit_columns, [&](int64_t expert, const Range & columns) {
        int8_forward_rows(
            w.type, w.row(expert, 0), w.row_bytes, w.n_in,
            static_cast<const char *>(quantized) + static_cast<size_t>(blocks_before(expert)) * block_bytes,
            pairs.of(expert).size(), y, y_row_stride, pairs.pairs + pairs.first[expert], columns);
        if (expert == 0) {
            fill_lost(pairs, pairs.pairs, columns, y, y_row_stride);
        }
    });
}

ExpertUnits expert_int16_input_gradient_units(const ExpertWeights & w, const ExpertInputs & inputs, int n_threads) {
    return divided(n_parts(w, inputs), w.n_in, kMostInt16Columns, n_threads);
}

void expert_int16_input_gradient(const ExpertWeights & w, const ExpertRows & pairs, const float * dy,
                                 int64_t dy_row_stride, bool accumulate, float * dx, const ExpertInputs & inputs,
                                 int64_t unit_columns, const Range & units) {
    const auto add = [&](int64_t expert, const Range & columns, bool to_dx) {
        const Range sorted = pairs.of(expert);
        int16_input_gradient_rows(w.type, w.row(expert, 0), w.row_bytes, w.n_out, dy, dy_row_stride,
                                  pairs.pairs + sorted.begin, sorted.size(), dx, inputs.row_stride,
                                  inputs.rows(pairs) + sorted.begin, to_dx, columns);
    };
    input_gradient(w, pairs, accumulate, dx, inputs, unit_columns, units, add);
}

int64_t expert_bf16_panels(int64_t n_experts, int64_t n_pairs) {
    return bf16_panel_count(n_pairs) + n_experts + 1;
}

int64_t expert_bf16_pack_units(const ExpertRows & pairs) {
    return all_blocks(pairs, bf16_panel_count);
}

void expert_bf16_pack_inputs(const ExpertRows & pairs, const float * x, const ExpertInputs & inputs, int64_t n_in,
                             void * packed, const Range & units) {
    char * panels = on_cache_line(static_cast<char *>(packed));
    for_blocks(pairs, bf16_panel_count, units, [&](int64_t expert, const Range & blocks, int64_t first) {
        bf16_pack_input_rows(x, inputs.row_stride, inputs.rows(pairs) + pairs.first[expert], n_in,
                             pairs.of(expert).size(), 1.0f,
                             panels + static_cast<size_t>(first) * bf16_panel_bytes(n_in), blocks.begin, blocks.end);
    });
}

void expert_bf16_pack_gradients(const ExpertRows & pairs, const float * dy, int64_t dy_row_stride, int64_t n_out,
                                void * packed, const Range & units) {
    char * panels = on_cache_line(static_cast<char *>(packed));
    for_blocks(pairs, bf16_panel_count, units, [&](int64_t expert, const Range & blocks, int64_t first) {
        bf16_pack_gradient_rows(dy, dy_row_stride, pairs.pairs + pairs.first[expert], n_out, pairs.of(expert).size(),
                                1.0f, panels + static_cast<size_t>(first) * bf16_panel_bytes(n_out), blocks.begin,
                                blocks.end);
    });
}

ExpertUnits expert_bf16_forward_units(const ExpertWeights & w, int n_threads) {
    return divided(w.n_experts, w.n_out, kMostBf16Columns, n_threads);
}

void expert_bf16_forward(const ExpertWeights & w, const ExpertRows & pairs, const void * packed, float * y,
                         int64_t y_row_stride, int64_t unit_columns, const Range & units) {
    const char * panels = on_cache_line(static_cast<const char *>(packed));
    BlocksBefore blocks_before(pairs, bf16_panel_count);
    for_units(units, w.n_out, unit_columns, [&](int64_t expert, const Range & columns) {
        const int64_t n = pairs.of(expert).size();
        const Bf16Term term = {w.type, w.row(expert, 0), w.row_bytes, w.n_in,
                               panels + static_cast<size_t>(blocks_before(expert)) * bf16_panel_bytes(w.n_in)};
        bf16_forward_rows(&term, 1, n, y, y_row_stride, pairs.pairs + pairs.first[expert], false, {0, n}, columns);
        if (expert == 0) {
            fill_lost(pairs, pairs.pairs, columns, y, y_row_stride);
        }
    });
}

ExpertUnits expert_bf16_input_gradient_units(const ExpertWeights & w, const ExpertInputs & inputs, int n_threads) {
    return divided(n_parts(w, inputs), w.n_in, kMostBf16Columns, n_threads);
}

void expert_bf16_input_gradient(const ExpertWeights & w, const ExpertRows & pairs, const void * packed, bool accumulate,
                                float * dx, const ExpertInputs & inputs, int64_t unit_columns, const Range & units) {
    const char * panels = on_cache_line(static_cast<const char *>(packed));
    std::vector<int64_t> first(static_cast<size_t>(w.n_experts));
    BlocksBefore blocks_before(pairs, bf16_panel_count);
    for (int64_t expert = 0; expert < w.n_experts; ++expert) {
        first[static_cast<size_t>(expert)] = blocks_before(expert);
    }
    const auto add = [&](int64_t expert, const Range & columns, bool to_dx) {
        const int64_t n = pairs.of(expert).size();
        const Bf16Term term = {
            w.type, w.row(expert, 0), w.row_bytes, w.n_out,
            panels + static_cast<size_t>(first[static_cast<size_t>(expert)]) * bf16_panel_bytes(w.n_out)};
        bf16_input_gradient_rows(&term, 1, n, dx, inputs.row_stride, inputs.rows(pairs) + pairs.first[expert], to_dx,
                                 {0, n}, columns);
    };
    input_gradient(w, pairs, accumulate, dx, inputs, unit_columns, units, add);
}

int64_t expert_weight_gradient_units(const ExpertShape & shape) {
    return shape.n_experts * weight_gradient_tiles(shape);
}

void expert_weight_gradient(const ExpertShape & shape, const ExpertRows & pairs, const float * x,
                            const ExpertInputs & inputs, const float * dy, int64_t dy_row_stride, float scale,
                            bool accumulate, float * dw, const Range & units) {
    thread_local std::vector<float> x_rows, dy_rows;
    constexpr int64_t kRows = 240;
    const bool cut_inputs = shape.n_in >= shape.n_out;
    for_units(units, std::max(shape.n_in, shape.n_out), kWeightGradientColumns, [&](int64_t expert, const Range & cut) {
        const Range in = cut_inputs ? cut : Range{0, shape.n_in};
        const Range out = cut_inputs ? Range{0, shape.n_out} : cut;
        float * target = dw + (expert * shape.n_out + out.begin) * shape.n_in + in.begin;
        float beta = accumulate ? 1.0f : 0.0f;
        const auto add = [&](int64_t n) {
            gemm(out.size(), in.size(), n, {dy_rows.data(), 1, out.size()}, {x_rows.data(), in.size(), 1}, scale, beta,
                 target, shape.n_in, 1, 0, 1);
            beta = 1.0f;
        };
        if (pairs.of(expert).size() == 0) {
            add(0);
        }
        for_chunks(pairs.of(expert), kRows, [&](const Range & chunk) {
            gather(x, inputs.row_stride, inputs.rows(pairs) + chunk.begin, chunk.size(), in, x_rows);
            gather(dy, dy_row_stride, pairs.pairs + chunk.begin, chunk.size(), out, dy_rows);
            add(chunk.size());
        });
    });
}

void expert_weight_gradient_reference(const ExpertShape & shape, const ExpertRows & pairs, const float * x,
                                      const ExpertInputs & inputs, const float * dy, int64_t dy_row_stride, float scale,
                                      bool accumulate, float * dw) {
    for (int64_t expert = 0; expert < shape.n_experts; ++expert) {
        for (int64_t o = 0; o < shape.n_out; ++o) {
            for (int64_t j = 0; j < shape.n_in; ++j) {
                double sum = 0.0;
                for (int64_t i = pairs.of(expert).begin; i < pairs.of(expert).end; ++i) {
                    sum += static_cast<double>(dy[pairs.pairs[i] * dy_row_stride + o]) *
                           x[inputs.rows(pairs)[i] * inputs.row_stride + j];
                }
                float & element = dw[(expert * shape.n_out + o) * shape.n_in + j];
                element = static_cast<float>(scale * sum + (accumulate ? element : 0.0f));
            }
        }
    }
}

void expert_sum(const float * x, const float * weights, int64_t n_used, int64_t n, float * y, const Range & tokens) {
    for (int64_t t = tokens.begin; t < tokens.end; ++t) {
        float * sum = y + t * n;
        for (int64_t k = 0; k < n_used; ++k) {
            const float * term = x + (t * n_used + k) * n;
            const float weight = weights != nullptr ? weights[t * n_used + k] : 1.0f;
            for (int64_t i = 0; i < n; ++i) {
                sum[i] = weight * term[i] + (k > 0 ? sum[i] : 0.0f);
            }
        }
    }
}

void expert_sum_dx(const float * weights, const float * dy, int64_t dy_row_stride, int64_t n_used, int64_t n,
                   float * dx, const Range & tokens) {
    for (int64_t t = tokens.begin; t < tokens.end; ++t) {
        for (int64_t k = 0; k < n_used; ++k) {
            const float weight = weights != nullptr ? weights[t * n_used + k] : 1.0f;
            for (int64_t i = 0; i < n; ++i) {
                dx[(t * n_used + k) * n + i] = weight * dy[t * dy_row_stride + i];
            }
        }
    }
}

void expert_sum_dweights(const float * x, const float * dy, int64_t dy_row_stride, int64_t n_used, int64_t n,
                         float * dweights, const Range & tokens) {
    for (int64_t t = tokens.begin; t < tokens.end; ++t) {
        for (int64_t k = 0; k < n_used; ++k) {
            dweights[t * n_used + k] =
                static_cast<float>(detail::dot(x + (t * n_used + k) * n, dy + t * dy_row_stride, n));
        }
    }
}

}  // namespace ggtune::kernels
