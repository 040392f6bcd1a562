// Checks the products of a mixture of experts against the loops that define them, and those by integers against the
// kernels for one matrix on the rows of each expert.

#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/bf16_product.h"
#include "kernels/dequantize.h"
#include "kernels/expert_product.h"
#include "kernels/int16_gradient.h"
#include "kernels/int8_product.h"

namespace {

using namespace ggtune::kernels;
using namespace ggtune::test;
using Floats = std::vector<float>;

constexpr int64_t kPadding = 3;  // of rows, in floats

// Experts of some tokens, sorted. Some experts have many tokens, some few, one none.
struct Routing {
    int64_t n_experts, n_used, n_tokens;
    std::vector<int32_t> ids;  // [n_tokens][stride]
    int64_t stride;
    std::vector<int32_t> sorted;

    Routing(int64_t n_experts, int64_t n_used, int64_t n_tokens, bool with_lost = false)
        : n_experts(n_experts), n_used(n_used), n_tokens(n_tokens), stride(n_used + 2) {
        std::mt19937 engine(5);
        ids.assign(static_cast<size_t>(n_tokens * stride), -100);
        for (int64_t t = 0; t < n_tokens; ++t) {
            std::vector<int32_t> experts(static_cast<size_t>(n_experts - 1));  // but for the last
            std::iota(experts.begin(), experts.end(), 0);
            std::shuffle(experts.begin(), experts.end(), engine);
            if (t % 3 != 0) {  // a favourite
                std::iter_swap(experts.begin(), std::find(experts.begin(), experts.end(), 1));
            }
            std::copy_n(experts.begin(), n_used, ids.begin() + t * stride);
        }
        if (with_lost) {
            ids[static_cast<size_t>(2 * stride)] = static_cast<int32_t>(n_experts);
            ids[static_cast<size_t>(4 * stride + n_used - 1)] = -1;
        }
        sorted.resize(static_cast<size_t>(sorted_pairs_size(n_experts, n_pairs())));
        sort_pairs(ids.data(), 1, stride, n_used, n_tokens, n_experts, sorted.data());
    }

    int64_t n_pairs() const { return n_used * n_tokens; }
    int32_t expert_of(int64_t pair) const { return ids[static_cast<size_t>(pair / n_used * stride + pair % n_used)]; }
    ExpertRows rows() const { return expert_rows(sorted.data(), n_experts, n_pairs()); }
    ExpertInputs inputs(bool shared, int64_t n_in) const {
        return {n_in + kPadding, shared ? n_tokens : n_pairs(), shared};
    }
    std::string name() const {
        return std::to_string(n_used) + " of " + std::to_string(n_experts) + ", " + std::to_string(n_tokens) +
               " tokens";
    }
};

struct Weights {
    std::vector<char> data;
    ExpertWeights w;

