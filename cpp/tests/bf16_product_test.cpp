// Checks the products on bf16 tiles against sums in double: of the operands as they are rounded, which leaves the
// errors of sums in float32, and of the operands themselves.

#include "kernels/bf16_product.h"

#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "kernels/bf16.h"
#include "kernels/bf16_unpack.h"
#include "kernels/dequantize.h"
#include "kernels/huge_pages.h"
#include "kernels/partition.h"
#include "kernels/tile.h"

namespace {

using namespace ggtune::kernels;
using detail::Bf16;
using ggtune::test::check;
using ggtune::test::norm;
using ggtune::test::random_values;
using ggtune::test::relative_difference;
using ggtune::test::same_bits;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

constexpr int64_t kPadding = 5;  // of the rows of activations, in floats
constexpr float kUntouched = 0.25f;
constexpr double kSumLimit = 1e-5;       // of sums in float32
constexpr double kRoundingLimit = 3e-3;  // of both operands, in norm
constexpr Bf16 kNoValue = 0x7fc1;

void check_true(const std::string & what, bool value) {
    check(what, value ? 0.0 : 1.0, 0.0);
}

float rounded(float value) {
    return detail::to_float(detail::to_bf16(value));
}

struct Weight {
    ggml_type type;
    int64_t n_in, n_out;
    size_t row_bytes;
    std::vector<char> data;
    Floats values;  // dequantized

    Weight(ggml_type type, int64_t n_in, int64_t n_out, float mean = 0.02f)
        : type(type),
          n_in(n_in),
          n_out(n_out),
          row_bytes(ggml_row_size(type, n_in)),
          data(row_bytes * static_cast<size_t>(n_out)),
          values(static_cast<size_t>(n_in * n_out)) {
        // a mean other than zero gives the mins their weight
        Floats source = random_values(n_in * n_out, 1, 0.05f);
        std::transform(source.begin(), source.end(), source.begin(), [mean](float v) { return v + mean; });
        if (type == GGML_TYPE_F32) {
            std::memcpy(data.data(), source.data(), data.size());
        } else {
            const Floats importance(static_cast<size_t>(n_in), 1.0f);
            ggml_quantize_chunk(type, source.data(), data.data(), 0, n_out, n_in, importance.data());
        }
        for (int64_t o = 0; o < n_out; ++o) {
            dequantize_row(type, row(o), values.data() + o * n_in, n_in);
        }
    }

    const char * row(int64_t o) const { return data.data() + static_cast<size_t>(o) * row_bytes; }
    float value(int64_t o, int64_t i) const { return values[static_cast<size_t>(o * n_in + i)]; }
};

// --- weights as bf16

// Of a block whose scale is not finite no value has to be; the conversion of the CPU takes denormal values for zeros.
bool same_value(Bf16 found, float expected) {
    if (!std::isfinite(expected)) {
        return !std::isfinite(detail::to_float(found));
    }
    const float smallest = std::numeric_limits<float>::min();
    return found == detail::to_bf16(expected) ||
           (std::fabs(expected) < smallest && std::fabs(detail::to_float(found)) == 0.0f);
}

void test_unpack(const std::string & name, ggml_type type, const void * src, int64_t n) {
    Floats expected(static_cast<size_t>(n));
    dequantize_row(type, src, expected.data(), n);
    constexpr int64_t kGroup = 32;
    const int64_t n_groups = (n + kGroup - 1) / kGroup;
    for (const int64_t stride : {int64_t{32}, int64_t{39}, detail::kTileValues}) {
        std::vector<Bf16> found(static_cast<size_t>(n_groups * stride), kNoValue);
        detail::unpack_bf16(type, src, n, found.data(), stride);
        int64_t n_wrong = 0;
        for (int64_t i = 0; i < n_groups * stride; ++i) {
            const int64_t index = i / stride * kGroup + i % stride;
            const Bf16 value = found[static_cast<size_t>(i)];
            const bool right = i % stride >= kGroup ? value == kNoValue
                               : index < n          ? same_value(value, expected[static_cast<size_t>(index)])
                                                    : value == 0;
            n_wrong += right ? 0 : 1;
        }
        check(name + " " + std::to_string(n) + " by " + std::to_string(stride), static_cast<double>(n_wrong), 0.0);
    }
}

void test_unpack(ggml_type type) {
    const int64_t block = ggml_blck_size(type);
    const std::string name = std::string("unpacked ") + ggml_type_name(type);
    std::vector<int64_t> lengths = {block, 3 * block, 37 * block};
    if (block == 1) {
        lengths.insert(lengths.end(), {31, 32, 33, 255, 256, 257, 300});
    }
    for (const int64_t n : lengths) {
        test_unpack(name, type, Weight(type, n, 1).data.data(), n);
    }
    // scales and codes of every kind, of which quantization makes few
    constexpr int64_t kBlocks = 300;
    std::mt19937 engine(11);
    std::vector<char> any(ggml_row_size(type, kBlocks * block));
    std::generate(any.begin(), any.end(), [&] { return static_cast<char>(engine()); });
    test_unpack(name + ", any bytes,", type, any.data(), kBlocks * block);
}

// --- the products with weights

enum class Direction { forward, input_gradient };

// One product of a sum of products, with what is multiplied by its weights.
struct Term {
    Weight w;
    float scale;
    Floats x;  // [n_tokens, depth + kPadding]
};

struct Product {
    Direction direction;
    int64_t n_tokens;
    std::vector<Term> terms;

