#include "kernels/gated_delta_net.h"

#include <cmath>

#include "kernels/scan_core.h"
#include "kernels/state_chunks.h"

namespace ggtune::kernels {
namespace {

using namespace detail;

using VectorGate = Scan<ScanKind<Gate::vector, Update::delta>>;
using ScalarGate = StateChunks<Update::delta>;

void copy_scaled(const float * from, float scale, int64_t n, float * to) {
    for (int64_t i = 0; i < n; ++i) {
        to[i] = scale * from[i];
    }
}

ScanScratch & this_threads_scratch() {
    static thread_local ScanScratch scratch;
    return scratch;
}

// The heads of one thread, all sequences'.
template <class HeadScan>
class Heads {
  public:
    Heads(const DeltaNetShape & shape, const DeltaNetOperands & x, ScanScratch & scratch, bool backward)
        : shape_(shape), x_(x), scan_(scratch, shape.n_tokens, shape.dim, shape.dim, backward) {}

    void forward(int64_t head, int64_t sequence, float * out, float * last_state, float * inner) {
        const Vectors outs = packed_vectors(out, shape_.dim, shape_.n_heads, shape_.n_tokens);
        load_state(head, sequence);
        scan_.forward(
            inner_of(inner, head, sequence),
            [&](Range tokens, const ScanBlock & block) {
                pack(head, sequence, tokens, block);
                pack_queries(head, sequence, tokens, block);
                pack_values(head, sequence, tokens, block);
            },
            [&](Range tokens, const float * rows) {
                for (int64_t t = 0; t < tokens.size(); ++t) {
                    std::copy_n(rows + t * shape_.dim, shape_.dim, outs.at(tokens.begin + t, head, sequence));
                }
            });
        copy_state(scan_.state(), scan_.width(), last_state + state_at(head, sequence), shape_.dim);
    }

    void backward(int64_t head, int64_t sequence, const float * d_out, const float * d_last_state, float * inner,
                  const DeltaNetGradients & d) {
        const ConstVectors d_outs = packed_vectors(d_out, shape_.dim, shape_.n_heads, shape_.n_tokens);
        load_state(head, sequence);
        scan_.backward(
            inner_of(inner, head, sequence),
            [&](Range tokens, const ScanBlock & block, float * d_rows) {
                pack(head, sequence, tokens, block);
                if (d_rows == nullptr) {
                    if (inner == nullptr) {
                        pack_values(head, sequence, tokens, block);
                    }
                    return;
                }
                pack_queries(head, sequence, tokens, block);
                for (int64_t t = 0; t < tokens.size(); ++t) {
                    std::copy_n(d_outs.at(tokens.begin + t, head, sequence), shape_.dim, d_rows + t * shape_.dim);
                }
            },
            [&](float * d_state) {
                copy_state(d_last_state + state_at(head, sequence), shape_.dim, d_state, scan_.width());
            },
            [&](Range tokens, const ScanBlock & block, const ScanBlockGradient & gradient) {
                unpack(head, sequence, tokens, block, gradient, d);
            });
        if (d.d_state != nullptr) {
            copy_state(scan_.state(), scan_.width(), d.d_state + state_at(head, sequence), shape_.dim);
        }
    }

  private:
    float * inner_of(float * inner, int64_t head, int64_t sequence) const {
        return inner != nullptr ? inner + (sequence * shape_.n_heads + head) * shape_.n_tokens * shape_.dim : nullptr;
    }
    int64_t state_at(int64_t head, int64_t sequence) const {
        return (sequence * shape_.n_heads + head) * shape_.dim * shape_.dim;
    }
    // index of (token, head, sequence) among all
    int64_t index(int64_t token, int64_t head, int64_t sequence) const {
        return (sequence * shape_.n_tokens + token) * shape_.n_heads + head;
    }
    void copy_state(const float * from, int64_t from_stride, float * to, int64_t to_stride) const {
        for (int64_t row = 0; row < shape_.dim; ++row) {
            std::copy_n(from + row * from_stride, shape_.dim, to + row * to_stride);
        }
    }
    void load_state(int64_t head, int64_t sequence) {
        copy_state(x_.state + state_at(head, sequence), shape_.dim, scan_.state(), scan_.width());
    }

