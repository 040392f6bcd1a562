// What the scans of all recurrent layers share. Private to cpp/kernels.
//
// A head keeps a state M [n_rows, width], whose rows do not see each other:
//   M_t = M_{t-1} gate_t + e_t k_t^T (+ c_t b_t^T)        out_t = M_t q_t, or M_{t-1} q_t
//   Update::add        e = v
//   Update::delta      e = beta u,  u = v - (M_{t-1} gate_t) k_t
//   Update::low_rank   e = v,  c = M_{t-1} a_t
// The gate is one number for each column (vector), or exp(steps_t[row] rates[row, column]) (rows); where it is one for
// all of M, state_chunks.h does the same in another way.
//
// Backward, a first pass over the tokens keeps the state in front of every block of them, and u or c; then each block,
// the last one first, computes its states again and goes through them backwards.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/aligned_buffer.h"
#include "kernels/partition.h"
#include "kernels/simd.h"
#include "kernels/vector_math.h"

namespace ggtune::kernels::detail {

enum class Gate { vector, rows };
enum class Update { add, delta, low_rank };
enum class Read { after, before };

inline constexpr int64_t kScanBlock = 32;  // tokens
// Rows of the state at a time: as many as registers hold sums for. Backward each row has several of them.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kForwardRows = 8;
inline constexpr int kBackwardRows = 4;
#else
inline constexpr int kForwardRows = 4;
inline constexpr int kBackwardRows = 2;
#endif

inline int64_t padded_width(int64_t width) {
    return round_up(width, simd::kWidth);
}

// The operands of n <= kScanBlock tokens of one head, one after another; rows of `width` columns, a multiple of
// simd::kWidth, whose columns past the head's are zeros. Those that a kind of scan lacks are not read.
struct ScanBlock {
    int64_t n;
    int64_t n_rows;
    int64_t width;
    float * q;      // [n, width]
    float * k;      // [n, width]
    float * v;      // [n, n_rows]
    float * gate;   // vector [n, width], of chunks [n]
    float * steps;  // rows [n, n_rows]
    float * rates;  // rows [n_rows, width]
    float * beta;   // delta [n]
    float * a;      // low_rank [n, width]
    float * b;      // low_rank [n, width]
    float * inner;  // u or c [n, n_rows]: a result of the first pass
};

// d<name>, to which the rows of the head are added; those of single rows are overwritten.
struct ScanBlockGradient {
    float * q;
    float * k;
    float * v;
    float * gate;
    float * steps;
    float * rates;
    float * beta;
    float * a;
    float * b;
};

template <Gate gate, Update update, Read read = Read::after>
struct ScanKind {
    static constexpr Gate kGate = gate;
    static constexpr Update kUpdate = update;
    static constexpr Read kRead = read;
};

// The gate of token t, for a vector of columns of a row.
template <class Kind>
class TokenGate {
  public:
    TokenGate(const ScanBlock & x, int64_t t) {
        if constexpr (Kind::kGate == Gate::vector) {
            values_ = x.gate + t * x.width;
        } else {
            values_ = x.rates;
            steps_ = x.steps + t * x.n_rows;
            width_ = x.width;
        }
    }
    simd::Vec operator()(int64_t row, int64_t column) const {
        if constexpr (Kind::kGate == Gate::vector) {
            return simd::load(values_ + column);
        } else {
            return simd::exp(steps_[row] * simd::load(values_ + row * width_ + column));
        }
    }

  private:
    const float * values_ = nullptr;
    const float * steps_ = nullptr;
    int64_t width_ = 0;
};

// Of n rows from `row` on, e and c of token t, each in all lanes.
template <class Kind, int n>
struct TokenUpdate {
    simd::Vec e[n] = {};
    simd::Vec c[n] = {};
    const float * k;
    const float * b;