    bool forward() const { return direction == Direction::forward; }
    int64_t depth(const Term & term) const { return forward() ? term.w.n_in : term.w.n_out; }
    int64_t n_columns() const { return forward() ? terms[0].w.n_out : terms[0].w.n_in; }
    int64_t y_stride() const { return n_columns() + kPadding; }

    void add(Weight w, float scale) {
        const int64_t n = n_tokens * ((forward() ? w.n_in : w.n_out) + kPadding);
        terms.push_back({std::move(w), scale, random_values(n, static_cast<uint32_t>(7 + terms.size()))});
    }
};

Product product(Direction direction, ggml_type type, int64_t n_in, int64_t n_out, int64_t n_tokens, int64_t rank = 0) {
    Product p{direction, n_tokens, {}};
    p.add(Weight(type, n_in, n_out), 1.0f);
    if (rank > 0) {
        p.add(p.forward() ? Weight(GGML_TYPE_F32, rank, n_out) : Weight(GGML_TYPE_F32, n_in, rank), 1.7f);
    }
    return p;
}

Doubles exact(const Product & p, bool of_rounded) {
    const int64_t n_columns = p.n_columns();
    Doubles y(static_cast<size_t>(p.n_tokens * n_columns), 0.0);
    Doubles row(static_cast<size_t>(n_columns));  // of the weights, by depth
    for (const Term & term : p.terms) {
        const int64_t depth = p.depth(term);
        for (int64_t k = 0; k < depth; ++k) {
            for (int64_t c = 0; c < n_columns; ++c) {
                const float w = p.forward() ? term.w.value(c, k) : term.w.value(k, c);
                row[static_cast<size_t>(c)] = static_cast<double>(of_rounded ? rounded(w) : w);
            }
            for (int64_t t = 0; t < p.n_tokens; ++t) {
                const float x = term.scale * term.x[static_cast<size_t>(t * (depth + kPadding) + k)];
                const auto factor = static_cast<double>(of_rounded ? rounded(x) : x);
                double * sums = y.data() + t * n_columns;
                for (int64_t c = 0; c < n_columns; ++c) {
                    sums[c] += factor * row[static_cast<size_t>(c)];
                }
            }
        }
    }
    return y;
}

// Packed operands and the result, part by part.
class Run {
  public:
    Run(const Product & p, bool accumulate) : p_(p), accumulate_(accumulate) {
        y_ = Floats(static_cast<size_t>(p.n_tokens * p.y_stride()), accumulate ? 1.0f : NAN);
        for (int64_t t = 0; t < p.n_tokens; ++t) {
            std::fill_n(y_.begin() + t * p.y_stride() + p.n_columns(), kPadding, kUntouched);
        }
        const int64_t n_panels = bf16_panel_count(p.n_tokens);
        for (const Term & term : p.terms) {
            // what the panels do not fill must not matter, nor where they begin
            constexpr size_t kOffset = 16;
            packed_.emplace_back(kOffset + 64 + static_cast<size_t>(n_panels) * bf16_panel_bytes(p.depth(term)),
                                 '\xff');
            char * packed = packed_.back().data() + kOffset;
            const auto pack = p.forward() ? bf16_pack_inputs : bf16_pack_gradients;
            for (int64_t end = n_panels; end > 0; end -= std::min<int64_t>(end, 3)) {
                pack(term.x.data(), p.depth(term) + kPadding, p.depth(term), p.n_tokens, term.scale, packed,
                     end - std::min<int64_t>(end, 3), end);
            }
            terms_.push_back({term.w.type, term.w.data.data(), term.w.row_bytes, p.depth(term), packed});
        }
    }
    Run(const Run &) = delete;
    Run & operator=(const Run &) = delete;

