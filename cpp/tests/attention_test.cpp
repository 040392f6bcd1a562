// Checks attention forward and backward against the loops that define them, those against finite differences, and that
// the number of threads changes no bit.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/attention.h"

namespace {

using namespace ggtune::kernels;
using ggtune::test::check;
using ggtune::test::random_values;
using ggtune::test::relative_difference;
using ggtune::test::same_bits;
using Floats = std::vector<float>;

// Samples one after another, each causal; window 0: no limit.
struct Packing {
    std::vector<int32_t> first_key, end_key;

    explicit Packing(const std::vector<int32_t> & lengths, int32_t window = 0) {
        int32_t begin = 0;
        for (const int32_t length : lengths) {
            for (int32_t t = begin; t < begin + length; ++t) {
                first_key.push_back(window == 0 ? begin : std::max(begin, t + 1 - window));
                end_key.push_back(t + 1);
            }
            begin += length;
        }
    }
};

struct Case {
    std::string name;
    int64_t n_heads, n_heads_kv, head_dim, head_dim_v;
    Packing packing;
    float pre_scale, softcap, post_scale;
    bool accumulate = false;
    int64_t padding = 0;                         // floats between heads, and five times that between tokens
    std::optional<Floats> sinks = std::nullopt;  // by head

    Case with_sinks(const Floats & values) const {
        Case c = *this;
        c.name += ", sinks";
        c.sinks = values;
        return c;
    }
};

// Tensor of all heads and its gradient or result.
struct Tensor {
    Floats values;
    int64_t token_stride, head_stride;

    Tensor(const Case & c, int64_t n_heads, int64_t dim, uint32_t seed)
        : token_stride(n_heads * (dim + c.padding) + 5 * c.padding), head_stride(dim + c.padding) {
        values = random_values(token_stride * static_cast<int64_t>(c.packing.first_key.size()), seed);
    }
    ConstHeads read() const { return {values.data(), token_stride, head_stride}; }
    Heads write() { return {values.data(), token_stride, head_stride}; }
};

struct Result {
    Tensor out;
    Floats lse;
    Tensor dq, dk, dv;
};

AttentionShape shape_of(const Case & c) {
    return {static_cast<int64_t>(c.packing.first_key.size()),
            c.n_heads,
            c.n_heads_kv,
            c.head_dim,
            c.head_dim_v,
            c.pre_scale,
            c.softcap,
            c.post_scale,
            c.packing.first_key.data(),
            c.packing.end_key.data(),
            c.sinks ? c.sinks->data() : nullptr};
}

struct Inputs {
    Tensor q, k, v, d_out;

