// Checks attention over a memory in half precision against the loops that define it, in double, and that neither what
// nobody sees nor the division of the work changes a bit.

#include "kernels/cache_attention.h"

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/half.h"

namespace {

using namespace ggtune::kernels;
using namespace ggtune::test;

constexpr uint16_t kUnseen = 0xfc00, kHalfNan = 0x7e00;

double value(uint16_t half) {
    return static_cast<double>(detail::half_at(reinterpret_cast<const uint8_t *>(&half)));
}

// Of magnitudes from 2^-3 to 2^2, or rarely subnormal.
std::vector<uint16_t> random_halves(size_t n, uint32_t seed) {
    std::mt19937 engine(seed);
    std::vector<uint16_t> values(n);
    for (uint16_t & half : values) {
        const uint32_t bits = engine();
        const uint32_t exponent = bits >> 16 & 63u ? 12 + (bits >> 24) % 5 : 0;
        half = static_cast<uint16_t>((bits & 0x83ffu) | exponent << 10);
    }
    return values;
}

// A memory of heads side by side, cell by cell, sequence by sequence.
struct Cells {
    std::vector<uint16_t> values;
    HalfCells cells;

    Cells(int64_t n_sequences, int64_t n_cells, int64_t n_heads, int64_t dim, uint32_t seed)
        : values(random_halves(static_cast<size_t>(n_sequences * n_cells * n_heads * dim), seed)),
          cells{values.data(), n_heads * dim, dim, n_cells * n_heads * dim} {}

    uint16_t * cell(int64_t sequence, int64_t number) {
        return values.data() + sequence * cells.sequence_stride + number * cells.cell_stride;
    }
};

enum class Seen { causal, window, scattered, shifted };

struct Case {
    std::string name;
    int64_t n_sequences, n_tokens, n_cells;
    int64_t n_heads, n_heads_kv, head_dim, head_dim_v;
    Seen seen = Seen::causal;
    float softcap = 0.0f;
    std::optional<std::vector<float>> sinks = std::nullopt;  // by head
};

struct Inputs {
    std::vector<float> q;
    Cells k, v;
    std::vector<uint16_t> mask;