    void compute(const Range & tokens, const Range & columns) {
        const auto multiply = p_.forward() ? bf16_forward : bf16_input_gradient;
        multiply(terms_.data(), static_cast<int>(terms_.size()), p_.n_tokens, y_.data(), p_.y_stride(), accumulate_,
                 tokens, columns);
    }
    const Floats & result() const { return y_; }

  private:
    const Product & p_;
    const bool accumulate_;
    std::vector<std::vector<char>> packed_;
    std::vector<Bf16Term> terms_;
    Floats y_;
};

Floats whole(const Product & p, bool accumulate = false) {
    Run run(p, accumulate);
    run.compute({0, p.n_tokens}, {0, p.n_columns()});
    return run.result();
}

// In blocks, from the last to the first.
Floats in_blocks(const Product & p, bool accumulate, const Bf16Blocks & block) {
    Run run(p, accumulate);
    for (int64_t t = (p.n_tokens - 1) / block.tokens * block.tokens; t >= 0; t -= block.tokens) {
        for (int64_t c = (p.n_columns() - 1) / block.columns * block.columns; c >= 0; c -= block.columns) {
            run.compute({t, std::min(t + block.tokens, p.n_tokens)}, {c, std::min(c + block.columns, p.n_columns())});
        }
    }
    return run.result();
}

// By threads, which have scratch and tiles of their own.
Floats by_threads(const Product & p, bool accumulate, int nth) {
    Run run(p, accumulate);
    constexpr int64_t kBlock = 32;
    const int64_t n_blocks = (p.n_columns() + kBlock - 1) / kBlock;
    Dealer dealer;
    std::vector<std::thread> threads;
    for (int i = 0; i < nth; ++i) {
        threads.emplace_back([&] {
            dealer.run(n_blocks, nth, [&](Range blocks) {
                run.compute({0, p.n_tokens}, {blocks.begin * kBlock, std::min(blocks.end * kBlock, p.n_columns())});
            });
        });
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
    return run.result();
}

// The rows of Y without their padding.
Floats rows(const Product & p, const Floats & y) {
    Floats dense;
    for (int64_t t = 0; t < p.n_tokens; ++t) {
        const auto begin = y.begin() + t * p.y_stride();
        dense.insert(dense.end(), begin, begin + p.n_columns());
    }
    return dense;
}

bool padding_kept(const Product & p, const Floats & y) {
    for (int64_t t = 0; t < p.n_tokens; ++t) {
        const auto end = y.begin() + (t + 1) * p.y_stride();
        if (std::any_of(end - kPadding, end, [](float v) { return v != kUntouched; })) {
            return false;
        }
    }
    return true;
}

void test_product(const Product & p) {
    std::string name = p.forward() ? "forward" : "gradient";
    for (const Term & term : p.terms) {
        name += std::string(" ") + ggml_type_name(term.w.type) + " [" + std::to_string(term.w.n_out) + ", " +
                std::to_string(term.w.n_in) + "]";
    }
    name += " x " + std::to_string(p.n_tokens);
    Doubles expected = exact(p, true);
    const Floats y = whole(p);
    check(name, relative_difference(rows(p, y), expected), kSumLimit);
    check(name + ", rounding", relative_difference(rows(p, y), exact(p, false)), kRoundingLimit);
    const Floats added = whole(p, true);
    for (double & value : expected) {
        value += 1.0;
    }
    check(name + ", added", relative_difference(rows(p, added), expected), kSumLimit);
    check_true(name + ", padding untouched", padding_kept(p, y) && padding_kept(p, added));
    bool same = true;
    for (const Bf16Blocks & block : {Bf16Blocks{32, 32}, Bf16Blocks{p.n_tokens + 1, 96}, Bf16Blocks{192, 288},
                                     bf16_blocks(p.n_tokens, p.n_columns(), 3)}) {
        same = same && same_bits(in_blocks(p, false, block), y) && same_bits(in_blocks(p, true, block), added);
    }
    check_true(name + ", same bits", same);
    check_true(name + ", same bits by threads",
               same_bits(by_threads(p, false, 3), y) && same_bits(by_threads(p, true, 3), added));
}

void test_products(Direction direction) {
    constexpr int64_t kWide = 320;  // columns of the gradient, a multiple of every smaller block
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        if (!can_dequantize(type)) {
            continue;
        }
        const int64_t block = ggml_blck_size(type);
        if (block == 1) {
            test_product(product(direction, type, 57, 37, 19));
            test_product(product(direction, type, 1, 1, 1));
        }
        test_product(product(direction, type, block * (256 / block), 48, 33));
        test_product(product(direction, type, std::max(5 * block, kWide), 70, 17));
    }
    // several stages of the sum, of the columns and of the tokens
    test_product(product(direction, GGML_TYPE_Q4_K, 768, 555, 37));
    test_product(product(direction, GGML_TYPE_Q4_K, 1280, 1043, 21));
    test_product(product(direction, GGML_TYPE_Q5_0, 1056, 531, 1, 3));
    test_product(product(direction, GGML_TYPE_F16, 553, 541, 530, 8));
    test_product(product(direction, GGML_TYPE_Q6_K, 256, 40, 1050));
    for (const int64_t rank : {1, 4, 16, 40}) {
        test_product(product(direction, GGML_TYPE_Q8_0, 544, 83, 47, rank));
    }
    test_product(product(direction, GGML_TYPE_Q4_K, 256, 16, 40, 4));  // fewer columns than are multiplied at a time
    test_product(product(direction, GGML_TYPE_F16, 9, 5, 40, 4));
    const Product p = product(direction, GGML_TYPE_Q8_0, 64, 64, 40);
    Run nothing(p, true);
    const Floats before = nothing.result();
    nothing.compute({0, 0}, {0, 64});
    nothing.compute({0, 40}, {32, 32});
    check_true("no tokens, no columns", same_bits(nothing.result(), before));
}

// Values that are rounded toward zero would make all results too small by 0.3 %.
void test_bias(Direction direction, ggml_type type) {
    constexpr int64_t kIn = 512, kOut = 384, kTokens = 256;
    Product p{direction, kTokens, {}};
    p.add(Weight(type, kIn, kOut, 0.0f), 1.0f);
    const Floats y = rows(p, whole(p));
    const Doubles expected = exact(p, false);
    Doubles error(y.size());
    double sum = 0.0, along = 0.0;
    for (size_t i = 0; i < error.size(); ++i) {
        error[i] = static_cast<double>(y[i]) - expected[i];
        sum += error[i];
        along += error[i] * expected[i];
    }
    const std::string name = std::string(p.forward() ? "forward " : "gradient ") + ggml_type_name(type);
    check(name + ", mean error in standard errors", std::fabs(sum) / norm(error), 4.0);
    check(name + ", too large or small by", std::fabs(along) / (norm(expected) * norm(expected)), 5e-5);
}

// A token that is not finite spoils its own results only; nor does the scratch that it leaves behind.
void test_special_values(Direction direction) {
    constexpr int64_t kIn = 300, kOut = 75, kTokens = 37;
    Product p = product(direction, GGML_TYPE_F32, kIn, kOut, kTokens, 4);
    const Floats expected = rows(p, whole(p));
    const std::string name = p.forward() ? "forward, a token with " : "gradient, a token with ";
    for (const float special : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
        for (const int64_t token : {0, 20, 36}) {
            for (Term & term : p.terms) {
                const int64_t depth = p.depth(term);
                float & value = term.x[static_cast<size_t>(token * (depth + kPadding) + depth - 1)];
                const float before = value;
                value = special;
                const Floats y = rows(p, whole(p));
                value = before;
                bool as_expected = true;
                for (size_t i = 0; i < y.size(); ++i) {
                    const bool spoiled = static_cast<int64_t>(i) / p.n_columns() == token;
                    as_expected = as_expected && (spoiled ? !std::isfinite(y[i]) : y[i] == expected[i]);
                }
                check_true(name + std::to_string(special), as_expected);
            }
        }
    }
    Product spoiled{direction, 512, {}};
    spoiled.add(Weight(GGML_TYPE_F32, 512, 512), 1.0f);
    Floats none(512 * 512, NAN);
    std::memcpy(spoiled.terms[0].w.data.data(), none.data(), spoiled.terms[0].w.data.size());
    check_true("weights of NaN", std::isnan(whole(spoiled)[0]));
    check_true("nothing is left of them", same_bits(rows(p, whole(p)), expected));
}

// --- the gradients of low-rank matrices

struct Outer {
    int64_t rank, n, n_tokens;
    bool transposed;  // G is stored [n, rank]
    Floats s, l;      // rows with kPadding

