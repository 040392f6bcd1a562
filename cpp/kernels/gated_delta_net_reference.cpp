// The loops that define the gated delta rule and its gradient.
#include <cmath>
#include <vector>

#include "kernels/gated_delta_net.h"

namespace ggtune::kernels {
namespace {

using Doubles = std::vector<double>;

// One head of one sequence; matrices are [dim, dim] by rows.
struct Head {
    const DeltaNetShape & shape;
    const DeltaNetOperands & x;
    int64_t head, sequence;

    int64_t index(int64_t t) const { return (sequence * shape.n_tokens + t) * shape.n_heads + head; }
    int64_t state_at() const { return (sequence * shape.n_heads + head) * shape.dim * shape.dim; }
    double q(int64_t t, int64_t i) const { return x.q.at(t, head % shape.n_heads_q, sequence)[i]; }
    double k(int64_t t, int64_t i) const { return x.k.at(t, head % shape.n_heads_k, sequence)[i]; }
    double v(int64_t t, int64_t j) const { return x.v.at(t, head, sequence)[j]; }
    double beta(int64_t t) const { return x.beta[index(t)]; }
    int64_t gate_at(int64_t t, int64_t i) const {
        return index(t) * shape.gate_width + (shape.gate_width == 1 ? 0 : i);
    }
    double gate(int64_t t, int64_t i) const { return std::exp(static_cast<double>(x.g[gate_at(t, i)])); }

    Doubles first_state() const { return {x.state + state_at(), x.state + state_at() + shape.dim * shape.dim}; }

    double removed(int64_t t, const Doubles & m, int64_t j) const {  // u
        double along_k = 0.0;
        for (int64_t i = 0; i < shape.dim; ++i) {
            along_k += m[j * shape.dim + i] * gate(t, i) * k(t, i);
        }
        return v(t, j) - along_k;
    }
    Doubles next(int64_t t, const Doubles & m) const {
        Doubles after(m.size());
        for (int64_t j = 0; j < shape.dim; ++j) {
            const double u = removed(t, m, j);
            for (int64_t i = 0; i < shape.dim; ++i) {
                const int64_t at = j * shape.dim + i;
                after[at] = m[at] * gate(t, i) + beta(t) * u * k(t, i);
            }
        }
        return after;
    }
};

template <class Work>
void for_heads(const DeltaNetShape & shape, const DeltaNetOperands & x, Work && work) {
    for (int64_t sequence = 0; sequence < shape.n_sequences; ++sequence) {
        for (int64_t head = 0; head < shape.n_heads; ++head) {
            work(Head{shape, x, head, sequence});
        }
    }
}

}  // namespace

void delta_net_forward_reference(const DeltaNetShape & shape, const DeltaNetOperands & x, float * out,
                                 float * last_state) {
    for_heads(shape, x, [&](const Head & h) {
        Doubles m = h.first_state();
        for (int64_t t = 0; t < shape.n_tokens; ++t) {
            m = h.next(t, m);
            for (int64_t j = 0; j < shape.dim; ++j) {
                double sum = 0.0;
                for (int64_t i = 0; i < shape.dim; ++i) {
                    sum += m[j * shape.dim + i] * h.q(t, i);
                }
                out[h.index(t) * shape.dim + j] = static_cast<float>(shape.scale * sum);
            }
        }
        std::copy(m.begin(), m.end(), last_state + h.state_at());
    });
}

void delta_net_backward_reference(const DeltaNetShape & shape, const DeltaNetOperands & x, const float * d_out,
                                  const float * d_last_state, const DeltaNetGradients & d) {
    const int64_t dim = shape.dim;
    for_heads(shape, x, [&](const Head & h) {
        std::vector<Doubles> states = {h.first_state()};
        for (int64_t t = 0; t < shape.n_tokens; ++t) {
            states.push_back(h.next(t, states.back()));
        }
        Doubles dm(d_last_state + h.state_at(), d_last_state + h.state_at() + dim * dim);
        for (int64_t t = shape.n_tokens - 1; t >= 0; --t) {
            const Doubles &before = states[t], &after = states[t + 1];
            Doubles dq(dim), dk(dim), d_gate(dim);
            double d_beta = 0.0;
            for (int64_t j = 0; j < dim; ++j) {
                const double u = h.removed(t, before, j);
                const double dy = shape.scale * d_out[h.index(t) * dim + j];
                double along_k = 0.0;
                for (int64_t i = 0; i < dim; ++i) {
                    dm[j * dim + i] += dy * h.q(t, i);
                    dq[i] += dy * after[j * dim + i];
                    along_k += dm[j * dim + i] * h.k(t, i);
                }
                d_beta += along_k * u;
                const double du = h.beta(t) * along_k;
                d.dv[h.index(t) * dim + j] = static_cast<float>(du);
                for (int64_t i = 0; i < dim; ++i) {
                    const int64_t at = j * dim + i;
                    dk[i] += h.beta(t) * u * dm[at] - du * h.gate(t, i) * before[at];
                    const double d_gated = dm[at] - du * h.k(t, i);
                    d_gate[i] += d_gated * h.gate(t, i) * before[at];
                    dm[at] = h.gate(t, i) * d_gated;
                }
            }
            d.d_beta[h.index(t)] = static_cast<float>(d_beta);
            double all = 0.0;
            for (int64_t i = 0; i < dim; ++i) {
                d.dq[h.index(t) * dim + i] = static_cast<float>(dq[i]);
                d.dk[h.index(t) * dim + i] = static_cast<float>(dk[i]);
                all += d_gate[i];
                d.dg[h.gate_at(t, i)] = static_cast<float>(shape.gate_width == 1 ? all : d_gate[i]);
            }
        }
        if (d.d_state != nullptr) {
            std::copy(dm.begin(), dm.end(), d.d_state + h.state_at());
        }
    });
}

}  // namespace ggtune::kernels
