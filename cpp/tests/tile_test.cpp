// Checks every tile unit of this machine against sums in double precision, and against each other.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "kernels/bf16.h"
#include "kernels/tile.h"

namespace {

using namespace ggtune::kernels::detail;
using namespace ggtune::test;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

constexpr int64_t kStridePadding = 7;              // of C's rows, in floats
constexpr int64_t kPanelPadding = 3 * kTileDepth;  // between panels, in values
constexpr float kUntouched = 0.25f;                // what lies in C's padding

struct Shape {
    int a_panels, b_panels;
    int64_t depth;  // in tiles
    bool accumulate;

    int64_t rows() const { return a_panels * kTileRows; }
    int64_t columns() const { return b_panels * kTileRows; }
    int64_t sum_length() const { return depth * kTileDepth; }
    int64_t c_stride() const { return columns() + kStridePadding; }
    int64_t panel_stride() const { return depth * kTileValues + kPanelPadding; }
    std::string name() const {
        return std::to_string(a_panels) + "x" + std::to_string(b_panels) + " panels, depth " + std::to_string(depth) +
               (accumulate ? ", accumulated" : "");
    }
};

// a [rows][sum_length] and b [sum_length][columns] as they are written in tile.h.
struct Operands {
    Shape shape;
    Floats a, b, c;
    std::vector<Bf16> a_panels, b_panels;

    Operands(const Shape & shape, Floats a_values, Floats b_values)
        : shape(shape), a(std::move(a_values)), b(std::move(b_values)) {
        c = random_values(shape.rows() * shape.c_stride(), 3);
        for (size_t i = 0; i < c.size(); ++i) {
            if (static_cast<int64_t>(i) % shape.c_stride() >= shape.columns()) {
                c[i] = kUntouched;
            }
        }
        a_panels.assign(static_cast<size_t>(shape.a_panels * shape.panel_stride()), to_bf16(NAN));
        b_panels.assign(static_cast<size_t>(shape.b_panels * shape.panel_stride()), to_bf16(NAN));
        for (int64_t k = 0; k < shape.sum_length(); ++k) {
            const int64_t tile = k / kTileDepth * kTileValues;
            const int64_t in_tile = k % kTileDepth;
            for (int64_t i = 0; i < shape.rows(); ++i) {
                a_panels[static_cast<size_t>(i / kTileRows * shape.panel_stride() + tile + i % kTileRows * kTileDepth +
                                             in_tile)] = round(a_at(i, k));
            }
            for (int64_t j = 0; j < shape.columns(); ++j) {
                b_panels[static_cast<size_t>(j / kTileRows * shape.panel_stride() + tile + in_tile / 2 * kTileDepth +
                                             j % kTileRows * 2 + in_tile % 2)] = round(b_at(k, j));
            }
        }
    }

    // the operands are kept as what they are rounded to
    static Bf16 round(float & value) {
        const Bf16 rounded = to_bf16(value);
        value = to_float(rounded);
        return rounded;
    }

    float & a_at(int64_t i, int64_t k) { return a[static_cast<size_t>(i * shape.sum_length() + k)]; }
    float & b_at(int64_t k, int64_t j) { return b[static_cast<size_t>(k * shape.columns() + j)]; }

    Doubles expected() {
        Doubles sums;
        for (int64_t i = 0; i < shape.rows(); ++i) {
            for (int64_t j = 0; j < shape.columns(); ++j) {
                double sum = shape.accumulate ? c[static_cast<size_t>(i * shape.c_stride() + j)] : 0.0;
                for (int64_t k = 0; k < shape.sum_length(); ++k) {
                    sum += static_cast<double>(a_at(i, k)) * b_at(k, j);
                }
                sums.push_back(sum);
            }
        }
        return sums;
    }