    Outer(int64_t rank, int64_t n, int64_t n_tokens, bool transposed)
        : rank(rank),
          n(n),
          n_tokens(n_tokens),
          transposed(transposed),
          s(random_values(n_tokens * (rank + kPadding), 21)),
          l(random_values(n_tokens * (n + kPadding), 22)) {}

    int64_t row_stride() const { return transposed ? 1 : n + kPadding; }
    int64_t col_stride() const { return transposed ? rank + kPadding : 1; }
    size_t size() const { return static_cast<size_t>(transposed ? n * (rank + kPadding) : rank * (n + kPadding)); }
    size_t at(int64_t r, int64_t i) const { return static_cast<size_t>(r * row_stride() + i * col_stride()); }

    Floats empty(bool accumulate) const {
        Floats g(size(), kUntouched);
        for (int64_t r = 0; r < rank; ++r) {
            for (int64_t i = 0; i < n; ++i) {
                g[at(r, i)] = accumulate ? 1.0f : NAN;
            }
        }
        return g;
    }
    Floats elements(const Floats & g) const {
        Floats values;
        for (int64_t r = 0; r < rank; ++r) {
            for (int64_t i = 0; i < n; ++i) {
                values.push_back(g[at(r, i)]);
            }
        }
        return values;
    }
    // `n_blocks` of the columns at a time, from the last to the first
    Floats compute(bool accumulate, int64_t n_blocks) const {
        Floats g = empty(accumulate);
        const int64_t step = n_blocks * bf16_outer_block();
        for (int64_t first = (n - 1) / step * step; first >= 0; first -= step) {
            bf16_outer_product(s.data(), rank + kPadding, rank, l.data(), n + kPadding, n_tokens, kScale, accumulate,
                               g.data(), row_stride(), col_stride(), first, std::min(first + step, n));
        }
        return g;
    }
    Doubles exact(bool of_rounded) const {
        Doubles g(static_cast<size_t>(rank * n), 0.0);
        for (int64_t t = 0; t < n_tokens; ++t) {
            for (int64_t r = 0; r < rank; ++r) {
                const float a = s[static_cast<size_t>(t * (rank + kPadding) + r)];
                const auto factor = static_cast<double>(kScale) * static_cast<double>(of_rounded ? rounded(a) : a);
                for (int64_t i = 0; i < n; ++i) {
                    const float b = l[static_cast<size_t>(t * (n + kPadding) + i)];
                    g[static_cast<size_t>(r * n + i)] += factor * static_cast<double>(of_rounded ? rounded(b) : b);
                }
            }
        }
        return g;
    }

