// Checks the moves on the grid against the levels that ggml's own dequantization knows: all values that a weight takes
// when the bytes of its block's codes are anything and its scales stay.

#include "kernels/grid.h"

#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"

namespace {

using namespace ggtune::kernels;
using ggtune::test::check;
using ggtune::test::random_values;
using Bytes = std::vector<uint8_t>;
using Floats = std::vector<float>;

constexpr int64_t kRow = 512;

// Where the codes of a block lie (ggml-common.h), and how many levels they have.
struct Layout {
    ggml_type type;
    size_t begin, end;
    size_t n_levels;  // MXFP4: 0 and -0 are one
};

constexpr Layout kLayouts[] = {
    {GGML_TYPE_Q4_0, 2, 18, 16},  {GGML_TYPE_Q4_1, 4, 20, 16},   {GGML_TYPE_Q5_0, 2, 22, 32},
    {GGML_TYPE_Q5_1, 4, 24, 32},  {GGML_TYPE_Q8_0, 2, 34, 256},  {GGML_TYPE_Q2_K, 16, 80, 4},
    {GGML_TYPE_Q3_K, 0, 96, 8},   {GGML_TYPE_Q4_K, 16, 144, 16}, {GGML_TYPE_Q5_K, 16, 176, 32},
    {GGML_TYPE_Q6_K, 0, 192, 64}, {GGML_TYPE_IQ4_NL, 2, 18, 16}, {GGML_TYPE_IQ4_XS, 8, 136, 16},
    {GGML_TYPE_MXFP4, 1, 17, 15},
};

Floats dequantized(ggml_type type, const Bytes & bytes) {
    Floats values(static_cast<size_t>(kRow));
    ggml_get_type_traits(type)->to_float(bytes.data(), values.data(), kRow);
    return values;
}

struct Row {
    Layout layout;
    ggml_type type;
    Bytes bytes;
    Floats values;
    std::vector<Floats> levels;  // by weight, ascending

    explicit Row(const Layout & layout) : layout(layout), type(layout.type), bytes(ggml_row_size(type, kRow)) {
        // a mean other than zero gives the mins their weight; the first block of the second half is empty
        Floats source = random_values(kRow, 3, 0.05f);
        for (size_t i = 0; i < source.size(); ++i) {
            source[i] = i >= kRow / 2 && i < kRow / 2 + 32 ? 0.0f : source[i] + 0.02f;
        }
        ggml_quantize_chunk(type, source.data(), bytes.data(), 0, 1, kRow, nullptr);
        values = dequantized(type, bytes);
        levels.resize(values.size());
        std::mt19937 engine(5);
        Bytes any = bytes;
        for (size_t n = 0; n < 32 * layout.n_levels; ++n) {
            randomize_codes(any, engine);
            const Floats found = dequantized(type, any);
            for (size_t i = 0; i < found.size(); ++i) {
                levels[i].push_back(found[i]);
            }
        }
        for (Floats & all : levels) {
            std::sort(all.begin(), all.end());
            all.erase(std::unique(all.begin(), all.end()), all.end());
        }
    }

    void randomize_codes(Bytes & row, std::mt19937 & engine) const {
        for (size_t i = 0; i < row.size(); ++i) {
            const size_t at = i % ggml_type_size(type);
            if (at >= layout.begin && at < layout.end) {
                row[i] = static_cast<uint8_t>(engine());
            }
        }
    }

    // The levels that a weight may be moved to: -128 of Q8_0 is none of them.
    Floats allowed(size_t i) const {
        Floats all = levels[i];
        if (type == GGML_TYPE_Q8_0 && all.size() > 1) {
            all.erase(std::abs(all.front()) > std::abs(all.back()) ? all.begin() : all.end() - 1);
        }
        return all;
    }

    double step(size_t i) const {  // the mean one
        const Floats & all = levels[i];
        return all.size() < 2 ? 0.0
                              : (static_cast<double>(all.back()) - all.front()) / static_cast<double>(all.size() - 1);
    }