    // All but C.
    TileProduct tile_product() const {
        TileProduct product = {};
        product.term.depth = shape.depth;
        product.term.a = a_panels.data();
        product.term.a_stride = shape.panel_stride();
        product.term.b = b_panels.data();
        product.term.b_stride = shape.panel_stride();
        product.c_stride = shape.c_stride();
        product.a_panels = shape.a_panels;
        product.b_panels = shape.b_panels;
        product.accumulate = shape.accumulate;
        return product;
    }

    // C with its padding.
    Floats multiplied(const TileSession & session) const {
        Floats result = c;
        TileProduct product = tile_product();
        product.c = result.data();
        session.multiply(product);
        return result;
    }

    // C without its padding.
    Floats product(const TileUnit & unit) const {
        const Floats padded = multiplied(TileSession(unit));
        Floats dense;
        for (int64_t i = 0; i < shape.rows(); ++i) {
            const auto row = padded.begin() + i * shape.c_stride();
            dense.insert(dense.end(), row, row + shape.columns());
        }
        return dense;
    }
};

Operands random_operands(const Shape & shape) {
    return {shape, random_values(shape.rows() * shape.sum_length(), 1),
            random_values(shape.sum_length() * shape.columns(), 2)};
}

// Integers from -8 to 8: no sum is rounded, in whatever order it is taken.
Operands integer_operands(const Shape & shape) {
    Operands operands = random_operands(shape);
    for (Floats * values : {&operands.a, &operands.b, &operands.c}) {
        for (float & v : *values) {
            v = std::round(std::max(-8.0f, std::min(8.0f, 3.0f * v)));
        }
    }
    const Floats c = operands.c;
    operands = Operands(shape, operands.a, operands.b);
    operands.c = c;
    return operands;
}

std::vector<Shape> all_shapes() {
    std::vector<Shape> shapes;
    for (const int a_panels : {1, 2}) {
        for (const int b_panels : {1, 2}) {
            for (int64_t depth = 1; depth <= 5; ++depth) {
                shapes.push_back({a_panels, b_panels, depth, false});
                shapes.push_back({a_panels, b_panels, depth, true});
            }
        }
    }
    return shapes;
}

void test_products(const TileUnit & unit) {
    for (const Shape & shape : all_shapes()) {
        const std::string name = std::string(unit.name) + " " + shape.name();
        Operands operands = random_operands(shape);
        const Floats product = operands.product(unit);
        check(name, relative_difference(product, operands.expected()), 1e-6);
        check(name + ", against the plain loops", relative_difference(product, operands.product(plain_tiles())), 1e-6);

        const Operands integers = integer_operands(shape);
        check(name + ", integers", same_bits(integers.product(unit), integers.product(plain_tiles())) ? 0.0 : 1.0, 0.0);

        const Floats padded = operands.multiplied(TileSession(unit));
        bool untouched = true;
        for (int64_t i = 0; i < shape.rows(); ++i) {
            for (int64_t j = shape.columns(); j < shape.c_stride(); ++j) {
                untouched = untouched && padded[static_cast<size_t>(i * shape.c_stride() + j)] == kUntouched;
            }
        }
        check(name + ", padding untouched", untouched ? 0.0 : 1.0, 0.0);
    }
}

// Without `accumulate` C may hold anything.
void test_overwrites(const TileUnit & unit) {
    Operands operands = random_operands({2, 2, 3, false});
    const Floats expected = operands.product(unit);
    std::fill(operands.c.begin(), operands.c.end(), NAN);
    check(std::string(unit.name) + " overwrites NaN", same_bits(operands.product(unit), expected) ? 0.0 : 1.0, 0.0);
}

// One value of A or B that is not finite makes its row or column what IEEE arithmetic says, and nothing else.
void test_special_values(const TileUnit & unit) {
    const Shape shape = {2, 2, 3, true};
    constexpr int64_t kLine = 21, kPlace = 45;
    const auto magnitudes = [](int64_t n, uint32_t seed) {
        Floats values = random_values(n, seed);
        std::transform(values.begin(), values.end(), values.begin(), [](float v) { return std::abs(v) + 0.5f; });
        return values;
    };
    const Floats a = magnitudes(shape.rows() * shape.sum_length(), 4);
    const Floats b = magnitudes(shape.sum_length() * shape.columns(), 5);
    const Floats finite = Operands(shape, a, b).product(unit);
    for (const float special : {NAN, INFINITY, -INFINITY}) {
        for (const bool in_a : {true, false}) {
            Floats special_a = a, special_b = b;
            (in_a ? special_a[kLine * static_cast<size_t>(shape.sum_length()) + kPlace]
                  : special_b[kPlace * static_cast<size_t>(shape.columns()) + kLine]) = special;
            const Floats product = Operands(shape, special_a, special_b).product(unit);
            bool as_expected = true;
            for (int64_t i = 0; i < shape.rows(); ++i) {
                for (int64_t j = 0; j < shape.columns(); ++j) {
                    const auto at = static_cast<size_t>(i * shape.columns() + j);
                    const bool affected = (in_a ? i : j) == kLine;
                    const float expected = affected ? special : finite[at];
                    as_expected =
                        as_expected && (std::isnan(expected) ? std::isnan(product[at]) : product[at] == expected);
                }
            }
            check(std::string(unit.name) + " " + std::to_string(special) + (in_a ? " in A" : " in B"),
                  as_expected ? 0.0 : 1.0, 0.0);
        }
    }
}

// How the caches are used changes nothing of the sums.
void test_streams(const TileUnit & unit) {
    const Operands operands = random_operands({2, 2, 5, true});
    const Floats next(4096);
    Floats first;
    for (const Streamed streamed : {Streamed::none, Streamed::a, Streamed::b}) {
        TileProduct product = operands.tile_product();
        Floats c = operands.c;
        product.c = c.data();
        product.streamed = streamed;
        product.next_c = next.data();
        TileSession(unit).multiply(product);
        first = first.empty() ? c : first;
        check(std::string(unit.name) + " streaming " + std::to_string(static_cast<int>(streamed)),
              same_bits(c, first) ? 0.0 : 1.0, 0.0);
    }
}

// A unit that is taken into use again inside its own use is given back as it was.
void test_sessions(const TileUnit & unit) {
    const Operands wide = random_operands({2, 2, 2, false});
    const Operands narrow = random_operands({1, 1, 5, true});
    const TileSession outer(unit);
    const Floats before = wide.multiplied(outer);
    narrow.multiplied(TileSession(unit));
    check(std::string(unit.name) + " after a session inside", same_bits(wide.multiplied(outer), before) ? 0.0 : 1.0,
          0.0);
}

struct Candidate {
    const char * name;
    const TileUnit * unit;
    const char * missing;  // why, where it is
};

}  // namespace

int main() {
    const Candidate candidates[] = {
        {"plain", &plain_tiles(), ""},
        {"amx", amx_tiles(),
#if defined(__x86_64__)
         "no AMX on this CPU, or its use is refused"
#else
         "no x86 CPU"
#endif
        },
        {"arm", arm_tiles(),
#if defined(__aarch64__)
         "no bf16 instructions on this CPU, or none known to the compiler"
#else
         "no Arm CPU"
#endif
        },
    };
    const TileUnit * best = nullptr;
    for (const Candidate & candidate : candidates) {
        if (candidate.unit == nullptr) {
            std::printf("skipped: %s (%s)\n", candidate.name, candidate.missing);
            continue;
        }
        best = candidate.unit;
        test_products(*candidate.unit);
        test_overwrites(*candidate.unit);
        test_special_values(*candidate.unit);
        test_streams(*candidate.unit);
        test_sessions(*candidate.unit);
    }
    check(std::string("the best unit is ") + best->name, &tile_unit() == best ? 0.0 : 1.0, 0.0);
    return finish();
}