    void pack(int64_t head, int64_t sequence, Range tokens, const ScanBlock & block) const {
        for (int64_t t = 0; t < tokens.size(); ++t) {
            const int64_t token = tokens.begin + t;
            const int64_t i = index(token, head, sequence);
            std::copy_n(x_.k.at(token, head % shape_.n_heads_k, sequence), shape_.dim, block.k + t * block.width);
            block.beta[t] = x_.beta[i];
            float * gate = block.gate + t * (std::is_same_v<HeadScan, ScalarGate> ? 1 : block.width);
            for (int64_t j = 0; j < shape_.gate_width; ++j) {
                gate[j] = std::exp(x_.g[i * shape_.gate_width + j]);
            }
        }
    }

    void pack_queries(int64_t head, int64_t sequence, Range tokens, const ScanBlock & block) const {
        for (int64_t t = 0; t < tokens.size(); ++t) {
            copy_scaled(x_.q.at(tokens.begin + t, head % shape_.n_heads_q, sequence), shape_.scale, shape_.dim,
                        block.q + t * block.width);
        }
    }
    void pack_values(int64_t head, int64_t sequence, Range tokens, const ScanBlock & block) const {
        for (int64_t t = 0; t < tokens.size(); ++t) {
            std::copy_n(x_.v.at(tokens.begin + t, head, sequence), shape_.dim, block.v + t * shape_.dim);
        }
    }

    void unpack(int64_t head, int64_t sequence, Range tokens, const ScanBlock & block,
                const ScanBlockGradient & gradient, const DeltaNetGradients & d) const {
        const int64_t dim = shape_.dim;
        for (int64_t t = 0; t < tokens.size(); ++t) {
            const int64_t i = index(tokens.begin + t, head, sequence);
            copy_scaled(gradient.q + t * block.width, shape_.scale, dim, d.dq + i * dim);
            std::copy_n(gradient.k + t * block.width, dim, d.dk + i * dim);
            std::copy_n(gradient.v + t * dim, dim, d.dv + i * dim);
            d.d_beta[i] = gradient.beta[t];
            if constexpr (std::is_same_v<HeadScan, ScalarGate>) {
                d.dg[i] = gradient.gate[t];
            } else {
                for (int64_t j = 0; j < dim; ++j) {
                    d.dg[i * dim + j] = block.gate[t * block.width + j] * gradient.gate[t * block.width + j];
                }
            }
        }
    }

    const DeltaNetShape & shape_;
    const DeltaNetOperands & x_;
    HeadScan scan_;
};

template <class HeadScan, class Work>
void for_heads(const DeltaNetShape & shape, const DeltaNetOperands & x, bool backward, int ith, int nth, Work && work) {
    Heads<HeadScan> heads(shape, x, this_threads_scratch(), backward);
    const Range mine = split_range(shape.n_heads * shape.n_sequences, ith, nth);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
        work(heads, i % shape.n_heads, i / shape.n_heads);
    }
}

}  // namespace

void delta_net_forward(const DeltaNetShape & shape, const DeltaNetOperands & x, float * out, float * last_state,
                       float * u, int ith, int nth) {
    const auto work = [&](auto & heads, int64_t head, int64_t sequence) {
        heads.forward(head, sequence, out, last_state, u);
    };
    if (shape.gate_width == 1) {
        for_heads<ScalarGate>(shape, x, false, ith, nth, work);
    } else {
        for_heads<VectorGate>(shape, x, false, ith, nth, work);
    }
}

void delta_net_backward(const DeltaNetShape & shape, const DeltaNetOperands & x, const float * d_out,
                        const float * d_last_state, float * u, const DeltaNetGradients & d, int ith, int nth) {
    const auto work = [&](auto & heads, int64_t head, int64_t sequence) {
        heads.backward(head, sequence, d_out, d_last_state, u, d);
    };
    if (shape.gate_width == 1) {
        for_heads<ScalarGate>(shape, x, true, ith, nth, work);
    } else {
        for_heads<VectorGate>(shape, x, true, ith, nth, work);
    }
}

}  // namespace ggtune::kernels