    // Normal changes of so many steps.
    Floats changes(double steps, uint32_t seed) const {
        Floats delta = random_values(kRow, seed);
        for (size_t i = 0; i < delta.size(); ++i) {
            delta[i] *= static_cast<float>(steps * (step(i) > 0 ? step(i) : 0.01));
        }
        return delta;
    }

    std::string name(const std::string & what) const { return std::string(ggml_type_name(type)) + " " + what; }
};

GridMoves move(const Row & row, const Floats & delta, uint64_t key, Rounding rounding, Bytes & moved) {
    moved.assign(row.bytes.size(), 0xee);
    return move_on_grid(row.type, row.bytes.data(), delta.data(), kRow, key, 0, rounding, moved.data());
}

size_t n_different(const Floats & a, const Floats & b) {
    size_t n = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        n += a[i] != b[i] ? 1 : 0;
    }
    return n;
}

void test_levels(const Row & row) {
    size_t wrong = 0;
    for (const Floats & all : row.levels) {
        wrong += all.size() != row.layout.n_levels && all.size() != 1 ? 1 : 0;  // one under a scale of 0
    }
    check(row.name("levels found by dequantizing"), static_cast<double>(wrong), 0);
    check(row.name("has a grid"), has_grid(row.type) ? 0 : 1, 0);
}

void test_nothing_to_move(const Row & row) {
    Bytes moved;
    for (const Rounding rounding : {Rounding::unbiased, Rounding::nearest}) {
        const GridMoves moves = move(row, Floats(static_cast<size_t>(kRow)), 7, rounding, moved);
        check(row.name("moved by nothing keeps its bytes"), moved != row.bytes ? 1 : 0, 0);
        check(row.name("moves counted for nothing"), static_cast<double>(moves.n_moved), 0);
    }
}

// Every value is one of the old grid's: the level below or above where it should be, or the end that is nearest.
void test_moves_stay_on_the_grid(const Row & row, double steps) {
    const Floats delta = row.changes(steps, 11);
    Bytes moved;
    size_t off_grid = 0, far = 0, not_nearest = 0, wrong_count = 0;
    double worst_lost = 0;
    Floats lost(delta.size());
    const bool any = cut_off_by_grid(row.type, row.bytes.data(), delta.data(), kRow, lost.data());
    bool any_lost = false;
    for (const Rounding rounding : {Rounding::unbiased, Rounding::nearest}) {
        for (uint64_t key = 0; key < 20; ++key) {
            const GridMoves moves = move(row, delta, key, rounding, moved);
            const Floats found = dequantized(row.type, moved);
            wrong_count += moves.n_moved != static_cast<int64_t>(n_different(found, row.values)) ? 1 : 0;
            for (size_t i = 0; i < found.size(); ++i) {
                const Floats all = row.allowed(i);
                const auto at = std::lower_bound(all.begin(), all.end(), found[i]);
                if (at == all.end() || *at != found[i]) {
                    ++off_grid;
                    continue;
                }
                const double target = static_cast<double>(row.values[i]) + delta[i];
                const double inside =
                    std::clamp(target, static_cast<double>(all.front()), static_cast<double>(all.back()));
                const double slack = 1e-4 * row.step(i) + 1e-6 * std::abs(target);
                const double below = at == all.begin() ? found[i] : at[-1];
                const double above = at + 1 == all.end() ? found[i] : at[1];
                far += inside < below - slack || inside > above + slack ? 1 : 0;
                if (rounding == Rounding::nearest) {
                    const double best = std::min(inside - below, above - inside);
                    const double others = at == all.begin()     ? above - inside
                                          : at + 1 == all.end() ? inside - below
                                                                : best;
                    not_nearest += all.size() > 1 && std::abs(found[i] - inside) > std::abs(others) + slack ? 1 : 0;
                }
                const double cut = row.step(i) > 0 ? target - inside : static_cast<double>(delta[i]);
                any_lost = any_lost || std::abs(cut) > slack;
                worst_lost =
                    std::max(worst_lost, (std::abs(lost[i] - cut) - slack) / (std::abs(cut) + row.step(i) + 1e-30));
            }
        }
    }
    const std::string size = " of " + std::to_string(steps).substr(0, 4) + " steps";
    check(row.name("off the grid, moves" + size), static_cast<double>(off_grid), 0);
    check(row.name("beyond the neighbours, moves" + size), static_cast<double>(far), 0);
    check(row.name("not nearest, moves" + size), static_cast<double>(not_nearest), 0);
    check(row.name("wrong counts, moves" + size), static_cast<double>(wrong_count), 0);
    check(row.name("cut off by the ends, moves" + size), worst_lost, 1e-4);
    check(row.name("says that something is cut off" + size), any != any_lost && any_lost ? 1 : 0, 0);
}