    Weights(ggml_type type, int64_t n_in, int64_t n_out, int64_t n_experts) {
        Floats source = random_values(n_in * n_out * n_experts, 1, 0.05f);
        std::transform(source.begin(), source.end(), source.begin(), [](float v) { return v + 0.02f; });
        const Floats importance(static_cast<size_t>(n_in), 1.0f);
        const size_t row_bytes = ggml_row_size(type, n_in);
        data.resize(row_bytes * static_cast<size_t>(n_out * n_experts));
        ggml_quantize_chunk(type, source.data(), data.data(), 0, n_out * n_experts, n_in, importance.data());
        w = {type, data.data(), row_bytes, row_bytes * static_cast<size_t>(n_out), n_in, n_out, n_experts};
    }
    std::string name() const {
        return std::string(ggml_type_name(w.type)) + " [" + std::to_string(w.n_out) + ", " + std::to_string(w.n_in) +
               "]";
    }
};

void check_true(const std::string & what, bool is_true) {
    check(what, is_true ? 0.0 : 1.0, 0.0);
}

// The units one at a time, the last first.
void run_units(int64_t n_units, const std::function<void(const Range &)> & work) {
    for (int64_t unit = n_units; unit-- > 0;) {
        work({unit, unit + 1});
    }
}

Floats columns(const Floats & matrix, int64_t n_columns) {
    Floats dense;
    for (size_t begin = 0; begin < matrix.size(); begin += static_cast<size_t>(n_columns + kPadding)) {
        dense.insert(dense.end(), matrix.begin() + static_cast<int64_t>(begin),
                     matrix.begin() + static_cast<int64_t>(begin) + n_columns);
    }
    return dense;
}

bool padding_kept(const Floats & matrix, int64_t n_columns, const Floats & before) {
    for (size_t i = 0; i < matrix.size(); ++i) {
        if (static_cast<int64_t>(i) % (n_columns + kPadding) >= n_columns && matrix[i] != before[i]) {
            return false;
        }
    }
    return true;
}

void test_sort() {
    const Routing routing(7, 3, 41, true);
    const ExpertRows rows = routing.rows();
    bool right = rows.first[0] == 0;
    std::vector<int> seen(static_cast<size_t>(routing.n_pairs()), 0);
    for (int64_t e = 0; e <= routing.n_experts; ++e) {
        const Range range = e < routing.n_experts ? rows.of(e) : Range{rows.first[e], routing.n_pairs()};
        for (int64_t i = range.begin; i < range.end; ++i) {
            const int32_t id = routing.expert_of(rows.pairs[i]);
            right = right && (e < routing.n_experts ? id == e : id < 0 || id >= routing.n_experts) &&
                    rows.tokens[i] == rows.pairs[i] / routing.n_used &&
                    (i == range.begin || rows.pairs[i] > rows.pairs[i - 1]);
            seen[static_cast<size_t>(rows.pairs[i])]++;
        }
    }
    check_true("sorted", right);
    check_true("each pair once", std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }));
    check_true("two have no expert", routing.n_pairs() - rows.first[routing.n_experts] == 2);
    check_true("the last expert has no token", rows.of(routing.n_experts - 1).size() == 0);
}

void test_forward(const Weights & weights, const Routing & routing, bool shared, bool accumulate) {
    const ExpertWeights & w = weights.w;
    const ExpertRows rows = routing.rows();
    const ExpertInputs inputs = routing.inputs(shared, w.n_in);
    const std::string name = weights.name() + " " + routing.name() + (shared ? " shared" : "");
    const Floats x = random_values(inputs.n_rows * inputs.row_stride, 2);
    const Floats before = random_values(routing.n_pairs() * (w.n_out + kPadding), 3);
    const int64_t y_stride = w.n_out + kPadding;
    Floats expected = before;
    expert_forward_reference(w, rows, x.data(), inputs, 0.7f, accumulate, expected.data(), y_stride);
    Floats first;
    for (const int n_threads : {1, 2, 3, 8}) {
        const ExpertUnits all = expert_forward_units(w, n_threads);
        Floats y = before;
        run_units(all.n_units, [&](const Range & units) {
            expert_forward(w, rows, x.data(), inputs, 0.7f, accumulate, y.data(), y_stride, all.n_columns, units);
        });
        if (n_threads == 1) {
            first = y;
            check(name + " forward", relative_difference(columns(y, w.n_out), columns(expected, w.n_out)), 1e-6);
            check_true(name + " forward, padding", padding_kept(y, w.n_out, before));
        } else {
            check_true(name + " forward, " + std::to_string(n_threads) + " threads", same_bits(y, first));
        }
    }
}

