#include "kernels/wkv.h"

#include "kernels/reduce.h"
#include "kernels/scan_core.h"
#include "kernels/transpose.h"

namespace ggtune::kernels {
namespace {

using namespace detail;

using Gated = ScanKind<Gate::vector, Update::add, Read::after>;
using Rwkv6 = ScanKind<Gate::vector, Update::add, Read::before>;
using Rwkv7 = ScanKind<Gate::vector, Update::low_rank, Read::after>;

ScanScratch & this_threads_scratch() {
    static thread_local ScanScratch scratch;
    return scratch;
}

// The heads of one thread, all sequences'.
template <class Kind>
class Heads {
  public:
    Heads(const WkvShape & shape, const WkvOperands & x, ScanScratch & scratch, bool backward)
        : shape_(shape), x_(x), scan_(scratch, shape.n_tokens, shape.dim, shape.dim, backward) {}

    void forward(int64_t head, int64_t sequence, float * out, float * last_state, float * c) {
        load_state(x_.state + state_at(head, sequence), scan_.state());
        scan_.forward(
            inner_of(c, head, sequence),
            [&](Range tokens, const ScanBlock & block) { pack(head, sequence, tokens, block); },
            [&](Range tokens, const float * rows) {
                for (int64_t t = 0; t < tokens.size(); ++t) {
                    float * to = out + at(tokens.begin + t, head, sequence);
                    std::copy_n(rows + t * shape_.dim, shape_.dim, to);
                    if constexpr (kBonus) {
                        const int64_t i = at(tokens.begin + t, head, sequence);
                        const float factor = bonus(i, head);
                        for (int64_t j = 0; j < shape_.dim; ++j) {
                            to[j] += x_.v[i + j] * factor;
                        }
                    }
                }
            });
        save_state(last_state + state_at(head, sequence));
    }

    void backward(int64_t head, int64_t sequence, const float * d_out, const float * d_last_state, float * c,
                  const WkvGradients & d) {
        load_state(x_.state + state_at(head, sequence), scan_.state());
        if constexpr (kBonus) {
            std::fill_n(d.du + u_at(head, sequence), shape_.dim, 0.0f);
        }
        scan_.backward(
            inner_of(c, head, sequence),
            [&](Range tokens, const ScanBlock & block, float * d_rows) {
                pack(head, sequence, tokens, block);
                for (int64_t t = 0; d_rows != nullptr && t < tokens.size(); ++t) {
                    std::copy_n(d_out + at(tokens.begin + t, head, sequence), shape_.dim, d_rows + t * shape_.dim);
                }
            },
            [&](float * d_state) { load_state(d_last_state + state_at(head, sequence), d_state); },
            [&](Range tokens, const ScanBlock & block, const ScanBlockGradient & gradient) {
                for (int64_t t = 0; t < tokens.size(); ++t) {
                    unpack(tokens.begin + t, head, sequence, t, block, gradient, d_out, d);
                }
            });
        if (d.d_state != nullptr) {
            save_state(d.d_state + state_at(head, sequence));
        }
    }

  private:
    static constexpr bool kLowRank = Kind::kUpdate == Update::low_rank;
    static constexpr bool kBonus = Kind::kRead == Read::before;

    float * inner_of(float * c, int64_t head, int64_t sequence) const {
        return kLowRank && c != nullptr ? c + (sequence * shape_.n_heads + head) * shape_.n_tokens * shape_.dim
                                        : nullptr;
    }
    int64_t state_at(int64_t head, int64_t sequence) const {
        return (sequence * shape_.n_heads + head) * shape_.dim * shape_.dim;
    }
    int64_t u_at(int64_t head, int64_t sequence) const { return (sequence * shape_.n_heads + head) * shape_.dim; }
    int64_t at(int64_t token, int64_t head, int64_t sequence) const {
        return ((sequence * shape_.n_tokens + token) * shape_.n_heads + head) * shape_.dim;
    }
    float scale() const { return shape_.kind == WkvKind::gated ? shape_.scale : 1.0f; }

    void load_state(const float * from, float * to) const {
        if constexpr (kLowRank) {
            for (int64_t row = 0; row < shape_.dim; ++row) {
                std::copy_n(from + row * shape_.dim, shape_.dim, to + row * scan_.width());
            }
        } else {
            transpose_copy(from, shape_.dim, shape_.dim, shape_.dim, to, scan_.width());
        }
    }
    void save_state(float * to) {
        if constexpr (kLowRank) {
            for (int64_t row = 0; row < shape_.dim; ++row) {
                std::copy_n(scan_.state() + row * scan_.width(), shape_.dim, to + row * shape_.dim);
            }
        } else {
            transpose_copy(scan_.state(), scan_.width(), shape_.dim, shape_.dim, to, shape_.dim);
        }
    }