// The mean over many keys is what it should be, and so is the variance.
void test_unbiased(const Row & row, double steps) {
    constexpr int kNKeys = 1000;
    const Floats delta = row.changes(steps, 13);
    std::vector<double> sum(delta.size());
    std::mt19937_64 keys(17);
    Bytes moved;
    double stated_variance = 0;
    for (int k = 0; k < kNKeys; ++k) {
        stated_variance = move(row, delta, keys(), Rounding::unbiased, moved).variance;
        const Floats found = dequantized(row.type, moved);
        for (size_t i = 0; i < found.size(); ++i) {
            sum[i] += static_cast<double>(found[i]) - row.values[i] - delta[i];
        }
    }
    double total = 0, total_variance = 0, chi_square = 0, variance_inside = 0, worst = 0;
    int n = 0;
    for (size_t i = 0; i < delta.size(); ++i) {
        const Floats all = row.allowed(i);
        const double target = static_cast<double>(row.values[i]) + delta[i];
        if (all.size() < 2 || target <= all.front() || target >= all.back() || row.values[i] < all.front()) {
            continue;
        }
        const auto above = std::upper_bound(all.begin(), all.end(), static_cast<float>(target));
        const double high = *above, low = above[-1];
        const double variance = (target - low) * (high - target);
        variance_inside += variance;
        if (variance < 0.05 * (high - low) * (high - low)) {
            continue;  // too few moves for a mean that is normal
        }
        const double mean = sum[i] / kNKeys, step = high - low;
        total += mean / step;
        total_variance += variance / kNKeys / (step * step);
        chi_square += mean * mean / (variance / kNKeys);
        worst = std::max(worst, std::abs(mean) / std::sqrt(variance / kNKeys));
        ++n;
    }
    check(row.name("weights looked at"), 100, n);
    check(row.name("bias of all, standard errors"), std::abs(total) / std::sqrt(total_variance), 4);
    check(row.name("bias of one, standard errors"), worst, 5);
    check(row.name("variance of the means"), std::abs(chi_square / n - 1), 0.4);
    check(row.name("variance as stated"), std::abs(stated_variance / variance_inside - 1), 1e-3);
}

void test_parts_of_a_row(const Row & row) {
    const Floats delta = row.changes(1.0, 19);
    Bytes whole, parts(row.bytes.size());
    move(row, delta, 23, Rounding::unbiased, whole);
    const size_t half = row.bytes.size() / 2;
    for (size_t part = 0; part < 2; ++part) {
        const int64_t first = static_cast<int64_t>(part) * kRow / 2;
        move_on_grid(row.type, row.bytes.data() + part * half, delta.data() + first, kRow / 2, 23, first,
                     Rounding::unbiased, parts.data() + part * half);
    }
    check(row.name("a row in two parts"), parts != whole ? 1 : 0, 0);
    Bytes other;
    move(row, delta, 24, Rounding::unbiased, other);
    check(row.name("another key moves otherwise"), other == whole ? 1 : 0, 0);
}