void test_input_gradient(const Weights & weights, const Routing & routing, bool shared, bool accumulate) {
    const ExpertWeights & w = weights.w;
    const ExpertRows rows = routing.rows();
    const ExpertInputs inputs = routing.inputs(shared, w.n_in);
    const std::string name = weights.name() + " " + routing.name() + (shared ? " shared" : "");
    const int64_t dy_stride = w.n_out + kPadding;
    const Floats dy = random_values(routing.n_pairs() * dy_stride, 2);
    const Floats before = random_values(inputs.n_rows * inputs.row_stride, 3);
    Floats expected = before;
    expert_input_gradient_reference(w, rows, dy.data(), dy_stride, 1.0f, accumulate, expected.data(), inputs);
    const auto test = [&](const std::string & what, double limit, const std::function<ExpertUnits(int)> & divide,
                          const std::function<void(float *, int64_t, const Range &)> & work) {
        Floats first;
        for (const int n_threads : {1, 2, 3, 8}) {
            const ExpertUnits all = divide(n_threads);
            Floats dx = before;
            run_units(all.n_units, [&](const Range & units) { work(dx.data(), all.n_columns, units); });
            if (n_threads == 1) {
                first = dx;
                check(name + what, relative_difference(columns(dx, w.n_in), columns(expected, w.n_in)), limit);
                check_true(name + what + ", padding", padding_kept(dx, w.n_in, before));
            } else {
                check_true(name + what + ", " + std::to_string(n_threads) + " threads", same_bits(dx, first));
            }
        }
    };
    test(
        " dX", 1e-6, [&](int n) { return expert_input_gradient_units(w, inputs, n); },
        [&](float * dx, int64_t n_columns, const Range & units) {
            expert_input_gradient(w, rows, dy.data(), dy_stride, 1.0f, accumulate, dx, inputs, n_columns, units);
        });
    if (int16_gradient_supported(w.type)) {
        test(
            " dX int16", 2e-4, [&](int n) { return expert_int16_input_gradient_units(w, inputs, n); },
            [&](float * dx, int64_t n_columns, const Range & units) {
                expert_int16_input_gradient(w, rows, dy.data(), dy_stride, accumulate, dx, inputs, n_columns, units);
            });
    }
}

// Each expert's rows have the bits that the kernel for one matrix gives them.
void test_int8(const Weights & weights, const Routing & routing, bool shared) {
    const ExpertWeights & w = weights.w;
    const ExpertRows rows = routing.rows();
    const ExpertInputs inputs = routing.inputs(shared, w.n_in);
    const std::string name = weights.name() + " " + routing.name() + (shared ? " shared" : "") + " int8";
    const Floats x = random_values(inputs.n_rows * inputs.row_stride, 2);
    const int64_t block = int8_activation_block(w.type), y_stride = w.n_out + kPadding;
    const Floats before(static_cast<size_t>(routing.n_pairs() * y_stride), 0.25f);
    Floats expected = before;
    for (int64_t e = 0; e < w.n_experts; ++e) {
        const int64_t n = rows.of(e).size();
        Floats x_rows, y_rows(static_cast<size_t>(n * w.n_out));
        for (int64_t i = rows.of(e).begin; i < rows.of(e).end; ++i) {
            const auto row = x.begin() + inputs.rows(rows)[i] * inputs.row_stride;
            x_rows.insert(x_rows.end(), row, row + w.n_in);
        }
        std::vector<char> quantized(static_cast<size_t>(int8_token_blocks(n)) * int8_token_block_bytes(w.n_in, block));
        int8_quantize(x_rows.data(), w.n_in, w.n_in, block, n, quantized.data(), 0, 1);
        int8_forward(w.type, w.row(e, 0), w.row_bytes, w.n_in, w.n_out, quantized.data(), n, y_rows.data(), w.n_out, 0,
                     1);
        for (int64_t i = 0; i < n; ++i) {
            std::copy_n(y_rows.begin() + i * w.n_out, w.n_out,
                        expected.begin() + rows.pairs[rows.first[e] + i] * y_stride);
        }
    }
    for (const int n_threads : {1, 2, 3, 8}) {
        const size_t n_bytes = static_cast<size_t>(expert_int8_blocks(w.n_experts, routing.n_pairs())) *
                               int8_token_block_bytes(w.n_in, block);
        std::vector<char> quantized(n_bytes + 1, '\x55');
        const int64_t n_units = expert_int8_quantize_units(rows);
        for (int64_t begin = 0; begin < n_units; begin += n_threads) {  // across experts
            expert_int8_quantize(rows, x.data(), inputs, w.n_in, block, quantized.data(),
                                 {begin, std::min<int64_t>(begin + n_threads, n_units)});
        }
        const ExpertUnits all = expert_int8_forward_units(w, n_threads);
        Floats y = before;
        if (n_threads == 1) {
            expert_int8_forward(w, rows, quantized.data(), y.data(), y_stride, all.n_columns, {0, all.n_units});
        } else {
            run_units(all.n_units, [&](const Range & units) {
                expert_int8_forward(w, rows, quantized.data(), y.data(), y_stride, all.n_columns, units);
            });
        }
        check_true(name + ", " + std::to_string(n_threads) + " threads", same_bits(y, expected));
        check_true(name + ", within its memory", quantized.back() == '\x55');
    }
}

