// Checks the fit of scales and mins against least squares solved in double precision, with what a factor does to the
// weights found by ggml's own dequantization.

#include "kernels/scale_fit.h"

#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "check.h"

namespace {

using ggtune::kernels::has_half_scales;
using ggtune::kernels::ScaleFit;
using ggtune::test::check;
using ggtune::test::random_values;
using Bytes = std::vector<uint8_t>;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

constexpr int64_t kRow = 768;
constexpr int64_t kTokens = 100;
constexpr double kDamping = 0.03;

// Where the factors of a block lie (ggml-common.h).
struct Layout {
    ggml_type type;
    size_t n_factors;
    size_t factors[2];

    std::vector<size_t> places() const { return {factors, factors + n_factors}; }
};

constexpr Layout kLayouts[] = {
    {GGML_TYPE_Q4_0, 1, {0}},      {GGML_TYPE_Q4_1, 2, {0, 2}}, {GGML_TYPE_Q5_0, 1, {0}},
    {GGML_TYPE_Q5_1, 2, {0, 2}},   {GGML_TYPE_Q8_0, 1, {0}},    {GGML_TYPE_Q3_K, 1, {108}},
    {GGML_TYPE_Q2_K, 2, {80, 82}}, {GGML_TYPE_Q4_K, 2, {0, 2}}, {GGML_TYPE_Q5_K, 2, {0, 2}},
    {GGML_TYPE_Q6_K, 1, {208}},    {GGML_TYPE_IQ4_NL, 1, {0}},  {GGML_TYPE_IQ4_XS, 1, {0}},
};

Floats dequantized(ggml_type type, const Bytes & bytes) {
    Floats values(static_cast<size_t>(kRow));
    ggml_get_type_traits(type)->to_float(bytes.data(), values.data(), kRow);
    return values;
}

// Few directions hold most of these, as of a layer's inputs.
Floats inputs() {
    Floats x = random_values(kTokens * kRow, 1, 0.3f);
    const Floats directions = random_values(8 * kRow, 2), along = random_values(8 * kTokens, 3);
    for (int64_t t = 0; t < kTokens; ++t) {
        for (int64_t k = 0; k < 8; ++k) {
            for (int64_t i = 0; i < kRow; ++i) {
                x[static_cast<size_t>(t * kRow + i)] +=
                    along[static_cast<size_t>(t * 8 + k)] * directions[static_cast<size_t>(k * kRow + i)];
            }
        }
    }
    return x;
}

struct Case {
    const Layout & layout;
    Bytes bytes;
    Floats x = inputs();
    Floats error;  // a few codes off by a step

    explicit Case(const Layout & l) : layout(l), bytes(ggml_row_size(l.type, kRow)) {
        Floats source = random_values(kRow, 5, 0.05f);
        for (float & v : source) {
            v += 0.02f;
        }
        ggml_quantize_chunk(layout.type, source.data(), bytes.data(), 0, 1, kRow, nullptr);
        error = random_values(kRow, 6, 0.01f);
        for (size_t i = 0; i < error.size(); ++i) {
            error[i] = i % 7 == 0 ? error[i] : 0.0f;
        }
    }

    std::string name(const std::string & what) const { return std::string(ggml_type_name(layout.type)) + ": " + what; }

    Bytes fitted() const {
        Bytes result = bytes;
        ScaleFit(layout.type, x.data(), kTokens, kRow).fit(1, error.data(), bytes.data(), result.data());
        return result;
    }

    // The error that is left once the row is stored as `now`.
    Doubles left(const Bytes & now) const {
        const Floats before = dequantized(layout.type, bytes), after = dequantized(layout.type, now);
        Doubles e(error.size());
        for (size_t i = 0; i < e.size(); ++i) {
            e[i] = static_cast<double>(error[i]) + static_cast<double>(after[i]) - static_cast<double>(before[i]);
        }
        return e;
    }

