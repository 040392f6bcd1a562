#include "kernels/expert_product.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/gemm.h"
#include "kernels/weight_product.h"

namespace ggtune::kernels {
namespace {

// Columns of a result that are one unit of work: of an expert's, or of all experts' where they add to the same rows.
constexpr int64_t kUnitColumns = 512;
// Rows are gathered until so many floats are together; more rows share the weights that are unpacked for them.
constexpr int64_t kMostGathered = 2 << 20;
constexpr int64_t kMostRows = 1008;
constexpr int64_t kLeastRows = 96;

int64_t tile_count(int64_t n_columns) {
    return (n_columns + kUnitColumns - 1) / kUnitColumns;
}

Range tile(int64_t n_columns, int64_t index) {
    return {index * kUnitColumns, std::min((index + 1) * kUnitColumns, n_columns)};
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

void fill(float value, const int32_t * rows, int64_t n, const Range & columns, float * to, int64_t row_stride) {
    for (int64_t i = 0; i < n; ++i) {
        std::fill_n(to + rows[i] * row_stride + columns.begin, columns.size(), value);
    }
}

// Rows of pairs that have no expert.
void fill_lost(const ExpertRows & pairs, const int32_t * rows, const Range & columns, float * to, int64_t row_stride) {
    const int32_t first = pairs.first[pairs.n_experts];
    fill(std::numeric_limits<float>::quiet_NaN(), rows + first, pairs.n_pairs - first, columns, to, row_stride);
}

// work(chunk) for the sorted pairs of an expert, so many at a time.
template <class Work>
void for_chunks(const Range & pairs, int64_t n, Work && work) {
    for (int64_t begin = pairs.begin; begin < pairs.end; begin += n) {
        work(Range{begin, std::min(begin + n, pairs.end)});
    }
}

// Columns of dX, of one expert.
void add_input_gradient(const ExpertWeights & w, int64_t expert, const ExpertRows & pairs, const float * dy,
                        int64_t dy_row_stride, float scale, bool accumulate, float * dx, const ExpertInputs & inputs,
                        const Range & columns) {
    thread_local std::vector<float> dy_rows, dx_rows;
    for_chunks(pairs.of(expert), chunk_rows(w.n_out), [&](const Range & chunk) {
        gather(dy, dy_row_stride, pairs.pairs + chunk.begin, chunk.size(), {0, w.n_out}, dy_rows);
        dx_rows.resize(static_cast<size_t>(chunk.size() * columns.size()));
        const int64_t block = ggml_blck_size(w.type);
        const char * first = static_cast<const char *>(w.row(expert, 0)) +
                             static_cast<size_t>(columns.begin / block) * ggml_type_size(w.type);
        weight_input_gradient(w.type, first, w.row_bytes, columns.size(), w.n_out, dy_rows.data(), w.n_out,
                              chunk.size(), dx_rows.data(), columns.size(), false, 0, 1);
        scatter(dx_rows, inputs.rows(pairs) + chunk.begin, chunk.size(), columns, scale, accumulate, dx,
                inputs.row_stride);
    });
}

}  // namespace

int64_t sorted_pairs_size(int64_t n_experts, int64_t n_pairs) {
    return n_experts + 1 + 2 * n_pairs;
}

void sort_pairs(const int32_t * ids, int64_t k_stride, int64_t t_stride, int64_t n_used, int64_t n_tokens,
                int64_t n_experts, int32_t * sorted) {
    const auto expert = [&](int64_t k, int64_t t) {
        const int32_t id = ids[k * k_stride + t * t_stride];
        return id >= 0 && id < n_experts ? id : n_experts;
    };
    std::vector<int32_t> next(static_cast<size_t>(n_experts + 2), 0);
    for (int64_t t = 0; t < n_tokens; ++t) {
        for (int64_t k = 0; k < n_used; ++k) {
            next[static_cast<size_t>(expert(k, t) + 1)]++;
        }
    }
    for (int64_t e = 0; e <= n_experts; ++e) {
        next[static_cast<size_t>(e + 1)] += next[static_cast<size_t>(e)];
    }
    std::copy_n(next.begin(), n_experts + 1, sorted);
    int32_t * pairs = sorted + n_experts + 1;
    int32_t * tokens = pairs + n_used * n_tokens;
    for (int64_t t = 0; t < n_tokens; ++t) {
        for (int64_t k = 0; k < n_used; ++k) {
            const int32_t place = next[static_cast<size_t>(expert(k, t))]++;
            pairs[place] = static_cast<int32_t>(t * n_used + k);
            tokens[place] = static_cast<int32_t>(t);
        }
    }
}

ExpertRows expert_rows(const int32_t * sorted, int64_t n_experts, int64_t n_pairs) {
    const int32_t * pairs = sorted + n_experts + 1;
    return {n_experts, n_pairs, sorted, pairs, pairs + n_pairs};
}

int64_t expert_forward_units(const ExpertWeights & w) {
    return w.n_experts * tile_count(w.n_out);
}

void expert_forward(const ExpertWeights & w, const ExpertRows & pairs, const float * x, const ExpertInputs & inputs,
                    float scale, bool accumulate, float * y, int64_t y_row_stride, const Range & units) {
    thread_local std::vector<float> x_rows, y_rows;
    const int64_t n_tiles = tile_count(w.n_out);
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
        const int64_t expert = unit / n_tiles;
        const Range columns = tile(w.n_out, unit % n_tiles);
        if (expert == 0) {
            fill_lost(pairs, pairs.pairs, columns, y, y_row_stride);
        }
        for_chunks(pairs.of(expert), chunk_rows(w.n_in), [&](const Range & chunk) {
            gather(x, inputs.row_stride, inputs.rows(pairs) + chunk.begin, chunk.size(), {0, w.n_in}, x_rows);
            y_rows.resize(static_cast<size_t>(chunk.size() * columns.size()));
            weight_forward(w.type, w.row(expert, columns.begin), w.row_bytes, w.n_in, columns.size(), x_rows.data(),
                           w.n_in, chunk.size(), y_rows.data(), columns.size(), false, 0, 1);
            scatter(y_rows, pairs.pairs + chunk.begin, chunk.size(), columns, scale, accumulate, y, y_row_stride);
        });
    }
}

int64_t expert_input_gradient_units(const ExpertWeights & w, const ExpertInputs & inputs) {
    return (inputs.shared ? 1 : w.n_experts) * tile_count(w.n_in);
}

void expert_input_gradient(const ExpertWeights & w, const ExpertRows & pairs, const float * dy, int64_t dy_row_stride,
                           float scale, bool accumulate, float * dx, const ExpertInputs & inputs, const Range & units) {
    const int64_t n_tiles = tile_count(w.n_in);
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
        const Range columns = tile(w.n_in, unit % n_tiles);
        const Range experts = inputs.shared ? Range{0, w.n_experts} : Range{unit / n_tiles, unit / n_tiles + 1};
        for (int64_t t = 0; t < inputs.n_rows && inputs.shared && !accumulate; ++t) {
            std::fill_n(dx + t * inputs.row_stride + columns.begin, columns.size(), 0.0f);
        }
        for (int64_t expert = experts.begin; expert < experts.end; ++expert) {
            add_input_gradient(w, expert, pairs, dy, dy_row_stride, scale, accumulate || inputs.shared, dx, inputs,
                               columns);
        }
        if (experts.begin == 0) {
            fill_lost(pairs, inputs.rows(pairs), columns, dx, inputs.row_stride);
        }
    }
}

int64_t expert_weight_gradient_units(const ExpertShape & shape) {
    return shape.n_experts * tile_count(std::max(shape.n_in, shape.n_out));
}

void expert_weight_gradient(const ExpertShape & shape, const ExpertRows & pairs, const float * x,
                            const ExpertInputs & inputs, const float * dy, int64_t dy_row_stride, float scale,
                            bool accumulate, float * dw, const Range & units) {
    thread_local std::vector<float> x_rows, dy_rows;
    constexpr int64_t kRows = 240;
    const bool cut_inputs = shape.n_in >= shape.n_out;
    const int64_t n_tiles = tile_count(std::max(shape.n_in, shape.n_out));
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
        const int64_t expert = unit / n_tiles;
        const Range in = cut_inputs ? tile(shape.n_in, unit % n_tiles) : Range{0, shape.n_in};
        const Range out = cut_inputs ? Range{0, shape.n_out} : tile(shape.n_out, unit % n_tiles);
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
    }
}

}  // namespace ggtune::kernels