// The same in bf16, forward and backward.
void test_bf16(const Weights & weights, const Routing & routing, bool shared, bool accumulate) {
    const ExpertWeights & w = weights.w;
    const ExpertRows rows = routing.rows();
    const ExpertInputs inputs = routing.inputs(shared, w.n_in);
    const std::string name = weights.name() + " " + routing.name() + (shared ? " shared" : "") + " bf16";
    const int64_t y_stride = w.n_out + kPadding;
    const Floats x = random_values(inputs.n_rows * inputs.row_stride, 2);
    const Floats dy = random_values(routing.n_pairs() * y_stride, 4);
    const Floats y_before(dy.size(), 0.25f), dx_before = random_values(static_cast<int64_t>(x.size()), 3);
    Floats y_expected = y_before, dx_expected = dx_before;
    for (int64_t t = 0; t < inputs.n_rows && shared && !accumulate; ++t) {
        std::fill_n(dx_expected.begin() + t * inputs.row_stride, w.n_in, 0.0f);
    }
    const auto packing = [](int64_t n_rows, int64_t n) {
        return std::vector<char>(static_cast<size_t>(bf16_panel_count(n_rows)) * bf16_panel_bytes(n) + 64);
    };
    for (int64_t e = 0; e < w.n_experts; ++e) {
        const int64_t n = rows.of(e).size();
        const int32_t * x_index = inputs.rows(rows) + rows.first[e];
        const int32_t * y_index = rows.pairs + rows.first[e];
        Floats x_rows, dy_rows, y_rows(static_cast<size_t>(n * w.n_out)), dx_rows(static_cast<size_t>(n * w.n_in));
        for (int64_t i = 0; i < n; ++i) {
            x_rows.insert(x_rows.end(), x.begin() + x_index[i] * inputs.row_stride,
                          x.begin() + x_index[i] * inputs.row_stride + w.n_in);
            dy_rows.insert(dy_rows.end(), dy.begin() + y_index[i] * y_stride,
                           dy.begin() + y_index[i] * y_stride + w.n_out);
        }
        std::vector<char> packed_x = packing(n, w.n_in), packed_dy = packing(n, w.n_out);
        bf16_pack_inputs(x_rows.data(), w.n_in, w.n_in, n, 1.0f, packed_x.data(), 0, bf16_panel_count(n));
        bf16_pack_gradients(dy_rows.data(), w.n_out, w.n_out, n, 1.0f, packed_dy.data(), 0, bf16_panel_count(n));
        const Bf16Term forward = {w.type, w.row(e, 0), w.row_bytes, w.n_in, packed_x.data()};
        const Bf16Term backward = {w.type, w.row(e, 0), w.row_bytes, w.n_out, packed_dy.data()};
        bf16_forward(&forward, 1, n, y_rows.data(), w.n_out, false, {0, n}, {0, w.n_out});
        bf16_input_gradient(&backward, 1, n, dx_rows.data(), w.n_in, false, {0, n}, {0, w.n_in});
        for (int64_t i = 0; i < n; ++i) {
            std::copy_n(y_rows.begin() + i * w.n_out, w.n_out, y_expected.begin() + y_index[i] * y_stride);
            for (int64_t j = 0; j < w.n_in; ++j) {
                float & element = dx_expected[static_cast<size_t>(x_index[i] * inputs.row_stride + j)];
                element = dx_rows[static_cast<size_t>(i * w.n_in + j)] + (shared || accumulate ? element : 0.0f);
            }
        }
    }
    const auto all_panels = [&](int64_t n) {
        const size_t n_bytes =
            static_cast<size_t>(expert_bf16_panels(w.n_experts, routing.n_pairs())) * bf16_panel_bytes(n);
        return std::vector<char>(n_bytes + 1, '\x55');
    };
    for (const int n_threads : {1, 3}) {
        std::vector<char> packed_x = all_panels(w.n_in), packed_dy = all_panels(w.n_out);
        const int64_t n_units = expert_bf16_pack_units(rows);
        for (int64_t begin = 0; begin < n_units; begin += n_threads) {  // across experts
            const Range units = {begin, std::min<int64_t>(begin + n_threads, n_units)};
            expert_bf16_pack_inputs(rows, x.data(), inputs, w.n_in, packed_x.data(), units);
            expert_bf16_pack_gradients(rows, dy.data(), y_stride, w.n_out, packed_dy.data(), units);
        }
        Floats y = y_before, dx = dx_before;
        const ExpertUnits forward = expert_bf16_forward_units(w, n_threads);
        expert_bf16_forward(w, rows, packed_x.data(), y.data(), y_stride, forward.n_columns, {0, forward.n_units});
        const ExpertUnits backward = expert_bf16_input_gradient_units(w, inputs, n_threads);
        run_units(backward.n_units, [&](const Range & units) {
            expert_bf16_input_gradient(w, rows, packed_dy.data(), accumulate, dx.data(), inputs, backward.n_columns,
                                       units);
        });
        const std::string threads = ", " + std::to_string(n_threads) + " threads";
        check_true(name + threads, same_bits(y, y_expected));
        check_true(name + " dX" + threads, same_bits(dx, dx_expected));
        check_true(name + ", within its memory" + threads, packed_x.back() == '\x55' && packed_dy.back() == '\x55');
    }
}