void test_steps(const Row & row) {
    const auto block = static_cast<size_t>(ggml_blck_size(row.type));
    Floats squares(static_cast<size_t>(kRow) / block);
    mean_square_steps(row.type, row.bytes.data(), kRow, squares.data());
    double worst = 0;
    for (size_t b = 0; b < squares.size(); ++b) {
        double sum = 0;
        for (size_t i = b * block; i < (b + 1) * block; ++i) {
            sum += row.step(i) * row.step(i);
        }
        const double mean = sum / static_cast<double>(block);
        // an empty block's squares are too small for a float
        worst = std::max(worst, mean > 1e-30 ? std::abs(squares[b] / mean - 1) : static_cast<double>(squares[b]));
    }
    check(row.name("mean square of the steps"), worst, 1e-3);
}

void test_lowest_byte_of_q8_0() {
    const Row row({GGML_TYPE_Q8_0, 2, 34, 256});
    Bytes source = row.bytes, moved(source.size());
    Floats delta(static_cast<size_t>(kRow));
    for (size_t block = 0; block < kRow / 32; ++block) {
        auto * codes = reinterpret_cast<int8_t *>(source.data() + 34 * block + 2);
        uint16_t half = ggml_fp32_to_fp16(block % 2 == 0 ? 0.5f : -0.5f);
        std::memcpy(source.data() + 34 * block, &half, sizeof half);
        for (size_t i = 0; i < 32; ++i) {
            codes[i] = i < 16 ? -128 : -127;
            // of -128: nothing, down, and (8 of them) up; of -127: down, and 8 of them nothing
            const float down = block % 2 == 0 ? -0.2f : 0.2f;
            delta[32 * block + i] = i < 4 || i >= 24 ? 0.0f : i >= 8 && i < 16 ? -down : down;
        }
    }
    size_t made = 0, lost = 0, n_up = 0, cut = 0;
    for (uint64_t key = 0; key < 50; ++key) {
        move_on_grid(GGML_TYPE_Q8_0, source.data(), delta.data(), kRow, key, 0, Rounding::unbiased, moved.data());
        for (size_t i = 0; i < static_cast<size_t>(kRow); ++i) {
            const int before = static_cast<int8_t>(source[34 * (i / 32) + 2 + i % 32]);
            const int after = static_cast<int8_t>(moved[34 * (i / 32) + 2 + i % 32]);
            made += after == -128 && before != -128 ? 1 : 0;
            lost += before == -128 && after != -128 && i % 32 < 8 ? 1 : 0;
            n_up += before == -128 && after == -127 ? 1 : 0;
        }
    }
    Floats cut_off(delta.size());
    cut_off_by_grid(GGML_TYPE_Q8_0, source.data(), delta.data(), kRow, cut_off.data());
    for (size_t i = 0; i < cut_off.size(); ++i) {
        const bool down = (i % 32 >= 4 && i % 32 < 8) || (i % 32 >= 16 && i % 32 < 24);
        cut += std::abs(cut_off[i] - (down ? delta[i] : 0.0f)) > 1e-5f ? 1 : 0;
    }
    check("q8_0 -128 made", static_cast<double>(made), 0);
    check("q8_0 -128 lost", static_cast<double>(lost), 0);
    check("q8_0 -128 moved up", 1000, static_cast<double>(n_up));
    check("q8_0 cut off below -128", static_cast<double>(cut), 0);
}

void test_minus_zero_of_mxfp4() {
    const Row row({GGML_TYPE_MXFP4, 1, 17, 15});
    Bytes source = row.bytes, moved(source.size());
    Floats delta(static_cast<size_t>(kRow));
    for (size_t block = 0; block < kRow / 32; ++block) {
        for (size_t i = 0; i < 16; ++i) {
            source[17 * block + 1 + i] = static_cast<uint8_t>(i % 2 == 0 ? 0x88 : 0x28);
            delta[32 * block + 16 + i] = i % 2 == 0 ? 0.0f : 1.0f;
        }
    }
    move_on_grid(GGML_TYPE_MXFP4, source.data(), delta.data(), kRow, 3, 0, Rounding::nearest, moved.data());
    size_t wrong = 0, n_moved = 0;
    for (size_t block = 0; block < kRow / 32; ++block) {
        for (size_t i = 0; i < 16; ++i) {
            const uint8_t code = moved[17 * block + 1 + i];
            wrong += (i % 2 == 0 ? code != 0x88 : (code & 15) != 8) ? 1 : 0;
            n_moved += i % 2 == 1 && code >> 4 != 2 ? 1 : 0;
        }
    }
    check("mxfp4 -0 lost", static_cast<double>(wrong), 0);
    check("mxfp4 neighbours of -0 moved", 8, static_cast<double>(n_moved));
}

