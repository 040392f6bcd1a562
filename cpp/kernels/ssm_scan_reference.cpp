// The loops that define the selective scan and its gradient.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/ssm_scan.h"

namespace ggtune::kernels {
namespace {

using Doubles = std::vector<double>;

// One row of the state of a head of one sequence.
struct Row {
    const SsmScanShape & shape;
    const SsmScanOperands & operands;
    int64_t sequence, head, row;

    int64_t group() const { return head / (shape.n_heads / shape.n_groups); }
    int64_t index(int64_t t) const { return (sequence * shape.n_tokens + t) * shape.n_heads + head; }
    int64_t state_at(int64_t slot) const {
        return ((slot * shape.n_heads + head) * shape.head_dim + row) * shape.n_state;
    }
    int64_t a_at(int64_t i) const { return head * shape.a_width + (shape.a_width == 1 ? 0 : i); }
    double a(int64_t i) const { return operands.a[a_at(i)]; }
    double dt(int64_t t) const { return operands.dt[index(t)]; }
    double step(int64_t t) const { return std::log1p(std::exp(dt(t))); }
    double x(int64_t t) const { return operands.x.at(t, head, sequence)[row]; }
    double b(int64_t t, int64_t i) const { return operands.b.at(t, group(), sequence)[i]; }
    double c(int64_t t, int64_t i) const { return operands.c.at(t, group(), sequence)[i]; }

    Doubles first_state() const {
        const float * m = operands.states + state_at(operands.first_state[sequence]);
        return {m, m + shape.n_state};
    }
    Doubles next(int64_t t, const Doubles & m) const {
        Doubles after(m.size());
        for (int64_t i = 0; i < shape.n_state; ++i) {
            after[i] = m[i] * std::exp(step(t) * a(i)) + step(t) * x(t) * b(t, i);
        }
        return after;
    }
};

template <class Work>
void for_rows(const SsmScanShape & shape, const SsmScanOperands & x, Work && work) {
    for (int64_t sequence = 0; sequence < shape.n_sequences; ++sequence) {
        for (int64_t head = 0; head < shape.n_heads; ++head) {
            for (int64_t row = 0; row < shape.head_dim; ++row) {
                work(Row{shape, x, sequence, head, row});
            }
        }
    }
}

void copy(const Doubles & from, float * to) {
    std::transform(from.begin(), from.end(), to, [](double value) { return static_cast<float>(value); });
}

}  // namespace

void ssm_scan_forward_reference(const SsmScanShape & shape, const SsmScanOperands & x, float * y, float * last_states) {
    for_rows(shape, x, [&](const Row & r) {
        Doubles m = r.first_state();
        for (int64_t t = 0; t < shape.n_tokens; ++t) {
            m = r.next(t, m);
            double sum = 0.0;
            for (int64_t i = 0; i < shape.n_state; ++i) {
                sum += m[i] * r.c(t, i);
            }
            y[r.index(t) * shape.head_dim + r.row] = static_cast<float>(sum);
        }
        copy(m, last_states + r.state_at(r.sequence));
    });
}

void ssm_scan_backward_reference(const SsmScanShape & shape, const SsmScanOperands & x, const float * dy,
                                 const float * d_last_states, const SsmScanGradients & d) {
    const int64_t n_values = shape.n_sequences * shape.n_tokens * shape.n_heads;
    const int64_t n_parts = ssm_scan_parts(shape);
    Doubles d_dt(n_values), d_a(shape.n_sequences * shape.n_heads * shape.a_width);
    Doubles d_b(shape.n_sequences * shape.n_tokens * shape.n_groups * n_parts * shape.n_state), d_c(d_b.size());
    for_rows(shape, x, [&](const Row & r) {
        std::vector<Doubles> states = {r.first_state()};
        for (int64_t t = 0; t < shape.n_tokens; ++t) {
            states.push_back(r.next(t, states.back()));
        }
        const float * last = d_last_states + r.state_at(r.sequence);
        Doubles dm(last, last + shape.n_state);
        for (int64_t t = shape.n_tokens - 1; t >= 0; --t) {
            const int64_t at = r.index(t);
            const double slope = 1.0 / (1.0 + std::exp(-r.dt(t)));
            const int64_t token = (r.sequence * shape.n_tokens + t) * shape.n_groups + r.group();
            double dx = 0.0, d_step = 0.0;
            for (int64_t i = 0; i < shape.n_state; ++i) {
                const double gate = std::exp(r.step(t) * r.a(i));
                dm[i] += dy[at * shape.head_dim + r.row] * r.c(t, i);
                d_c[token * n_parts * shape.n_state + i] += dy[at * shape.head_dim + r.row] * states[t + 1][i];
                d_b[token * n_parts * shape.n_state + i] += dm[i] * r.step(t) * r.x(t);
                dx += dm[i] * r.step(t) * r.b(t, i);
                const double d_exponent = dm[i] * gate * states[t][i];
                d_step += dm[i] * r.x(t) * r.b(t, i) + d_exponent * r.a(i);
                d_a[r.sequence * shape.n_heads * shape.a_width + r.a_at(i)] += d_exponent * r.step(t);
                dm[i] *= gate;
            }
            d.dx[at * shape.head_dim + r.row] = static_cast<float>(dx);
            d_dt[at] += d_step * slope;
        }
        if (d.d_states != nullptr) {
            copy(dm, d.d_states + r.state_at(r.sequence));
        }
    });
    copy(d_dt, d.d_dt);
    copy(d_a, d.d_a);
    copy(d_b, d.d_b);
    copy(d_c, d.d_c);
}

}  // namespace ggtune::kernels