    TokenUpdate(const ScanBlock & x, int64_t t, int64_t row) : k(x.k + t * x.width), b(x.b + t * x.width) {
        const int64_t first = t * x.n_rows + row;
        for (int r = 0; r < n; ++r) {
            if constexpr (Kind::kUpdate == Update::delta) {
                e[r] = simd::splat(x.beta[t] * x.inner[first + r]);
            } else {
                e[r] = simd::splat(x.v[first + r]);
            }
            if constexpr (Kind::kUpdate == Update::low_rank) {
                c[r] = simd::splat(x.inner[first + r]);
            }
        }
    }
    // M_t of a vector of columns, from M_{t-1} times the gate
    simd::Vec operator()(int r, int64_t column, simd::Vec gated) const {
        simd::Vec next = gated + e[r] * simd::load(k + column);
        if constexpr (Kind::kUpdate == Update::low_rank) {
            next += c[r] * simd::load(b + column);
        }
        return next;
    }
};

// n rows of the state [n_rows, width] go through the block; out [x.n, n_rows] or nullptr.
template <class Kind, int n>
void scan_rows(const ScanBlock & block, int64_t row, float * state, float * out) {
    using simd::load;
    using simd::Vec;
    const ScanBlock x = block;  // known not to change by what is stored
    float * m = state + row * x.width;
    for (int64_t t = 0; t < x.n; ++t) {
        const TokenGate<Kind> gate(x, t);
        const float * q = x.q + t * x.width;
        const int64_t first = t * x.n_rows + row;
        if constexpr (Kind::kUpdate != Update::add) {
            constexpr bool kDelta = Kind::kUpdate == Update::delta;
            const float * along = (kDelta ? x.k : x.a) + t * x.width;
            Vec products[n] = {};
            for (int64_t i = 0; i < x.width; i += simd::kWidth) {
                const Vec by = kDelta ? gate(row, i) * load(along + i) : load(along + i);
                for (int r = 0; r < n; ++r) {
                    products[r] += load(m + r * x.width + i) * by;
                }
            }
            float sums[n];
            simd::horizontal_sums(products, sums);
            for (int r = 0; r < n; ++r) {
                x.inner[first + r] = kDelta ? x.v[first + r] - sums[r] : sums[r];
            }
        }
        const TokenUpdate<Kind, n> update(x, t, row);
        Vec results[n] = {};
        for (int64_t i = 0; i < x.width; i += simd::kWidth) {
            const Vec q_i = load(q + i);
            for (int r = 0; r < n; ++r) {
                const Vec before = load(m + r * x.width + i);
                const Vec after = update(r, i, before * gate(row + r, i));
                simd::store(m + r * x.width + i, after);
                results[r] += (Kind::kRead == Read::after ? after : before) * q_i;
            }
        }
        if (out != nullptr) {
            simd::horizontal_sums(results, out + first);
        }
    }
}

// The same for a block whose u or c are known, without outputs.
template <class Kind, int n>
void advance_rows(const ScanBlock & block, int64_t row, float * state) {
    const ScanBlock x = block;
    float * m = state + row * x.width;
    for (int64_t t = 0; t < x.n; ++t) {
        const TokenGate<Kind> gate(x, t);
        const TokenUpdate<Kind, n> update(x, t, row);
        for (int64_t i = 0; i < x.width; i += simd::kWidth) {
            for (int r = 0; r < n; ++r) {
                const simd::Vec before = simd::load(m + r * x.width + i);
                simd::store(m + r * x.width + i, update(r, i, before * gate(row + r, i)));
            }
        }
    }
}

// The states in front of all tokens of the block, of n rows: states [x.n, n, width], from the first of them.
template <class Kind, int n>
void restore_states(const ScanBlock & block, int64_t row, const float * first, float * states) {
    const ScanBlock x = block;
    std::memcpy(states, first + row * x.width, static_cast<size_t>(n * x.width) * sizeof(float));
    for (int64_t t = 0; t + 1 < x.n; ++t) {
        const float * from = states + t * n * x.width;
        float * to = states + (t + 1) * n * x.width;
        const TokenGate<Kind> gate(x, t);
        const TokenUpdate<Kind, n> update(x, t, row);
        for (int64_t i = 0; i < x.width; i += simd::kWidth) {
            for (int r = 0; r < n; ++r) {
                const simd::Vec before = simd::load(from + r * x.width + i);
                simd::store(to + r * x.width + i, update(r, i, before * gate(row + r, i)));
            }
        }
    }
}

inline void add_to(float * p, simd::Vec v) {
    simd::store(p, simd::load(p) + v);
}

// n rows of the gradient of the state [n_rows, width] go backwards through the block. states: restore_states()'s.
// d_out [x.n, n_rows]
template <class Kind, int n>
void scan_rows_backward(const ScanBlock & block, int64_t row, const float * states, float * d_state,
                        const float * d_out, const ScanBlockGradient & gradient) {
    using simd::load;
    using simd::Vec;
    constexpr bool kReadsAfter = Kind::kRead == Read::after;
    const ScanBlock x = block;
    const ScanBlockGradient d = gradient;
    float * dm = d_state + row * x.width;
    for (int64_t t = x.n - 1; t >= 0; --t) {
        const int64_t at = t * x.width;
        const int64_t first = t * x.n_rows + row;
        const float * before = states + t * n * x.width;
        const TokenGate<Kind> gate(x, t);
        const TokenUpdate<Kind, n> update(x, t, row);
        Vec dy[n], d_inner[n] = {};
        for (int r = 0; r < n; ++r) {
            dy[r] = simd::splat(d_out[first + r]);
        }
        // u and c depend on the whole row: their gradients come first
        if constexpr (Kind::kUpdate != Update::add) {
            Vec along_k[n] = {}, along_b[n] = {};
            for (int64_t i = 0; i < x.width; i += simd::kWidth) {
                const Vec q = load(x.q + at + i), k = load(x.k + at + i);
                for (int r = 0; r < n; ++r) {
                    const Vec dm_t = load(dm + r * x.width + i) + dy[r] * q;
                    simd::store(dm + r * x.width + i, dm_t);
                    along_k[r] += dm_t * k;
                    if constexpr (Kind::kUpdate == Update::low_rank) {
                        along_b[r] += dm_t * load(x.b + at + i);
                    }
                }
            }
            float sums[n];
            simd::horizontal_sums(along_k, sums);
            for (int r = 0; r < n; ++r) {
                if constexpr (Kind::kUpdate == Update::delta) {
                    d.beta[t] += sums[r] * x.inner[first + r];
                    sums[r] *= x.beta[t];
                    d_inner[r] = simd::splat(sums[r]);
                }
                d.v[first + r] = sums[r];
            }
            if constexpr (Kind::kUpdate == Update::low_rank) {
                simd::horizontal_sums(along_b, sums);
                for (int r = 0; r < n; ++r) {
                    d_inner[r] = simd::splat(sums[r]);
                }
            }
        }
        // M_t is what the gate has left of M_{t-1}, and products of e and k, c and b
        Vec read_e = {}, read_c = {};
        for (int r = 0; r < n; ++r) {
            read_e += dy[r] * update.e[r];
            read_c += dy[r] * update.c[r];
        }
        Vec d_added[n] = {}, d_steps[n] = {};
        for (int64_t i = 0; i < x.width; i += simd::kWidth) {
            const Vec q = load(x.q + at + i), k = load(x.k + at + i);
            Vec dq = {}, dk = {}, da = {}, db = {}, d_gates = {};
            for (int r = 0; r < n; ++r) {
                const Vec factor = gate(row + r, i);
                const Vec m = load(before + r * x.width + i);
                const Vec gated = factor * m;
                Vec dm_t = load(dm + r * x.width + i);  // of M_t
                if constexpr (Kind::kUpdate == Update::add && kReadsAfter) {
                    dm_t += dy[r] * q;
                }
                dq += dy[r] * (kReadsAfter ? gated : m);
                dk += update.e[r] * dm_t;
                Vec d_gated = dm_t;
                if constexpr (Kind::kUpdate == Update::add) {
                    d_added[r] += dm_t * k;
                } else if constexpr (Kind::kUpdate == Update::delta) {
                    dk -= d_inner[r] * gated;
                    d_gated -= d_inner[r] * k;
                } else {
                    db += update.c[r] * dm_t;
                    da += d_inner[r] * m;
                }
                Vec d_before = factor * d_gated;
                if constexpr (Kind::kGate == Gate::rows) {
                    const Vec d_exponent = d_before * m;
                    d_steps[r] += d_exponent * load(x.rates + (row + r) * x.width + i);
                    add_to(d.rates + (row + r) * x.width + i, d_exponent * x.steps[first + r]);
                } else {
                    d_gates += d_gated * m;
                }
                if constexpr (Kind::kUpdate == Update::low_rank) {
                    d_before += d_inner[r] * load(x.a + at + i);
                }
                if constexpr (!kReadsAfter) {
                    d_before += dy[r] * q;
                }
                simd::store(dm + r * x.width + i, d_before);
            }
            if constexpr (kReadsAfter) {
                dq += read_e * k;
            }
            if constexpr (kReadsAfter && Kind::kUpdate == Update::low_rank) {
                dq += read_c * load(x.b + at + i);
            }
            add_to(d.q + at + i, dq);
            add_to(d.k + at + i, dk);
            if constexpr (Kind::kUpdate == Update::low_rank) {
                add_to(d.a + at + i, da);
                add_to(d.b + at + i, db);
            }
            if constexpr (Kind::kGate == Gate::vector) {
                add_to(d.gate + at + i, d_gates);
            }
        }
        if constexpr (Kind::kUpdate == Update::add) {
            simd::horizontal_sums(d_added, d.v + first);
        }
        if constexpr (Kind::kGate == Gate::rows) {
            simd::horizontal_sums(d_steps, d.steps + first);
        }
    }
}

// work(n, row) for all rows, n at a time and the rest singly.
template <int n, class Work>
void for_rows(int64_t n_rows, Work && work) {
    int64_t row = 0;
    for (; row + n <= n_rows; row += n) {
        work(std::integral_constant<int, n>(), row);
    }
    for (; row < n_rows; ++row) {
        work(std::integral_constant<int, 1>(), row);
    }
}

// The memory of one thread's scans.
struct ScanScratch {
    AlignedFloats operands, history;
};

// The scans of one thread, a head at a time.
template <class Kind>
class Scan {
  public:
    Scan(ScanScratch & scratch, int64_t n_tokens, int64_t n_rows, int64_t width, bool backward)
        : n_tokens_(n_tokens), n_rows_(n_rows), width_(padded_width(width)) {
        const int64_t n_states = n_rows_ * width_;
        const int64_t n_block_rows = kScanBlock * n_rows_, n_block_columns = kScanBlock * width_;
        int64_t n_floats = 0;
        const auto place = [&](float *& p, int64_t n) {
            p = base_ != nullptr ? base_ + n_floats : nullptr;
            n_floats += round_up(n, 16);
        };
        const auto place_all = [&] {
            n_floats = 0;
            place(state_, n_states);
            for (float ** p : {&x_.q, &x_.k, &x_.a, &x_.b}) {
                place(*p, n_block_columns);
            }
            place(x_.v, n_block_rows);
            place(x_.steps, n_block_rows);
            place(x_.rates, n_states);
            place(x_.gate, n_block_columns);
            place(x_.beta, kScanBlock);
            place(out_, n_block_rows);
            place(inner_, n_block_rows);
            first_gradient_ = n_floats;
            for (float ** p : {&d_.q, &d_.k, &d_.a, &d_.b}) {
                place(*p, backward ? n_block_columns : 0);
            }
            place(d_.gate, backward ? n_block_columns : 0);
            place(d_.beta, backward ? kScanBlock : 0);
            end_gradient_ = n_floats;
            place(d_.v, backward ? n_block_rows : 0);
            place(d_.steps, backward ? n_block_rows : 0);
            place(d_.rates, backward ? n_states : 0);
            place(states_, backward ? kScanBlock * kBackwardRows * width_ : 0);
        };
        place_all();
        base_ = scratch.operands.reserve(n_floats);
        place_all();
        std::fill_n(base_, n_floats, 0.0f);
        x_.n_rows = n_rows_;
        x_.width = width_;
        if (backward) {
            const int64_t n_inner = Kind::kUpdate == Update::add ? 0 : n_tokens_ * n_rows_;
            first_states_ = scratch.history.reserve(n_blocks() * n_states + n_inner);
            inner_history_ = first_states_ + n_blocks() * n_states;
        }
    }