    // r . (u * k) of the token whose operands are at i
    float bonus(int64_t i, int64_t head) const {
        const float *r = x_.r + i, *k = x_.k + i, *u = x_.u + head * shape_.dim;
        return static_cast<float>(
            reduce_sum(shape_.dim, [=](auto get) { return get(r, 0.0f) * get(k, 0.0f) * get(u, 0.0f); }));
    }

    void pack(int64_t head, int64_t sequence, Range tokens, const ScanBlock & block) const {
        for (int64_t t = 0; t < tokens.size(); ++t) {
            const int64_t i = at(tokens.begin + t, head, sequence);
            const int64_t to = t * block.width;
            for (int64_t j = 0; j < shape_.dim; ++j) {
                block.q[to + j] = scale() * x_.r[i + j];
            }
            std::copy_n(x_.k + i, shape_.dim, block.k + to);
            std::copy_n(x_.v + i, shape_.dim, block.v + t * shape_.dim);
            std::copy_n(x_.w + i, shape_.dim, block.gate + to);
            if constexpr (kLowRank) {
                std::copy_n(x_.a + i, shape_.dim, block.a + to);
                std::copy_n(x_.b + i, shape_.dim, block.b + to);
            }
        }
    }

    // t: the token's place in the block
    void unpack(int64_t token, int64_t head, int64_t sequence, int64_t t, const ScanBlock & block,
                const ScanBlockGradient & gradient, const float * d_out, const WkvGradients & d) const {
        const int64_t i = at(token, head, sequence);
        const int64_t from = t * block.width;
        for (int64_t j = 0; j < shape_.dim; ++j) {
            d.dr[i + j] = scale() * gradient.q[from + j];
        }
        std::copy_n(gradient.k + from, shape_.dim, d.dk + i);
        std::copy_n(gradient.v + t * shape_.dim, shape_.dim, d.dv + i);
        std::copy_n(gradient.gate + from, shape_.dim, d.dw + i);
        if constexpr (kLowRank) {
            std::copy_n(gradient.a + from, shape_.dim, d.da + i);
            std::copy_n(gradient.b + from, shape_.dim, d.db + i);
        }
        if constexpr (kBonus) {
            const float factor = bonus(i, head);
            const auto d_factor = static_cast<float>(dot(d_out + i, x_.v + i, shape_.dim));
            const float * u = x_.u + head * shape_.dim;
            float * du = d.du + u_at(head, sequence);
            for (int64_t j = 0; j < shape_.dim; ++j) {
                d.dv[i + j] += factor * d_out[i + j];
                d.dr[i + j] += d_factor * u[j] * x_.k[i + j];
                d.dk[i + j] += d_factor * u[j] * x_.r[i + j];
                du[j] += d_factor * x_.r[i + j] * x_.k[i + j];
            }
        }
    }

    const WkvShape & shape_;
    const WkvOperands & x_;
    Scan<Kind> scan_;
};

template <class Kind, class Work>
void for_heads(const WkvShape & shape, const WkvOperands & x, bool backward, int ith, int nth, Work && work) {
    Heads<Kind> heads(shape, x, this_threads_scratch(), backward);
    const Range mine = split_range(shape.n_heads * shape.n_sequences, ith, nth);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
        work(heads, i % shape.n_heads, i / shape.n_heads);
    }
}

template <class Work>
void for_kind(const WkvShape & shape, const WkvOperands & x, bool backward, int ith, int nth, Work && work) {
    switch (shape.kind) {
        case WkvKind::gated:
            return for_heads<Gated>(shape, x, backward, ith, nth, work);
        case WkvKind::rwkv6:
            return for_heads<Rwkv6>(shape, x, backward, ith, nth, work);
        case WkvKind::rwkv7:
            return for_heads<Rwkv7>(shape, x, backward, ith, nth, work);
    }
}

}  // namespace

void wkv_forward(const WkvShape & shape, const WkvOperands & x, float * out, float * last_state, float * c, int ith,
                 int nth) {
    for_kind(shape, x, false, ith, nth,
             [&](auto & heads, int64_t head, int64_t sequence) { heads.forward(head, sequence, out, last_state, c); });
}

void wkv_backward(const WkvShape & shape, const WkvOperands & x, const float * d_out, const float * d_last_state,
                  float * c, const WkvGradients & d, int ith, int nth) {
    for_kind(shape, x, true, ith, nth, [&](auto & heads, int64_t head, int64_t sequence) {
        heads.backward(head, sequence, d_out, d_last_state, c, d);
    });
}

}  // namespace ggtune::kernels