    explicit Inputs(const Case & c)
        : q(random_values(c.n_sequences * c.n_tokens * c.n_heads * c.head_dim, 1)),
          k(c.n_sequences, c.n_cells, c.n_heads_kv, c.head_dim, 2),
          v(c.n_sequences, c.n_cells, c.n_heads_kv, c.head_dim_v, 3),
          mask(static_cast<size_t>(c.n_sequences * c.n_tokens * c.n_cells), kUnseen) {
        std::mt19937 engine(4);
        for (int64_t s = 0; s < c.n_sequences; ++s) {
            const int64_t n_before = static_cast<int64_t>(engine() % static_cast<uint32_t>(c.n_cells - c.n_tokens + 1));
            for (int64_t t = 0; t < c.n_tokens; ++t) {
                uint16_t * row = mask.data() + (s * c.n_tokens + t) * c.n_cells;
                for (int64_t cell = 0; cell <= n_before + t; ++cell) {
                    const bool open = c.seen == Seen::window      ? cell + 20 > n_before + t
                                      : c.seen == Seen::scattered ? engine() % 3 == 0
                                                                  : true;
                    if (open) {
                        row[cell] = c.seen == Seen::shifted ? static_cast<uint16_t>(0xb800u + engine() % 1024) : 0;
                    }
                }
            }
        }
        // what a cell that nobody sees holds is anything
        for (int64_t s = 0; s < c.n_sequences; ++s) {
            for (int64_t cell = 0; cell < c.n_cells; ++cell) {
                bool any = false;
                for (int64_t t = 0; t < c.n_tokens; ++t) {
                    any = any || mask[(s * c.n_tokens + t) * c.n_cells + cell] != kUnseen;
                }
                if (!any) {
                    std::fill_n(k.cell(s, cell), k.cells.cell_stride, kHalfNan);
                    std::fill_n(v.cell(s, cell), v.cells.cell_stride, kHalfNan);
                }
            }
        }
    }
};

CacheAttentionShape shape_of(const Case & c, const Inputs & in) {
    return {c.n_sequences,
            c.n_tokens,
            c.n_cells,
            c.n_heads,
            c.n_heads_kv,
            c.head_dim,
            c.head_dim_v,
            1.0f / std::sqrt(static_cast<float>(c.head_dim)),
            c.softcap,
            in.mask.data(),
            c.n_cells,
            c.n_tokens * c.n_cells,
            c.sinks ? c.sinks->data() : nullptr};
}

std::vector<float> run_kernel(const Case & c, const Inputs & in, int64_t portion) {
    const CacheAttentionShape shape = shape_of(c, in);
    std::vector<float> out(static_cast<size_t>(c.n_sequences * c.n_tokens * c.n_heads * c.head_dim_v), NAN);
    const int64_t n_units = cache_attention_units(shape);
    for (int64_t begin = 0; begin < n_units; begin += portion) {
        cache_attention(shape, {in.q.data(), c.n_heads * c.head_dim, c.head_dim}, c.n_tokens * c.n_heads * c.head_dim,
                        in.k.cells, in.v.cells, out.data(), {begin, std::min(begin + portion, n_units)});
    }
    return out;
}

// Of one token and head.
std::vector<double> attend(const Case & c, const Inputs & in, int64_t sequence, int64_t token, int64_t head) {
    const int64_t head_kv = head / (c.n_heads / c.n_heads_kv);
    const float * query = in.q.data() + ((sequence * c.n_tokens + token) * c.n_heads + head) * c.head_dim;
    const uint16_t * mask = in.mask.data() + (sequence * c.n_tokens + token) * c.n_cells;
    double total = c.sinks ? std::exp(static_cast<double>((*c.sinks)[static_cast<size_t>(head)])) : 0.0;
    std::vector<double> sums(static_cast<size_t>(c.head_dim_v));
    for (int64_t cell = 0; cell < c.n_cells; ++cell) {
        if (mask[cell] == kUnseen) {
            continue;
        }
        const auto row = [&](const HalfCells & cells) {
            return cells.data + sequence * cells.sequence_stride + cell * cells.cell_stride +
                   head_kv * cells.head_stride;
        };
        double logit = 0.0;
        for (int64_t i = 0; i < c.head_dim; ++i) {
            logit += query[i] * value(row(in.k.cells)[i]);
        }
        logit /= std::sqrt(static_cast<double>(c.head_dim));
        const auto cap = static_cast<double>(c.softcap);
        const double weight = std::exp((cap == 0.0 ? logit : cap * std::tanh(logit / cap)) + value(mask[cell]));
        total += weight;
        for (size_t i = 0; i < sums.size(); ++i) {
            sums[i] += weight * value(row(in.v.cells)[i]);
        }
    }
    for (double & sum : sums) {
        sum = total == 0.0 ? 0.0 : sum / total;
    }
    return sums;
}

std::vector<double> run_reference(const Case & c, const Inputs & in) {
    std::vector<double> out;
    for (int64_t i = 0; i < c.n_sequences * c.n_tokens * c.n_heads; ++i) {
        const int64_t token = i / c.n_heads;
        const std::vector<double> row = attend(c, in, token / c.n_tokens, token % c.n_tokens, i % c.n_heads);
        out.insert(out.end(), row.begin(), row.end());
    }
    return out;
}

void test_inputs(const Case & c, const Inputs & in) {
    const std::vector<float> whole = run_kernel(c, in, 1 << 20);
    check(c.name, relative_difference(whole, run_reference(c, in)), 1e-6);
    const bool same = same_bits(run_kernel(c, in, 1), whole) && same_bits(run_kernel(c, in, 3), whole);
    check(c.name + ": same bits in portions", same ? 0.0 : 1.0, 0.0);
}

void test_case(const Case & c) {
    test_inputs(c, Inputs(c));
}

void test_against_reference() {
    for (const int64_t dim : {32, 64, 80, 96, 128, 256}) {
        test_case({"head size " + std::to_string(dim), 5, 1, 256, 4, 2, dim, dim});
    }
    for (const int64_t group : {1, 2, 3, 4, 5, 8}) {
        test_case({std::to_string(group) + " heads share keys", 3, 21, 77, 2 * group, 2, 64, 64});
    }
    test_case({"one token, one cell", 1, 1, 1, 2, 1, 64, 64});
    test_case({"values of other size", 2, 3, 90, 4, 1, 192, 128});
    test_case({"long", 1, 40, 1500, 2, 1, 64, 64});
    test_case({"window", 2, 50, 300, 3, 1, 64, 64, Seen::window});
    test_case({"scattered", 3, 18, 290, 4, 2, 64, 64, Seen::scattered});
    test_case({"shifted by the mask", 2, 9, 130, 4, 2, 64, 64, Seen::shifted});
    test_case({"soft cap", 2, 9, 130, 4, 2, 64, 64, Seen::causal, 1.5f});
    test_case({"sinks", 2, 9, 130, 4, 2, 64, 64, Seen::causal, 0.0f, std::vector<float>{4.0f, 0.5f, -3.0f, 9.0f}});
    test_case({"sinks, scattered, soft cap", 2, 9, 130, 4, 4, 64, 64, Seen::scattered, 2.0f,
               std::vector<float>{-INFINITY, 0.0f, 1.0f, 40.0f}});
}

void test_blind_tokens() {
    const Case c = {"tokens that see nothing", 2, 20, 200, 3, 1, 64, 64};
    Inputs in(c);
    for (const int64_t token : {0, 3, 4, 19, 20, 38}) {
        std::fill_n(in.mask.begin() + token * c.n_cells, c.n_cells, kUnseen);
    }
    const std::vector<float> found = run_kernel(c, in, 1);
    check(c.name, relative_difference(found, run_reference(c, in)), 1e-6);
    check(c.name + ": zeros",
          std::all_of(found.begin(), found.begin() + 3 * 64, [](float x) { return x == 0; }) ? 0 : 1, 0);
}

// A key that all tokens of a sequence see, or a query, that is not finite shows in these, and in no other.
void test_not_finite() {
    const Case c = {"", 2, 5, 40, 2, 1, 64, 64};
    for (const bool in_query : {true, false}) {
        Inputs in(c);
        const std::vector<float> before = run_kernel(c, in, 1);
        if (in_query) {
            in.q[2 * 2 * 64 + 5] = NAN;  // token 2, head 0
        } else {
            *in.k.cell(0, 0) = kHalfNan;  // which all of the first sequence see
        }
        const std::vector<float> found = run_kernel(c, in, 1);
        const size_t begin = in_query ? 2 * 2 * 64 : 0, end = in_query ? begin + 64 : 5 * 2 * 64;
        int n_wrong = 0;
        for (size_t i = 0; i < found.size(); ++i) {
            n_wrong += i >= begin && i < end ? !std::isnan(found[i]) : found[i] != before[i];
        }
        check(std::string("NaN in a ") + (in_query ? "query" : "key"), n_wrong, 0);
    }
}

}  // namespace

int main() {
    test_against_reference();
    test_blind_tokens();
    test_not_finite();
    return finish();
}