    explicit Inputs(const Case & c)
        : q(c, c.n_heads, c.head_dim, 1),
          k(c, c.n_heads_kv, c.head_dim, 2),
          v(c, c.n_heads_kv, c.head_dim_v, 3),
          d_out(c, c.n_heads, c.head_dim_v, 4) {}
};

// The outputs hold numbers beforehand, the same ones for everybody: between the rows they have to stay.
Result initial_result(const Case & c) {
    const AttentionShape shape = shape_of(c);
    return {Tensor(c, c.n_heads, c.head_dim_v, 5), Floats(static_cast<size_t>(c.n_heads * shape.n_tokens)),
            Tensor(c, c.n_heads, c.head_dim, 6), Tensor(c, c.n_heads_kv, c.head_dim, 7),
            Tensor(c, c.n_heads_kv, c.head_dim_v, 8)};
}

struct Kernels {
    const char * name;
    decltype(&attention_forward) forward;
    decltype(&attention_backward) backward;
};

constexpr Kernels kFloat32 = {"", attention_forward, attention_backward};
constexpr Kernels kBf16 = {"bf16, ", attention_forward_bf16, attention_backward_bf16};

Result run_kernels(const Kernels & kernels, const Case & c, const Inputs & in, int nth) {
    const AttentionShape shape = shape_of(c);
    Result r = initial_result(c);
    for (int ith = 0; ith < nth; ++ith) {
        kernels.forward(shape, in.q.read(), in.k.read(), in.v.read(), r.out.write(), r.lse.data(), ith, nth);
    }
    for (int ith = 0; ith < nth; ++ith) {
        kernels.backward(shape, in.q.read(), in.k.read(), in.v.read(), r.out.read(), r.lse.data(), in.d_out.read(),
                         r.dq.write(), r.dk.write(), r.dv.write(), c.accumulate, ith, nth);
    }
    return r;
}

Result run_reference(const Case & c, const Inputs & in) {
    const AttentionShape shape = shape_of(c);
    Result r = initial_result(c);
    attention_forward_reference(shape, in.q.read(), in.k.read(), in.v.read(), r.out.write(), r.lse.data());
    attention_backward_reference(shape, in.q.read(), in.k.read(), in.v.read(), in.d_out.read(), r.dq.write(),
                                 r.dk.write(), r.dv.write(), c.accumulate);
    return r;
}

// Largest difference relative to 1 + |b|; infinities have to be the same ones.
double lse_difference(const Floats & a, const Floats & b) {
    double largest = 0.0;
    for (size_t i = 0; i < b.size(); ++i) {
        const double difference = a[i] == b[i] ? 0.0 : std::fabs(static_cast<double>(a[i]) - b[i]);
        largest = difference <= largest ? largest : std::isinf(b[i]) ? INFINITY : difference / (1.0 + std::fabs(b[i]));
    }
    return largest;
}

// |a - b| / |b|, or / |d_out| where that is more: the gradient of a token that sees one key is exactly zero.
double gradient_difference(const Tensor & a, const Tensor & b, const Tensor & d_out) {
    const std::vector<double> expected(b.values.begin(), b.values.end());
    const std::vector<double> incoming(d_out.values.begin(), d_out.values.end());
    std::vector<double> difference(expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
        difference[i] = a.values[i] - expected[i];
    }
    using ggtune::test::norm;
    return norm(difference) / std::max(norm(expected), norm(incoming));
}

void test_threads(const Kernels & kernels, const Case & c, const Inputs & in, const Result & one) {
    int n_different = 0;
    for (const int nth : {2, 3, 7}) {
        const Result other = run_kernels(kernels, c, in, nth);
        n_different += !(same_bits(other.out.values, one.out.values) && same_bits(other.lse, one.lse) &&
                         same_bits(other.dq.values, one.dq.values) && same_bits(other.dk.values, one.dk.values) &&
                         same_bits(other.dv.values, one.dv.values));
    }
    check(kernels.name + c.name + ": same bits for 1, 2, 3, 7 threads", n_different, 0.0);
}

struct Limits {
    double out, lse, gradients;
};

void test_kernels(const Kernels & kernels, const Case & c, const Inputs & in, const Result & expected,
                  const Limits & limits) {
    const std::string name = kernels.name + c.name;
    const Result one = run_kernels(kernels, c, in, 1);
    check(name + ": out", relative_difference(one.out.values, expected.out.values), limits.out);
    check(name + ": log-sum-exp", lse_difference(one.lse, expected.lse), limits.lse);
    check(name + ": dq", gradient_difference(one.dq, expected.dq, in.d_out), limits.gradients);
    check(name + ": dk", gradient_difference(one.dk, expected.dk, in.d_out), limits.gradients);
    check(name + ": dv", gradient_difference(one.dv, expected.dv, in.d_out), limits.gradients);
    test_threads(kernels, c, in, one);
}

// Rounding to bf16 moves q, k, v, d_out, the weights and their gradients by 2^-9 of a value at most, 1.1e-3 in the root
// of the mean square. A logit of order 1 so moves by 1.6e-3 (one alone by several times that: the log-sum-exp of a
// token with one key), and outputs, a weight's error and the value's together, by 2.5e-3 in norm; gradients have two
// more roundings.
constexpr Limits kBf16Limits = {4e-3, 1.5e-2, 5e-3};

void test_case(const Case & c, const Limits & bf16_limits = kBf16Limits) {
    const Inputs in(c);
    const Result expected = run_reference(c, in);
    test_kernels(kFloat32, c, in, expected, {2e-6, 1e-6, 5e-6});
    test_kernels(kBf16, c, in, expected, bf16_limits);
}

void test_against_reference() {
    const auto scale = [](int64_t dim) { return 1.0f / std::sqrt(static_cast<float>(dim)); };
    const Packing samples({1, 77, 130, 1, 41, 3, 5, 2, 200, 1});
    for (const int64_t dim : {32, 64, 80, 96, 128, 256}) {
        const std::string name = "head size " + std::to_string(dim);
        test_case({name, 3, 3, dim, dim, Packing({259}), scale(dim), 0.0f, 1.0f});
        test_case({name + ", grouped, packed", 4, 2, dim, dim, samples, scale(dim), 0.0f, 1.0f, true, 4});
    }
    test_case({"head sizes 40 and 24", 4, 2, 40, 24, samples, scale(40), 0.0f, 1.0f, true});
    test_case({"head size 7, values 5", 2, 1, 7, 5, samples, scale(7), 0.0f, 1.0f, false, 3});
    test_case({"one token", 2, 1, 64, 64, Packing({1}), scale(64), 0.0f, 1.0f});
    test_case({"tokens alone", 2, 1, 32, 32, Packing(std::vector<int32_t>(201, 1)), scale(32), 0.0f, 1.0f});
    test_case({"one key head, one sample", 6, 1, 64, 64, Packing({391}), scale(64), 0.0f, 1.0f});
    test_case({"window 50", 2, 2, 64, 64, Packing({313}, 50), scale(64), 0.0f, 1.0f});
    test_case({"window 200, packed", 4, 2, 64, 64, Packing({90, 413, 7}, 200), scale(64), 0.0f, 1.0f});
    test_case({"window 1", 2, 2, 32, 32, Packing({150}, 1), scale(32), 0.0f, 1.0f});
    test_case({"soft cap after the scale", 4, 2, 64, 64, samples, scale(64), 1.5f, 1.0f});
    test_case({"soft cap before the scale", 4, 2, 64, 64, Packing({300}, 120), 1.0f, 20.0f, scale(64), true});
    // logits of order 8, and so their errors
    test_case({"large logits", 2, 2, 64, 64, Packing({257}), 1.0f, 0.0f, 1.0f}, {1.5e-2, 1.5e-2, 2e-2});
    test_case({"longer than a chunk", 2, 1, 64, 64, Packing({1100}), scale(64), 0.0f, 1.0f, true});
    test_case({"window across chunks", 2, 1, 32, 32, Packing({1100}, 600), scale(32), 0.0f, 1.0f});

    // about as heavy as the keys together, a part of them, hardly anything, all but everything
    const Floats sinks = {4.0f, 0.5f, -3.0f, 9.0f};
    for (const int64_t dim : {64, 80}) {
        const std::string name = "head size " + std::to_string(dim);
        test_case(Case{name, 4, 2, dim, dim, samples, scale(dim), 0.0f, 1.0f}.with_sinks(sinks));
        test_case(
            Case{name + ", accumulated", 4, 1, dim, 32, Packing({259}), scale(dim), 0.0f, 1.0f, true, 4}.with_sinks(
                sinks));
    }
    test_case(Case{"window 50", 4, 4, 64, 64, Packing({313}, 50), scale(64), 0.0f, 1.0f}.with_sinks(sinks));
    test_case(Case{"longer than a chunk", 2, 1, 64, 64, Packing({1100}), scale(64), 0.0f, 1.0f}.with_sinks({2, 8}));
    test_case(Case{"soft cap", 4, 2, 64, 64, samples, scale(64), 1.5f, 0.8f}.with_sinks(sinks));

    Case whole = {"every token sees all", 2, 2, 64, 64, Packing({270}), scale(64), 0.0f, 1.0f};
    std::fill(whole.packing.first_key.begin(), whole.packing.first_key.end(), 0);
    std::fill(whole.packing.end_key.begin(), whole.packing.end_key.end(), 270);
    test_case(whole);
    Case irregular = whole;
    irregular.name = "irregular ranges";
    std::mt19937 engine(9);
    for (size_t t = 0; t < irregular.packing.first_key.size(); ++t) {
        const auto a = static_cast<int32_t>(engine() % 271);
        const auto b = static_cast<int32_t>(t % 3 == 0 ? a + 2 : engine() % 271);
        irregular.packing.first_key[t] = std::min(a, b);
        irregular.packing.end_key[t] = std::min(270, std::max(a, b));
    }
    test_case(irregular);
    Case blind = {"tokens without keys", 2, 1, 64, 64, Packing({150, 151}), scale(64), 0.0f, 1.0f};
    for (const size_t t : {0, 1, 70, 149, 150, 300}) {
        blind.packing.end_key[t] = blind.packing.first_key[t];
    }
    test_case(blind);
    test_case(blind.with_sinks({1.0f, 3.0f}));
    blind.name = "tokens without keys, soft cap";
    blind.softcap = 2.0f;
    test_case(blind);
}

// The part of the error of bf16 products that is a multiple of the result: rounding has to be as often up as down.
void test_bias() {
    const Case c = {"", 8, 2, 64, 64, Packing({512}), 0.125f, 0.0f, 1.0f};
    const Inputs in(c);
    const Result expected = run_reference(c, in);
    const Result found = run_kernels(kBf16, c, in, 1);
    const auto bias = [](const Tensor & a, const Tensor & b) {
        double along = 0.0, size = 0.0;
        for (size_t i = 0; i < b.values.size(); ++i) {
            along += (static_cast<double>(a.values[i]) - b.values[i]) * b.values[i];
            size += static_cast<double>(b.values[i]) * b.values[i];
        }
        return std::fabs(along / size);
    };
    check("bf16, gradients alone: dq", relative_difference(found.dq.values, expected.dq.values), 5e-3);
    check("bf16, gradients alone: dk", relative_difference(found.dk.values, expected.dk.values), 5e-3);
    check("bf16, gradients alone: dv", relative_difference(found.dv.values, expected.dv.values), 5e-3);
    // five standard errors: 5 * 3e-3 / sqrt(independent errors)
    check("bf16, bias: out", bias(found.out, expected.out), 2e-4);
    check("bf16, bias: dq", bias(found.dq, expected.dq), 2e-4);
    check("bf16, bias: dk", bias(found.dk, expected.dk), 2e-4);
    check("bf16, bias: dv", bias(found.dv, expected.dv), 2e-4);
}

// Logits that lie hundreds apart: all but the largest weigh nothing, however far below they are.
void test_distant_logits() {
    const Case c = {"", 2, 1, 64, 64, Packing({150}), 1.0f, 0.0f, 100.0f};
    const Inputs in(c);
    const Result expected = run_reference(c, in);
    const Result found = run_kernels(kFloat32, c, in, 1);
    // errors of logits of order 1000
    check("distant logits: out", relative_difference(found.out.values, expected.out.values), 1e-3);
    check("distant logits: dq", relative_difference(found.dq.values, expected.dq.values), 1e-2);
    check("distant logits: dk", relative_difference(found.dk.values, expected.dk.values), 1e-2);
    check("distant logits: dv", relative_difference(found.dv.values, expected.dv.values), 1e-3);
}

// A sink that outweighs the keys by far leaves zeros, one that is far below them nothing but their bits.
void test_distant_sinks(const Kernels & kernels) {
    const Case plain = {"", 2, 1, 64, 64, Packing({150, 3}), 0.125f, 0.0f, 1.0f};
    const Inputs in(plain);
    const Result expected = run_kernels(kernels, plain, in, 1);
    const Result same = run_kernels(kernels, plain.with_sinks({-INFINITY, -1e30f}), in, 1);
    const bool no_change = same_bits(same.out.values, expected.out.values) && same_bits(same.lse, expected.lse) &&
                           same_bits(same.dq.values, expected.dq.values) &&
                           same_bits(same.dk.values, expected.dk.values) &&
                           same_bits(same.dv.values, expected.dv.values);
    check(std::string(kernels.name) + "sinks without weight change nothing", no_change ? 0.0 : 1.0, 0.0);
    const Result none = run_kernels(kernels, plain.with_sinks({1e4f, 200.0f}), in, 1);
    const bool all_zero = [&] {
        for (const Tensor * t : {&none.out, &none.dq, &none.dk, &none.dv}) {
            if (std::any_of(t->values.begin(), t->values.end(), [](float x) { return x != 0.0f; })) {
                return false;
            }
        }
        return none.lse.front() == 1e4f;
    }();
    check(std::string(kernels.name) + "sinks with all of the weight", all_zero ? 0.0 : 1.0, 0.0);
}

// A value that is not finite shows in every token that depends on it, and in no other sample.
void test_not_finite(const Kernels & kernels) {
    const Case c = {"", 2, 1, 64, 64, Packing({150, 151}), 0.125f, 0.0f, 1.0f};
    const char * names[4] = {"q", "k", "v", "d_out"};
    for (const float value : {NAN, INFINITY}) {
        for (int n = 0; n < 4; ++n) {
            constexpr int64_t kToken = 70;
            Inputs in(c);
            Tensor * const tensors[4] = {&in.q, &in.k, &in.v, &in.d_out};
            tensors[n]->values[static_cast<size_t>(kToken * tensors[n]->token_stride + 3)] = value;
            const Result r = run_kernels(kernels, c, in, 1);
            const auto count_finite = [&](const Tensor & t, int64_t begin, int64_t end) {
                return std::count_if(t.values.begin() + begin * t.token_stride, t.values.begin() + end * t.token_stride,
                                     [](float x) { return std::isfinite(x); });
            };
            int64_t n_hurt = 0;
            for (const Tensor * t : {&r.out, &r.dq, &r.dk, &r.dv}) {
                n_hurt += 151 * t->token_stride - count_finite(*t, 150, 301);
            }
            const std::string name = std::string(kernels.name) + (std::isnan(value) ? "NaN in " : "infinity in ");
            check(name + names[n] + ": values hurt in the other sample", static_cast<double>(n_hurt), 0.0);
            const Tensor & own = n == 3 ? r.dq : r.out;  // head 0 of the token
            const float * row = own.values.data() + kToken * own.token_stride;
            const bool shows =
                n == 2 ? !std::isfinite(row[3]) : std::none_of(row, row + 64, [](float x) { return std::isfinite(x); });
            check(name + names[n] + ": hidden", shows ? 0.0 : 1.0, 0.0);
        }
    }
}

// sum(out * d_out) from the formula alone, in double, dense tensors [token, head, dim].
double loss(const AttentionShape & s, const std::vector<double> & q, const std::vector<double> & k,
            const std::vector<double> & v, const Floats & d_out) {
    double sum = 0.0;
    for (int64_t t = 0; t < s.n_tokens; ++t) {
        for (int64_t h = 0; h < s.n_heads; ++h) {
            const int64_t head_kv = h / (s.n_heads / s.n_heads_kv);
            double numerator = 0.0, denominator = s.sinks != nullptr ? std::exp(static_cast<double>(s.sinks[h])) : 0.0;
            for (int64_t key = s.first_key[t]; key < s.end_key[t]; ++key) {
                double x = 0.0, value = 0.0;
                for (int64_t i = 0; i < s.head_dim; ++i) {
                    x += q[(t * s.n_heads + h) * s.head_dim + i] * k[(key * s.n_heads_kv + head_kv) * s.head_dim + i];
                }
                for (int64_t i = 0; i < s.head_dim_v; ++i) {
                    value += d_out[(t * s.n_heads + h) * s.head_dim_v + i] *
                             v[(key * s.n_heads_kv + head_kv) * s.head_dim_v + i];
                }
                x *= s.pre_scale;
                const double p = std::exp(s.post_scale * (s.softcap == 0 ? x : s.softcap * std::tanh(x / s.softcap)));
                numerator += p * value;
                denominator += p;
            }
            sum += numerator / denominator;
        }
    }
    return sum;
}

void test_finite_differences(const std::optional<Floats> & sinks) {
    for (const float softcap : {0.0f, 2.0f}) {
        const Case c = {"", 4, 2, 8, 8, Packing({5, 13, 1}, 9), 0.7f, softcap, 0.9f, false, 0, sinks};
        const AttentionShape shape = shape_of(c);
        const Inputs in(c);
        const Result result = run_kernels(kFloat32, c, in, 1);
        std::vector<double> inputs[3];
        const Tensor * tensors[3] = {&in.q, &in.k, &in.v};
        const Tensor * gradients[3] = {&result.dq, &result.dk, &result.dv};
        const char * names[3] = {"dq", "dk", "dv"};
        for (int n = 0; n < 3; ++n) {
            inputs[n].assign(tensors[n]->values.begin(), tensors[n]->values.end());
        }
        for (int n = 0; n < 3; ++n) {
            std::vector<double> slopes;
            for (double & x : inputs[n]) {
                constexpr double kStep = 1e-5;
                const double x0 = x;
                x = x0 + kStep;
                const double above = loss(shape, inputs[0], inputs[1], inputs[2], in.d_out.values);
                x = x0 - kStep;
                const double below = loss(shape, inputs[0], inputs[1], inputs[2], in.d_out.values);
                x = x0;
                slopes.push_back((above - below) / (2 * kStep));
            }
            check(std::string("finite differences, ") + names[n] + (softcap != 0 ? ", soft cap" : "") +
                      (sinks ? ", sinks" : ""),
                  relative_difference(gradients[n]->values, slopes), 1e-6);
        }
    }
}

}  // namespace

int main() {
    test_finite_differences(std::nullopt);
    test_finite_differences(Floats{0.5f, 2.0f, -1.0f, 1.5f});
    test_against_reference();
    test_bias();
    test_distant_logits();
    test_distant_sinks(kFloat32);
    test_distant_sinks(kBf16);
    test_not_finite(kFloat32);
    test_not_finite(kBf16);
    return ggtune::test::finish();
}