void test_weight_gradient(const ExpertShape & shape, const Routing & routing, bool shared, bool accumulate) {
    const ExpertRows rows = routing.rows();
    const ExpertInputs inputs = routing.inputs(shared, shape.n_in);
    const std::string name = "[" + std::to_string(shape.n_out) + ", " + std::to_string(shape.n_in) + "] " +
                             routing.name() + (shared ? " shared" : "") + " dW";
    const int64_t dy_stride = shape.n_out + kPadding;
    const Floats x = random_values(inputs.n_rows * inputs.row_stride, 2);
    const Floats dy = random_values(routing.n_pairs() * dy_stride, 4);
    Floats dw = random_values(shape.n_in * shape.n_out * shape.n_experts, 3);
    Floats expected = dw;
    expert_weight_gradient_reference(shape, rows, x.data(), inputs, dy.data(), dy_stride, 0.7f, accumulate,
                                     expected.data());
    run_units(expert_weight_gradient_units(shape), [&](const Range & units) {
        expert_weight_gradient(shape, rows, x.data(), inputs, dy.data(), dy_stride, 0.7f, accumulate, dw.data(), units);
    });
    check(name, relative_difference(dw, expected), 1e-6);
}

void test_sum(bool weighted) {
    constexpr int64_t kUsed = 3, kTokens = 7, kColumns = 37, kStride = kColumns + kPadding;
    const std::string name = weighted ? "weighted sum" : "sum";
    const Floats x = random_values(kTokens * kUsed * kColumns, 1);
    const Floats weights = random_values(kTokens * kUsed, 2);
    const Floats dy = random_values(kTokens * kStride, 3);
    std::vector<double> y_expected(kTokens * kColumns), dx_expected(x.size()), dweights_expected(weights.size());
    for (size_t t = 0; t < kTokens; ++t) {
        for (size_t k = 0; k < kUsed; ++k) {
            const size_t pair = t * kUsed + k;
            const double weight = weighted ? weights[pair] : 1.0;
            for (size_t i = 0; i < kColumns; ++i) {
                y_expected[t * kColumns + i] += weight * x[pair * kColumns + i];
                dx_expected[pair * kColumns + i] = weight * dy[t * kStride + i];
                dweights_expected[pair] += static_cast<double>(x[pair * kColumns + i]) * dy[t * kStride + i];
            }
        }
    }
    Floats y(y_expected.size(), NAN), dx(x.size(), NAN), dweights(weights.size(), NAN);
    const float * factors = weighted ? weights.data() : nullptr;
    run_parts(3, [&](int ith, int nth) {
        const Range tokens = split_range(kTokens, ith, nth);
        expert_sum(x.data(), factors, kUsed, kColumns, y.data(), tokens);
        expert_sum_dx(factors, dy.data(), kStride, kUsed, kColumns, dx.data(), tokens);
        expert_sum_dweights(x.data(), dy.data(), kStride, kUsed, kColumns, dweights.data(), tokens);
    });
    check(name, relative_difference(y, y_expected), 1e-6);
    check(name + ", dx", relative_difference(dx, dx_expected), 1e-6);
    check(name + ", dweights", relative_difference(dweights, dweights_expected), 1e-6);
}