    // Of an error: as the inputs see it, and itself, as the fit weighs them; the squares sum up to the cost.
    Doubles weighed(const Doubles & e) const {
        double square = 0;
        for (const float v : x) {
            square += static_cast<double>(v) * static_cast<double>(v);
        }
        const double own = std::sqrt(kDamping * square / static_cast<double>(x.size()));
        Doubles out;
        for (size_t t = 0; t < static_cast<size_t>(kTokens); ++t) {
            double sum = 0;
            for (size_t i = 0; i < e.size(); ++i) {
                sum += static_cast<double>(x[t * e.size() + i]) * e[i];
            }
            out.push_back(sum / std::sqrt(static_cast<double>(kTokens)));
        }
        for (const double v : e) {
            out.push_back(own * v);
        }
        return out;
    }

    double cost(const Doubles & e) const {
        const double size = ggtune::test::norm(weighed(e));
        return size * size;
    }

    // Of the best factors, were they not rounded: what is left of the error once its part along all their directions is
    // taken away (Gram and Schmidt, twice).
    double least_cost() const {
        Doubles rest = weighed(Doubles(error.begin(), error.end()));
        std::vector<Doubles> basis;
        const size_t block_bytes = ggml_type_size(layout.type);
        for (size_t block = 0; block < bytes.size(); block += block_bytes) {
            for (const size_t at : layout.places()) {
                Bytes unit(bytes.size(), 0);
                std::copy_n(bytes.begin() + static_cast<int64_t>(block), block_bytes,
                            unit.begin() + static_cast<int64_t>(block));
                for (const size_t other : layout.places()) {
                    const uint16_t half = ggml_fp32_to_fp16(other == at ? 1.0f : 0.0f);
                    std::memcpy(unit.data() + block + other, &half, sizeof half);
                }
                const Floats values = dequantized(layout.type, unit);
                Doubles column = weighed(Doubles(values.begin(), values.end()));
                const double size = ggtune::test::norm(column);
                for (int pass = 0; pass < 2; ++pass) {
                    for (const Doubles & other : basis) {
                        remove(column, other);
                    }
                }
                const double remains = ggtune::test::norm(column);
                if (remains > 1e-9 * size) {
                    for (double & v : column) {
                        v /= remains;
                    }
                    basis.push_back(column);
                }
            }
        }
        for (const Doubles & direction : basis) {
            remove(rest, direction);
        }
        const double size = ggtune::test::norm(rest);
        return size * size;
    }