    static constexpr float kScale = 0.7f;
};

void test_outer_product(const Outer & p) {
    const std::string name = "outer product [" + std::to_string(p.rank) + ", " + std::to_string(p.n) +
                             (p.transposed ? "] transposed x " : "] x ") + std::to_string(p.n_tokens);
    constexpr int64_t kAll = 1 << 20;
    const Floats g = p.compute(false, kAll);
    Doubles expected = p.exact(true);
    check(name, relative_difference(p.elements(g), expected), kSumLimit);
    check(name + ", rounding", relative_difference(p.elements(g), p.exact(false)), kRoundingLimit);
    const Floats added = p.compute(true, kAll);
    for (double & value : expected) {
        value += 1.0;
    }
    check(name + ", added", relative_difference(p.elements(added), expected), kSumLimit);
    const auto n_untouched = static_cast<size_t>(std::count(g.begin(), g.end(), kUntouched));
    check_true(name + ", padding untouched", n_untouched == g.size() - static_cast<size_t>(p.rank * p.n));
    bool same = true;
    for (const int64_t n_blocks : {1, 2}) {
        same = same && same_bits(p.compute(false, n_blocks), g) && same_bits(p.compute(true, n_blocks), added);
    }
    check_true(name + ", same bits", same);
}

void test_outer_products() {
    for (const bool transposed : {false, true}) {
        for (const int64_t rank : {1, 5, 16, 33}) {
            for (const int64_t n_tokens : {1, 31, 512, 700}) {
                test_outer_product(Outer(rank, 301, n_tokens, transposed));
            }
            test_outer_product(Outer(rank, 7, 34, transposed));
        }
    }
    Outer p(5, 200, 31, false);
    const Floats expected = p.elements(p.compute(false, 1));
    const auto only_there = [&](bool row, int64_t index) {
        const Floats g = p.elements(p.compute(false, 1));
        bool as_expected = true;
        for (size_t i = 0; i < g.size(); ++i) {
            const auto element = static_cast<int64_t>(i);
            const bool spoiled = (row ? element / p.n : element % p.n) == index;
            as_expected = as_expected && (spoiled ? std::isnan(g[i]) : g[i] == expected[i]);
        }
        return as_expected;
    };
    p.s[4] = NAN;
    check_true("outer product, NaN on the left", only_there(true, 4));
    p.s[4] = random_values(5, 21)[4];
    p.l[199] = NAN;
    check_true("outer product, NaN on the right", only_there(false, 199));
}

// --- what they are made of

void test_dealer() {
    for (const int nth : {1, 2, 5}) {
        Dealer dealer;
        bool once = true;
        for (const int64_t n : {0, 1, 7, 1000, 1000}) {
            std::vector<std::atomic<int>> counts(static_cast<size_t>(n));
            std::vector<std::thread> threads;
            for (int i = 0; i < nth; ++i) {
                threads.emplace_back([&] {
                    dealer.run(n, nth, [&](Range portion) {
                        for (int64_t unit = portion.begin; unit < portion.end; ++unit) {
                            counts.at(static_cast<size_t>(unit))++;
                        }
                    });
                });
            }
            for (std::thread & thread : threads) {
                thread.join();
            }
            once = once && std::all_of(counts.begin(), counts.end(), [](int count) { return count == 1; });
        }
        check_true("every unit is dealt once to " + std::to_string(nth) + " threads, again and again", once);
    }
}

void test_huge_pages() {
    struct Values {
        char bytes[kHugePage + 1];
    };
    const HugePages<Values> values;
    const auto address = reinterpret_cast<uintptr_t>(&*values);
    check_true("memory begins on a huge page", address % kHugePage == 0);
    std::memset((*values).bytes, 1, sizeof(Values));
    prefer_huge_pages((*values).bytes + 1, 5);  // no whole page: nothing to ask for
    check_true("and can be written", (*values).bytes[kHugePage] == 1);
}

}  // namespace

int main() {
    ggml_cpu_init();
    std::printf("tiles: %s\n", detail::tile_unit().name);
    test_dealer();
    test_huge_pages();
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        if (can_dequantize(static_cast<ggml_type>(i))) {
            test_unpack(static_cast<ggml_type>(i));
        }
    }
    for (const Direction direction : {Direction::forward, Direction::input_gradient}) {
        test_special_values(direction);
        test_products(direction);
        for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K}) {
            test_bias(direction, type);
        }
    }
    test_outer_products();
    ggml_quantize_free();
    return ggtune::test::finish();
}