// Pairs without an expert: NaN in their rows alone.
void test_lost() {
    const Weights weights(GGML_TYPE_Q4_K, 256, 40, 5);
    const ExpertWeights & w = weights.w;
    const Routing routing(5, 2, 19, true);
    const ExpertRows rows = routing.rows();
    const ExpertInputs inputs = routing.inputs(true, w.n_in);
    const Floats x = random_values(inputs.n_rows * inputs.row_stride, 2);
    const auto only_lost = [&](const Floats & y) {
        for (int64_t pair = 0; pair < routing.n_pairs(); ++pair) {
            const int32_t id = routing.expert_of(pair);
            const bool lost = id < 0 || id >= routing.n_experts;
            for (int64_t o = 0; o < w.n_out; ++o) {
                if (std::isnan(y[static_cast<size_t>(pair * w.n_out + o)]) != lost) {
                    return false;
                }
            }
        }
        return true;
    };
    Floats y(static_cast<size_t>(routing.n_pairs() * w.n_out), 0.0f);
    const ExpertUnits all = expert_forward_units(w, 2);
    expert_forward(w, rows, x.data(), inputs, 1.0f, false, y.data(), w.n_out, all.n_columns, {0, all.n_units});
    check_true("no such expert: forward", only_lost(y));
    std::vector<char> quantized(static_cast<size_t>(expert_int8_blocks(w.n_experts, routing.n_pairs())) *
                                int8_token_block_bytes(w.n_in, int8_activation_block(w.type)));
    expert_int8_quantize(rows, x.data(), inputs, w.n_in, int8_activation_block(w.type), quantized.data(),
                         {0, expert_int8_quantize_units(rows)});
    std::fill(y.begin(), y.end(), 0.0f);
    const ExpertUnits integers = expert_int8_forward_units(w, 2);
    expert_int8_forward(w, rows, quantized.data(), y.data(), w.n_out, integers.n_columns, {0, integers.n_units});
    check_true("no such expert: int8", only_lost(y));
    Floats dx(static_cast<size_t>(inputs.n_rows * inputs.row_stride), 0.0f);
    const ExpertUnits gradient = expert_int16_input_gradient_units(w, inputs, 2);
    expert_int16_input_gradient(w, rows, x.data(), w.n_out, false, dx.data(), inputs, gradient.n_columns,
                                {0, gradient.n_units});
    bool right = true;
    for (int64_t t = 0; t < routing.n_tokens; ++t) {
        right = right && std::isnan(dx[static_cast<size_t>(t * inputs.row_stride)]) == (t == 2 || t == 4);
    }
    check_true("no such expert: dX", right);
}

}  // namespace

int main() {
    ggml_cpu_init();
    test_sort();
    test_sum(true);
    test_sum(false);
    test_lost();
    const Routing few(6, 2, 9), many(4, 2, 700), one(3, 1, 40), wide(17, 8, 60);
    for (const ggml_type type :
         {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q8_0, GGML_TYPE_Q2_K,
          GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_XS, GGML_TYPE_MXFP4}) {
        const Weights weights(type, 512, 68, 6);
        for (const bool shared : {false, true}) {
            test_forward(weights, few, shared, shared);
            test_input_gradient(weights, few, shared, !shared);
            test_bf16(weights, few, shared, !shared);
            if (int8_product_supported(type)) {
                test_int8(weights, few, shared);
            }
        }
    }
    const Weights q4(GGML_TYPE_Q4_K, 1280, 600, 4), q6(GGML_TYPE_Q6_K, 256, 300, 17), narrow(GGML_TYPE_F32, 7, 5, 3);
    for (const bool shared : {false, true}) {
        test_forward(q4, many, shared, false);
        test_input_gradient(q4, many, shared, false);
        test_int8(q4, many, shared);
        test_int8(q6, wide, shared);
        test_bf16(q6, wide, shared, shared);
        test_forward(narrow, one, shared, true);
        test_input_gradient(narrow, one, shared, true);
        for (const bool accumulate : {false, true}) {
            test_weight_gradient({600, 8, 4}, many, shared, accumulate);
            test_weight_gradient({16, 530, 17}, wide, shared, accumulate);
            test_weight_gradient({3, 5, 6}, few, shared, accumulate);
        }
    }
    ggml_quantize_free();
    return finish();
}