    static void remove(Doubles & from, const Doubles & direction) {
        double along = 0;
        for (size_t i = 0; i < from.size(); ++i) {
            along += from[i] * direction[i];
        }
        for (size_t i = 0; i < from.size(); ++i) {
            from[i] -= along * direction[i];
        }
    }
};

void test_least_squares(const Case & c) {
    const double before = c.cost(c.left(c.bytes)), after = c.cost(c.left(c.fitted())), least = c.least_cost();
    check(c.name("what is possible, of the cost before"), least / before, 0.8);
    check(c.name("cost above the least one, of what could be gained"), (after - least) / (before - least), 0.03);
}

void test_codes_stay(const Case & c) {
    Bytes now = c.fitted();
    check(c.name("is fitted"), now == c.bytes ? 1 : 0, 0);
    const size_t block_bytes = ggml_type_size(c.layout.type);
    for (size_t block = 0; block < now.size(); block += block_bytes) {
        for (const size_t at : c.layout.places()) {
            std::copy_n(c.bytes.begin() + static_cast<int64_t>(block + at), 2,
                        now.begin() + static_cast<int64_t>(block + at));
        }
    }
    check(c.name("all else is the same"), now == c.bytes ? 0 : 1, 0);
}

// What the error did to the codes must not count, or scales would be small where codes went up.
void test_moved_codes_do_not_count(const Case & c) {
    Bytes moved = c.bytes, wanted = c.fitted();
    const size_t block_bytes = ggml_type_size(c.layout.type);
    for (size_t i = 0; i < moved.size(); ++i) {
        bool factor = false;
        for (const size_t at : c.layout.places()) {
            factor = factor || i % block_bytes == at || i % block_bytes == at + 1;
        }
        if (!factor && i % 5 == 0) {
            moved[i] ^= 0x11;
            wanted[i] ^= 0x11;
        }
    }
    ScaleFit(c.layout.type, c.x.data(), kTokens, kRow).fit(1, c.error.data(), c.bytes.data(), moved.data());
    check(c.name("the factors of the unmoved row, and the moved codes"), moved == wanted ? 0 : 1, 0);
}

// For the same codes the changes for two errors about add up: steps are few, and halves are rounded.
void test_linear(Case c) {
    const Floats first = c.error, second = random_values(kRow, 9, 0.01f);
    const auto change = [&](const Floats & error) {
        c.error = error;
        const Doubles left = c.left(c.fitted());
        Doubles changed(left.size());
        for (size_t i = 0; i < left.size(); ++i) {
            changed[i] = left[i] - static_cast<double>(error[i]);
        }
        return changed;
    };
    Floats both(first);
    for (size_t i = 0; i < both.size(); ++i) {
        both[i] += second[i];
    }
    const Doubles a = change(first), b = change(second);
    Doubles sum(a);
    for (size_t i = 0; i < sum.size(); ++i) {
        sum[i] += b[i];
    }
    check(c.name("linear in the error"), ggtune::test::relative_difference(change(both), sum), 0.2);
}

void test_rows_that_stay(Case c) {
    c.error.assign(c.error.size(), 0.0f);
    check(c.name("no error: the same bytes"), c.fitted() == c.bytes ? 0 : 1, 0);
    c.error[3] = NAN;
    check(c.name("an error that is no number: the same bytes"), c.fitted() == c.bytes ? 0 : 1, 0);
    c.error[3] = 1e30f;
    bool finite = true;
    for (const float v : dequantized(c.layout.type, c.fitted())) {
        finite = finite && std::isfinite(v);
    }
    check(c.name("an error beyond all halves: finite weights"), finite ? 0 : 1, 0);
}

// Several rows at once, each as alone.
void test_batch(const Case & c) {
    const ScaleFit fit(c.layout.type, c.x.data(), kTokens, kRow);
    const int64_t n = std::min<int64_t>(5, fit.batch_rows());
    Bytes rows, alone;
    Floats errors;
    for (int64_t i = 0; i < n; ++i) {
        Case other = c;
        std::rotate(other.error.begin(), other.error.begin() + 11 * i, other.error.end());
        rows.insert(rows.end(), c.bytes.begin(), c.bytes.end());
        errors.insert(errors.end(), other.error.begin(), other.error.end());
        const Bytes fitted = other.fitted();
        alone.insert(alone.end(), fitted.begin(), fitted.end());
    }
    const Bytes unmoved = rows;
    fit.fit(n, errors.data(), unmoved.data(), rows.data());
    check(c.name("a row beside others"), rows == alone ? 0 : 1, 0);
}

}  // namespace

int main() {
    ggml_cpu_init();
    for (const Layout & layout : kLayouts) {
        const Case c(layout);
        check(c.name("has half scales"), has_half_scales(layout.type) ? 0 : 1, 0);
        test_least_squares(c);
        test_codes_stay(c);
        test_moved_codes_do_not_count(c);
        test_linear(c);
        test_rows_that_stay(c);
        test_batch(c);
    }
    for (const ggml_type type : {GGML_TYPE_MXFP4, GGML_TYPE_F16, GGML_TYPE_IQ2_XS, GGML_TYPE_TQ1_0}) {
        check(std::string(ggml_type_name(type)) + " has none", has_half_scales(type) ? 1 : 0, 0);
    }
    return ggtune::test::finish();
}
