// The loops that define RWKV's scans, gated linear attention and their gradients.
#include <algorithm>
#include <vector>

#include "kernels/wkv.h"

namespace ggtune::kernels {
namespace {

using Doubles = std::vector<double>;

// One head of one sequence.
struct Head {
    const WkvShape & shape;
    const WkvOperands & x;
    int64_t head, sequence;

    bool is(WkvKind kind) const { return shape.kind == kind; }
    int64_t at(int64_t t, int64_t i) const {
        return ((sequence * shape.n_tokens + t) * shape.n_heads + head) * shape.dim + i;
    }
    // M[j][i] among the states
    int64_t state_at(int64_t j, int64_t i) const {
        const int64_t first = (sequence * shape.n_heads + head) * shape.dim * shape.dim;
        return first + (is(WkvKind::rwkv7) ? j * shape.dim + i : i * shape.dim + j);
    }
    Doubles state(const float * states) const {
        Doubles m;
        for (int64_t j = 0; j < shape.dim; ++j) {
            for (int64_t i = 0; i < shape.dim; ++i) {
                m.push_back(states[state_at(j, i)]);
            }
        }
        return m;
    }
    void save(const Doubles & m, float * states) const {
        for (int64_t j = 0; j < shape.dim; ++j) {
            for (int64_t i = 0; i < shape.dim; ++i) {
                states[state_at(j, i)] = static_cast<float>(m[j * shape.dim + i]);
            }
        }
    }
    double scale() const { return is(WkvKind::gated) ? shape.scale : 1.0f; }
    double u(int64_t i) const { return is(WkvKind::rwkv6) ? x.u[head * shape.dim + i] : 0.0f; }
    double a(int64_t t, int64_t i) const { return is(WkvKind::rwkv7) ? x.a[at(t, i)] : 0.0f; }
    double b(int64_t t, int64_t i) const { return is(WkvKind::rwkv7) ? x.b[at(t, i)] : 0.0f; }
    double v(int64_t t, int64_t j) const { return x.v[at(t, j)]; }

    double along_a(int64_t t, const Doubles & m, int64_t j) const {
        double sum = 0.0;
        for (int64_t i = 0; i < shape.dim; ++i) {
            sum += m[j * shape.dim + i] * a(t, i);
        }
        return sum;
    }
    Doubles next(int64_t t, const Doubles & m) const {
        Doubles after(m.size());
        for (int64_t j = 0; j < shape.dim; ++j) {
            const double c = along_a(t, m, j);
            for (int64_t i = 0; i < shape.dim; ++i) {
                const int64_t e = j * shape.dim + i;
                after[e] = m[e] * x.w[at(t, i)] + v(t, j) * x.k[at(t, i)] + c * b(t, i);
            }
        }
        return after;
    }
};

template <class Work>
void for_heads(const WkvShape & shape, const WkvOperands & x, Work && work) {
    for (int64_t sequence = 0; sequence < shape.n_sequences; ++sequence) {
        for (int64_t head = 0; head < shape.n_heads; ++head) {
            work(Head{shape, x, head, sequence});
        }
    }
}

}  // namespace

void wkv_forward_reference(const WkvShape & shape, const WkvOperands & x, float * out, float * last_state) {
    for_heads(shape, x, [&](const Head & h) {
        Doubles before = h.state(x.state);
        for (int64_t t = 0; t < shape.n_tokens; ++t) {
            const Doubles after = h.next(t, before);
            const Doubles & read = h.is(WkvKind::rwkv6) ? before : after;
            for (int64_t j = 0; j < shape.dim; ++j) {
                double sum = 0.0;
                for (int64_t i = 0; i < shape.dim; ++i) {
                    sum += (read[j * shape.dim + i] + h.u(i) * x.k[h.at(t, i)] * h.v(t, j)) * x.r[h.at(t, i)];
                }
                out[h.at(t, j)] = static_cast<float>(h.scale() * sum);
            }
            before = after;
        }
        h.save(before, last_state);
    });
}

void wkv_backward_reference(const WkvShape & shape, const WkvOperands & x, const float * d_out,
                            const float * d_last_state, const WkvGradients & d) {
    const int64_t dim = shape.dim;
    for_heads(shape, x, [&](const Head & h) {
        std::vector<Doubles> states = {h.state(x.state)};
        for (int64_t t = 0; t < shape.n_tokens; ++t) {
            states.push_back(h.next(t, states.back()));
        }
        Doubles dm = h.state(d_last_state), du(dim);
        for (int64_t t = shape.n_tokens - 1; t >= 0; --t) {
            const Doubles &before = states[t], &after = states[t + 1];
            const bool reads_before = h.is(WkvKind::rwkv6);
            Doubles dr(dim), dk(dim), dv(dim), dw(dim), da(dim), db(dim), d_before(dm.size());
            for (int64_t j = 0; j < dim; ++j) {
                const double dy = h.scale() * d_out[h.at(t, j)];
                const double c = h.along_a(t, before, j);
                double dc = 0.0;
                for (int64_t i = 0; i < dim; ++i) {
                    const int64_t e = j * dim + i;
                    const double r = x.r[h.at(t, i)], k = x.k[h.at(t, i)];
                    dr[i] += dy * ((reads_before ? before : after)[e] + h.u(i) * k * h.v(t, j));
                    (reads_before ? d_before : dm)[e] += dy * r;
                    dv[j] += dy * h.u(i) * k * r + dm[e] * k;
                    dk[i] += dy * h.u(i) * h.v(t, j) * r + dm[e] * h.v(t, j);
                    du[i] += dy * k * h.v(t, j) * r;
                    dw[i] += dm[e] * before[e];
                    db[i] += dm[e] * c;
                    dc += dm[e] * h.b(t, i);
                    d_before[e] += dm[e] * x.w[h.at(t, i)];
                }
                for (int64_t i = 0; i < dim; ++i) {
                    da[i] += dc * before[j * dim + i];
                    d_before[j * dim + i] += dc * h.a(t, i);
                }
            }
            for (int64_t i = 0; i < dim; ++i) {
                d.dr[h.at(t, i)] = static_cast<float>(dr[i]);
                d.dk[h.at(t, i)] = static_cast<float>(dk[i]);
                d.dv[h.at(t, i)] = static_cast<float>(dv[i]);
                d.dw[h.at(t, i)] = static_cast<float>(dw[i]);
                if (h.is(WkvKind::rwkv7)) {
                    d.da[h.at(t, i)] = static_cast<float>(da[i]);
                    d.db[h.at(t, i)] = static_cast<float>(db[i]);
                }
            }
            dm = d_before;
        }
        if (h.is(WkvKind::rwkv6)) {
            const int64_t first = (h.sequence * shape.n_heads + h.head) * dim;
            std::transform(du.begin(), du.end(), d.du + first, [](double value) { return static_cast<float>(value); });
        }
        if (d.d_state != nullptr) {
            h.save(dm, d.d_state);
        }
    });
}

}  // namespace ggtune::kernels