void test_bf16() {
    constexpr int kNKeys = 2000;
    Floats source = random_values(kRow, 37);
    std::vector<double> sum(source.size());
    std::vector<ggml_bf16_t> rounded(source.size());
    std::mt19937_64 keys(41);
    size_t far = 0;
    for (int k = 0; k < kNKeys; ++k) {
        round_to_bf16(source.data(), kRow, keys(), 0, rounded.data());
        for (size_t i = 0; i < source.size(); ++i) {
            const double found = ggml_bf16_to_fp32(rounded[i]);
            far += std::abs(found - source[i]) >= std::ldexp(1.0, std::ilogb(source[i]) - 7) ? 1 : 0;
            sum[i] += found - source[i];
        }
    }
    double total = 0, total_variance = 0, worst = 0;
    for (size_t i = 0; i < source.size(); ++i) {
        const double step = std::ldexp(1.0, std::ilogb(source[i]) - 7);
        const double up = std::abs(source[i]) / step - std::floor(std::abs(source[i]) / step);
        const double mean = sum[i] / kNKeys / step, variance = up * (1 - up) / kNKeys;
        total += mean * (source[i] < 0 ? -1 : 1);
        total_variance += variance;
        if (variance * kNKeys > 0.05) {
            worst = std::max(worst, std::abs(mean) / std::sqrt(variance));
        }
    }
    check("bf16 beyond the neighbours", static_cast<double>(far), 0);
    check("bf16 bias of all, standard errors", std::abs(total) / std::sqrt(total_variance), 4);
    check("bf16 bias of one, standard errors", worst, 5);

    const float largest = std::numeric_limits<float>::max(), infinite = std::numeric_limits<float>::infinity();
    const Floats special{infinite, -infinite, NAN, largest, -largest, 0.0f, -0.0f, 1.5f};
    size_t wrong = 0;
    for (uint64_t key = 0; key < 200; ++key) {
        std::vector<ggml_bf16_t> kept(special.size());
        round_to_bf16(special.data(), static_cast<int64_t>(special.size()), key, 0, kept.data());
        for (size_t i = 0; i < special.size(); ++i) {
            const float found = ggml_bf16_to_fp32(kept[i]);
            const bool finite = std::abs(special[i]) == largest;
            const bool right = std::isnan(special[i]) ? std::isnan(found)
                               : finite ? std::isfinite(found) && std::abs(found / special[i] - 1) < 0.01f
                                        : found == special[i] && std::signbit(found) == std::signbit(special[i]);
            wrong += right ? 0 : 1;
        }
    }
    check("bf16 of infinities, NaN, the largest and exact values", static_cast<double>(wrong), 0);
}

}  // namespace

int main() {
    ggml_cpu_init();
    for (const Layout & layout : kLayouts) {
        const Row row(layout);
        test_levels(row);
        test_nothing_to_move(row);
        for (const double steps : {0.01, 0.6, 6.0}) {
            test_moves_stay_on_the_grid(row, steps);
        }
        test_unbiased(row, 0.6);
        test_parts_of_a_row(row);
        test_steps(row);
    }
    for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_IQ2_XS, GGML_TYPE_TQ1_0}) {
        check(std::string(ggml_type_name(type)) + " has no grid", has_grid(type) ? 1 : 0, 0);
    }
    test_lowest_byte_of_q8_0();
    test_minus_zero_of_mxfp4();
    test_bf16();
    return ggtune::test::finish();
}