    // [n_rows, width], to be written for each head
    float * state() { return state_; }
    int64_t width() const { return width_; }
    // d(loss)/d rates of the head, after backward()
    const float * d_rates() const { return d_.rates; }
    float * rates() { return x_.rates; }

    // pack(tokens, block) writes the operands; take(tokens, out) reads out [n, n_rows]. state() becomes the last one.
    // inner, where not nullptr: [n_tokens, n_rows] becomes u or c, which backward() wants.
    template <class Pack, class Take>
    void forward(float * inner, Pack && pack, Take && take) {
        for (int64_t begin = 0; begin < n_tokens_; begin += kScanBlock) {
            const Range tokens = block_at(begin);
            pack(tokens, static_cast<const ScanBlock &>(x_));
            x_.inner = inner != nullptr ? inner + begin * n_rows_ : inner_;
            for_rows<kForwardRows>(
                n_rows_, [&](auto n, int64_t row) { scan_rows<Kind, decltype(n)::value>(x_, row, state_, out_); });
            take(tokens, static_cast<const float *>(out_));
        }
    }

    // inner: of forward(), or nullptr: then it is computed again. pack(tokens, block, d_out) writes the operands and
    // d_out [n, n_rows], which is nullptr in the first pass; last(d_state) the gradient of the last state;
    // take(tokens, block, gradient) reads the gradients. state() becomes the gradient of the first one.
    template <class Pack, class Last, class Take>
    void backward(float * inner, Pack && pack, Last && last, Take && take) {
        const int64_t n_states = n_rows_ * width_;
        const bool known = inner != nullptr || Kind::kUpdate == Update::add;
        inner = inner != nullptr ? inner : inner_history_;
        for (int64_t block = 0; block < n_blocks(); ++block) {
            std::memcpy(first_states_ + block * n_states, state_, static_cast<size_t>(n_states) * sizeof(float));
            if (block + 1 == n_blocks() && known) {
                break;
            }
            const Range tokens = block_at(block * kScanBlock);
            pack(tokens, static_cast<const ScanBlock &>(x_), nullptr);
            x_.inner = inner + tokens.begin * n_rows_;
            for_rows<kForwardRows>(n_rows_, [&](auto n, int64_t row) {
                if (known) {
                    advance_rows<Kind, decltype(n)::value>(x_, row, state_);
                } else {
                    scan_rows<Kind, decltype(n)::value>(x_, row, state_, nullptr);
                }
            });
        }
        std::fill_n(state_, n_states, 0.0f);
        std::fill_n(d_.rates, n_states, 0.0f);
        last(state_);
        for (int64_t block = n_blocks() - 1; block >= 0; --block) {
            const Range tokens = block_at(block * kScanBlock);
            pack(tokens, static_cast<const ScanBlock &>(x_), out_);
            x_.inner = inner + tokens.begin * n_rows_;
            std::fill(base_ + first_gradient_, base_ + end_gradient_, 0.0f);
            for_rows<kBackwardRows>(n_rows_, [&](auto n, int64_t row) {
                constexpr int kRows = decltype(n)::value;
                restore_states<Kind, kRows>(x_, row, first_states_ + block * n_states, states_);
                scan_rows_backward<Kind, kRows>(x_, row, states_, state_, out_, d_);
            });
            take(tokens, static_cast<const ScanBlock &>(x_), static_cast<const ScanBlockGradient &>(d_));
        }
    }

  private:
    int64_t n_blocks() const { return (n_tokens_ + kScanBlock - 1) / kScanBlock; }
    Range block_at(int64_t begin) {
        x_.n = std::min(kScanBlock, n_tokens_ - begin);
        return {begin, begin + x_.n};
    }

    const int64_t n_tokens_, n_rows_, width_;
    float * base_ = nullptr;
    ScanBlock x_ = {};
    ScanBlockGradient d_ = {};
    int64_t first_gradient_ = 0, end_gradient_ = 0;  // those that are added to
    float * state_ = nullptr;
    float * out_ = nullptr;     // or d_out [kScanBlock, n_rows]
    float * inner_ = nullptr;   // of a block
    float * states_ = nullptr;  // [kScanBlock, kBackwardRows, width]
    float * first_states_ = nullptr;
    float * inner_history_ = nullptr;  // of all tokens
};

}  // namespace ggtune::kernels::detail
