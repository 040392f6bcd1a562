// Checks the convolution and the scans of recurrent layers against the loops that define them, and those against finite
// differences.
#include <functional>
#include <memory>
#include <utility>

#include "check.h"
#include "kernels/gated_delta_net.h"
#include "kernels/ssm_conv.h"
#include "kernels/ssm_scan.h"
#include "kernels/wkv.h"

namespace {

using namespace ggtune::kernels;
using namespace ggtune::test;
using Floats = std::vector<float>;

constexpr double kRounding = 2e-6;

void test_ssm_conv(int64_t n_tokens, int64_t n_channels, int64_t n_sequences, int64_t n_taps) {
    const std::string name = "ssm_conv " + std::to_string(n_tokens) + " x " + std::to_string(n_channels);
    const int64_t n_times = n_tokens + n_taps - 1;
    SsmConvShape shape = {n_tokens, n_channels, n_sequences, n_taps, n_times, n_times * n_channels, n_channels + 3, 0};
    shape.y_sequence_stride = shape.y_token_stride * n_tokens;
    const Floats x = random_values(n_sequences * shape.x_sequence_stride, 1);
    const Floats filters = random_values(n_channels * n_taps, 2);
    const Floats dy = random_values(n_sequences * shape.y_sequence_stride, 3);
    Floats y_expected(dy.size(), 7.0f), dx_expected(x.size());
    ssm_conv_forward_reference(shape, x.data(), filters.data(), y_expected.data());
    ssm_conv_backward_reference(shape, filters.data(), dy.data(), dx_expected.data());
    double forward_sum = 0, backward_sum = 0;  // the backward pass is the transpose of the forward one
    for (int64_t i = 0; i < n_sequences * n_tokens; ++i) {
        for (int64_t c = 0; c < n_channels; ++c) {
            const int64_t at = i * shape.y_token_stride + c;
            forward_sum += static_cast<double>(y_expected[at]) * dy[at];
        }
    }
    for (size_t i = 0; i < x.size(); ++i) {
        backward_sum += static_cast<double>(dx_expected[i]) * x[i];
    }
    check(name + ", transposed", std::abs(forward_sum / backward_sum - 1), 1e-4);
    for (int nth = 1; nth <= 3; ++nth) {
        Floats y(dy.size(), 7.0f), dx(x.size());
        run_parts(nth, [&](int ith, int n) {
            ssm_conv_forward(shape, x.data(), filters.data(), y.data(), ith, n);
            ssm_conv_backward(shape, filters.data(), dy.data(), dx.data(), ith, n);
        });
        const std::string threads = ", threads: " + std::to_string(nth);
        check(name + " forward" + threads, relative_difference(y, y_expected), kRounding);
        check(name + " backward" + threads, relative_difference(dx, dx_expected), kRounding);
    }
}

// The same by rows: what ssm_conv computes of x behind the state.
void test_ssm_conv_rows(int64_t n_tokens, int64_t n_channels, int64_t n_sequences, int64_t n_taps) {
    const std::string name = "ssm_conv by rows " + std::to_string(n_tokens) + " x " + std::to_string(n_channels);
    const int64_t n_before = n_taps - 1, n_times = n_tokens + n_before;
    const SsmConvShape whole = {n_tokens, n_channels,           n_sequences, n_taps,
                                n_times,  n_times * n_channels, n_channels,  n_channels * n_tokens};
    const int64_t token_stride = n_channels + 3;
    const SsmConvRowsShape shape = {n_tokens,     n_channels,
                                    n_sequences,  n_taps,
                                    token_stride, token_stride * n_tokens,
                                    n_channels,   n_channels * n_tokens,
                                    n_before,     n_before * n_channels};
    const Floats x = random_values(n_sequences * whole.x_sequence_stride, 1);
    const Floats filters = random_values(n_channels * n_taps, 2);
    const Floats dy = random_values(n_sequences * whole.y_sequence_stride, 3);
    Floats y_expected(dy.size()), dx_whole(x.size());
    ssm_conv_forward_reference(whole, x.data(), filters.data(), y_expected.data());
    ssm_conv_backward_reference(whole, filters.data(), dy.data(), dx_whole.data());
    Floats state(n_sequences * shape.state_sequence_stride), rows(n_sequences * shape.x_sequence_stride, 7.0f);
    Floats dx_expected = rows;
    for (int64_t i = 0; i < static_cast<int64_t>(x.size()); ++i) {
        const int64_t s = i % n_times, c = i / n_times % n_channels, sequence = i / n_times / n_channels;
        if (s < n_before) {
            state[sequence * shape.state_sequence_stride + c * n_before + s] = x[i];
        } else {
            const int64_t at = sequence * shape.x_sequence_stride + (s - n_before) * token_stride + c;
            rows[at] = x[i];
            dx_expected[at] = dx_whole[i];
        }
    }
    for (int nth = 1; nth <= 3; ++nth) {
        Floats y(dy.size()), dx(rows.size(), 7.0f);
        run_parts(nth, [&](int ith, int n) {
            ssm_conv_rows_forward(shape, state.data(), rows.data(), filters.data(), y.data(), ith, n);
            ssm_conv_rows_backward(shape, filters.data(), dy.data(), dx.data(), ith, n);
        });
        const std::string threads = ", threads: " + std::to_string(nth);
        check(name + " forward" + threads, relative_difference(y, y_expected), kRounding);
        check(name + " backward" + threads, relative_difference(dx, dx_expected), kRounding);
    }
}

// Some operands of a scan and what it computes from them, all contiguous.
struct Scan {
    std::string name;
    std::vector<Floats> operands;
    std::vector<Floats> outputs;    // by their sizes
    std::vector<Floats> gradients;  // of the operands, or of those that heads share for each head
    // (operands, outputs, ith, nth); nth 0: the reference
    std::function<void(const std::vector<Floats> &, std::vector<Floats> &, int, int)> forward;
    // (operands, d_outputs, gradients, ith, nth)
    std::function<void(const std::vector<Floats> &, const std::vector<Floats> &, std::vector<Floats> &, int, int)>
        backward;
    // of gradients[i], as that of operands[i]
    std::function<Floats(size_t i, const Floats &)> shared = [](size_t, const Floats & d) { return d; };
};

// The reference's gradients against central differences of its forward pass, along one random direction of each
// operand.
void test_reference(const Scan & scan, const std::vector<Floats> & d_outputs, const std::vector<Floats> & gradients) {
    constexpr float kStep = 3e-3f;
    for (size_t i = 0; i < scan.operands.size(); ++i) {
        const auto sum_at = [&](float step, const Floats & direction) {
            std::vector<Floats> operands = scan.operands, outputs = scan.outputs;
            for (size_t j = 0; j < direction.size(); ++j) {
                operands[i][j] += step * direction[j];
            }
            scan.forward(operands, outputs, 0, 0);
            double sum = 0;
            for (size_t o = 0; o < outputs.size(); ++o) {
                for (size_t j = 0; j < outputs[o].size(); ++j) {
                    sum += static_cast<double>(outputs[o][j]) * d_outputs[o][j];
                }
            }
            return sum;
        };
        const Floats gradient = scan.shared(i, gradients[i]);
        // along the gradient and aside: neither noise nor a part that is missing hides
        Floats direction = random_values(static_cast<int64_t>(gradient.size()), 50 + static_cast<uint32_t>(i));
        const double size = norm({gradient.begin(), gradient.end()}) / std::sqrt(static_cast<double>(gradient.size()));
        double expected = 0, length = 0;
        for (size_t j = 0; j < direction.size(); ++j) {
            direction[j] = 0.3f * (direction[j] + gradient[j] / static_cast<float>(size));
            expected += static_cast<double>(direction[j]) * gradient[j];
            length += static_cast<double>(direction[j]) * direction[j];
        }
        for (float & value : direction) {
            value /= static_cast<float>(std::sqrt(length));
        }
        expected /= std::sqrt(length);
        const double difference = (sum_at(kStep, direction) - sum_at(-kStep, direction)) / (2.0 * kStep);
        check(scan.name + ", operand " + std::to_string(i), std::abs(difference / expected - 1), 1e-3);
    }
}

void test_scan(const Scan & scan, double tolerance, bool differences) {
    std::vector<Floats> expected = scan.outputs, gradients_expected = scan.gradients;
    scan.forward(scan.operands, expected, 0, 0);
    std::vector<Floats> d_outputs;
    for (size_t i = 0; i < expected.size(); ++i) {
        d_outputs.push_back(random_values(static_cast<int64_t>(expected[i].size()), 30 + static_cast<uint32_t>(i)));
    }
    scan.backward(scan.operands, d_outputs, gradients_expected, 0, 0);
    if (differences) {
        test_reference(scan, d_outputs, gradients_expected);
    }
    std::vector<Floats> first, first_gradients;
    for (int nth = 1; nth <= 3; ++nth) {
        std::vector<Floats> outputs = scan.outputs, gradients = scan.gradients;
        run_parts(nth, [&](int ith, int n) { scan.forward(scan.operands, outputs, ith, n); });
        run_parts(nth, [&](int ith, int n) { scan.backward(scan.operands, d_outputs, gradients, ith, n); });
        if (nth > 1) {
            for (size_t i = 0; i < outputs.size(); ++i) {
                check(scan.name + ", threads", same_bits(outputs[i], first[i]) ? 0 : 1, 0);
            }
            for (size_t i = 0; i < gradients.size(); ++i) {
                check(scan.name + ", threads, gradient", same_bits(gradients[i], first_gradients[i]) ? 0 : 1, 0);
            }
            continue;
        }
        for (size_t i = 0; i < outputs.size(); ++i) {
            check(scan.name + ", output " + std::to_string(i), relative_difference(outputs[i], expected[i]), tolerance);
        }
        for (size_t i = 0; i < gradients.size(); ++i) {
            check(scan.name + ", gradient " + std::to_string(i),
                  relative_difference(scan.shared(i, gradients[i]), scan.shared(i, gradients_expected[i])), tolerance);
        }
        first = outputs;
        first_gradients = gradients;
    }
}

Floats between(float low, float high, int64_t n, uint32_t seed) {
    Floats values = random_values(n, seed);
    for (float & value : values) {
        value = low + (high - low) * (0.5f + 0.5f * std::tanh(value));
    }
    return values;
}

// The sum over heads h, h + n, h + 2n, ... of [tokens, n_heads, dim]: [tokens, n, dim]
Floats tiled_heads(const Floats & d, int64_t dim, int64_t n_heads, int64_t n) {
    Floats sum(d.size() / static_cast<size_t>(n_heads) * static_cast<size_t>(n));
    for (int64_t i = 0; i < static_cast<int64_t>(d.size()); ++i) {
        const int64_t token = i / (dim * n_heads), head = i / dim % n_heads;
        sum[(token * n + head % n) * dim + i % dim] += d[i];
    }
    return sum;
}

void test_delta_net(int64_t dim, int64_t n_heads_qk, int64_t n_heads, int64_t n_tokens, int64_t n_sequences,
                    bool vector_gate, bool differences, bool keeps, float strongest_decay = -0.6f) {
    DeltaNetShape shape = {n_tokens,   n_sequences, n_heads, n_heads_qk,
                           n_heads_qk, dim,         1,       1.0f / std::sqrt(static_cast<float>(dim))};
    shape.gate_width = vector_gate ? dim : 1;
    const int64_t n = n_tokens * n_sequences;
    const float unit = 1.0f / std::sqrt(static_cast<float>(dim));
    Scan scan;
    scan.name = "delta_net " + std::to_string(dim) + " x " + std::to_string(n_tokens) + (vector_gate ? ", vector" : "");
    scan.operands = {random_values(n * n_heads_qk * dim, 1, unit * 3),
                     random_values(n * n_heads_qk * dim, 2, unit),
                     random_values(n * n_heads * dim, 3),
                     between(strongest_decay, -0.01f, n * n_heads * shape.gate_width, 4),
                     between(0.1f, 0.9f, n * n_heads, 5),
                     random_values(n_sequences * n_heads * dim * dim, 6, unit)};
    scan.outputs = {Floats(n * n_heads * dim), Floats(scan.operands[5].size())};
    const auto kept = std::make_shared<Floats>(scan.outputs[0].size());  // for the gradient
    scan.gradients = {Floats(n * n_heads * dim), Floats(n * n_heads * dim), scan.operands[2],
                      scan.operands[3],          scan.operands[4],          scan.operands[5]};
    const auto operands = [=](const std::vector<Floats> & x) {
        return DeltaNetOperands{packed_vectors(x[0].data(), dim, n_heads_qk, n_tokens),
                                packed_vectors(x[1].data(), dim, n_heads_qk, n_tokens),
                                packed_vectors(x[2].data(), dim, n_heads, n_tokens),
                                x[3].data(),
                                x[4].data(),
                                x[5].data()};
    };
    scan.forward = [=](const std::vector<Floats> & x, std::vector<Floats> & y, int ith, int nth) {
        if (nth == 0) {
            delta_net_forward_reference(shape, operands(x), y[0].data(), y[1].data());
        } else {
            delta_net_forward(shape, operands(x), y[0].data(), y[1].data(), keeps ? kept->data() : nullptr, ith, nth);
        }
    };
    scan.backward = [=](const std::vector<Floats> & x, const std::vector<Floats> & dy, std::vector<Floats> & d, int ith,
                        int nth) {
        const DeltaNetGradients to = {d[0].data(), d[1].data(), d[2].data(), d[3].data(), d[4].data(), d[5].data()};
        if (nth == 0) {
            delta_net_backward_reference(shape, operands(x), dy[0].data(), dy[1].data(), to);
        } else {
            delta_net_backward(shape, operands(x), dy[0].data(), dy[1].data(), keeps ? kept->data() : nullptr, to, ith,
                               nth);
        }
    };
    scan.shared = [=](size_t i, const Floats & d) { return i < 2 ? tiled_heads(d, dim, n_heads, n_heads_qk) : d; };
    test_scan(scan, kRounding, differences);
}

// The sum over the middle dimension of [outer, n, inner]: [outer, inner]
Floats summed(const Floats & d, int64_t n, int64_t inner) {
    Floats sum(d.size() / static_cast<size_t>(n));
    for (int64_t i = 0; i < static_cast<int64_t>(d.size()); ++i) {
        sum[i / (n * inner) * inner + i % inner] += d[i];
    }
    return sum;
}

struct SsmCase {
    int64_t n_state, head_dim, n_heads, n_groups, n_tokens, n_sequences;
    bool wide_a;
    bool differences;
};

void test_ssm_scan(const SsmCase & c) {
    const SsmScanShape shape = {c.n_tokens, c.n_sequences,           c.n_heads, c.n_groups, c.head_dim,
                                c.n_state,  c.wide_a ? c.n_state : 1};
    const int64_t n = c.n_tokens * c.n_sequences;
    const int64_t n_slots = c.n_sequences + 1;
    const int64_t state_size = c.n_heads * c.head_dim * c.n_state;
    std::vector<int32_t> first_state;  // the first slot is nobody's
    for (int64_t i = 0; i < c.n_sequences; ++i) {
        first_state.push_back(static_cast<int32_t>(c.n_sequences - i));
    }
    Scan scan;
    scan.name = "ssm_scan " + std::to_string(c.head_dim) + " x " + std::to_string(c.n_state) + " x " +
                std::to_string(c.n_tokens) + (c.wide_a ? ", wide" : "");
    const float unit = 1.0f / std::sqrt(static_cast<float>(c.n_state));
    scan.operands = {
        random_values(n * c.n_heads * c.head_dim, 1),         random_values(n * c.n_heads, 2),
        between(-0.8f, -0.02f, c.n_heads * shape.a_width, 3), random_values(n * c.n_groups * c.n_state, 4, unit),
        random_values(n * c.n_groups * c.n_state, 5),         random_values(n_slots * state_size, 6, unit)};
    const int64_t n_parts = ssm_scan_parts(shape);
    const Floats of_groups(n * c.n_groups * n_parts * c.n_state);
    scan.outputs = {scan.operands[0], Floats(c.n_sequences * state_size)};
    scan.gradients = {scan.operands[0], scan.operands[1], Floats(c.n_sequences * scan.operands[2].size()),
                      of_groups,        of_groups,        scan.outputs[1]};
    const auto operands = [=](const std::vector<Floats> & x) {
        return SsmScanOperands{packed_vectors(x[0].data(), c.head_dim, c.n_heads, c.n_tokens),
                               x[1].data(),
                               x[2].data(),
                               packed_vectors(x[3].data(), c.n_state, c.n_groups, c.n_tokens),
                               packed_vectors(x[4].data(), c.n_state, c.n_groups, c.n_tokens),
                               x[5].data(),
                               first_state.data()};
    };
    scan.forward = [=](const std::vector<Floats> & x, std::vector<Floats> & y, int ith, int nth) {
        if (nth == 0) {
            ssm_scan_forward_reference(shape, operands(x), y[0].data(), y[1].data());
        } else {
            ssm_scan_forward(shape, operands(x), y[0].data(), y[1].data(), ith, nth);
        }
    };
    scan.backward = [=](const std::vector<Floats> & x, const std::vector<Floats> & dy, std::vector<Floats> & d, int ith,
                        int nth) {
        const SsmScanGradients to = {d[0].data(), d[1].data(), d[2].data(), d[3].data(), d[4].data(), d[5].data()};
        if (nth == 0) {
            ssm_scan_backward_reference(shape, operands(x), dy[0].data(), dy[1].data(), to);
        } else {
            ssm_scan_backward(shape, operands(x), dy[0].data(), dy[1].data(), to, ith, nth);
        }
    };
    scan.shared = [=](size_t i, const Floats & d) {
        if (i == 2) {
            return summed(d, c.n_sequences, c.n_heads * shape.a_width);
        }
        if (i == 5) {
            Floats of_slots(n_slots * state_size);
            for (int64_t s = 0; s < c.n_sequences; ++s) {
                std::copy_n(d.begin() + s * state_size, state_size, of_slots.begin() + first_state[s] * state_size);
            }
            return of_slots;
        }
        return i == 3 || i == 4 ? summed(d, n_parts, c.n_state) : d;
    };
    test_scan(scan, kRounding, c.differences);
}

void test_wkv(WkvKind kind, int64_t dim, int64_t n_heads, int64_t n_tokens, int64_t n_sequences, bool differences,
              bool keeps) {
    const WkvShape shape = {kind, n_tokens, n_sequences, n_heads, dim, 0.7f};
    const int64_t n = n_tokens * n_sequences * n_heads * dim;
    const float unit = 1.0f / std::sqrt(static_cast<float>(dim));
    const char * const names[] = {"gated", "rwkv6", "rwkv7"};
    Scan scan;
    scan.name =
        std::string(names[static_cast<int>(kind)]) + " " + std::to_string(dim) + " x " + std::to_string(n_tokens);
    scan.operands = {random_values(n, 1), random_values(n, 2, unit), random_values(n, 3), between(0.5f, 0.99f, n, 4),
                     random_values(n_sequences * n_heads * dim * dim, 5, unit)};
    const bool low_rank = kind == WkvKind::rwkv7;
    const bool bonus = kind == WkvKind::rwkv6;
    if (low_rank) {
        scan.operands.push_back(random_values(n, 6, 0.7f * unit));
        scan.operands.push_back(random_values(n, 7, 0.7f * unit));
    } else if (bonus) {
        scan.operands.push_back(random_values(n_heads * dim, 8));
    }
    scan.outputs = {scan.operands[0], scan.operands[4]};
    const auto kept = std::make_shared<Floats>(scan.outputs[0].size());  // for the gradient
    scan.gradients = scan.operands;
    if (bonus) {
        scan.gradients[5] = Floats(n_sequences * n_heads * dim);
    }
    const auto operands = [=](const std::vector<Floats> & x) {
        return WkvOperands{x[0].data(),
                           x[1].data(),
                           x[2].data(),
                           x[3].data(),
                           low_rank ? x[5].data() : nullptr,
                           low_rank ? x[6].data() : nullptr,
                           bonus ? x[5].data() : nullptr,
                           x[4].data()};
    };
    scan.forward = [=](const std::vector<Floats> & x, std::vector<Floats> & y, int ith, int nth) {
        if (nth == 0) {
            wkv_forward_reference(shape, operands(x), y[0].data(), y[1].data());
        } else {
            wkv_forward(shape, operands(x), y[0].data(), y[1].data(), keeps ? kept->data() : nullptr, ith, nth);
        }
    };
    scan.backward = [=](const std::vector<Floats> & x, const std::vector<Floats> & dy, std::vector<Floats> & d, int ith,
                        int nth) {
        const WkvGradients to = {d[0].data(),
                                 d[1].data(),
                                 d[2].data(),
                                 d[3].data(),
                                 low_rank ? d[5].data() : nullptr,
                                 low_rank ? d[6].data() : nullptr,
                                 bonus ? d[5].data() : nullptr,
                                 d[4].data()};
        if (nth == 0) {
            wkv_backward_reference(shape, operands(x), dy[0].data(), dy[1].data(), to);
        } else {
            wkv_backward(shape, operands(x), dy[0].data(), dy[1].data(), keeps ? kept->data() : nullptr, to, ith, nth);
        }
    };
    scan.shared = [=](size_t i, const Floats & d) {
        return i == 5 && bonus ? summed(d, n_sequences, n_heads * dim) : d;
    };
    test_scan(scan, kRounding, differences);
}

}  // namespace

int main() {
    test_ssm_conv(1, 1, 1, 4);
    test_ssm_conv(5, 19, 2, 4);
    test_ssm_conv(64, 16, 1, 3);
    test_ssm_conv(131, 37, 3, 4);
    test_ssm_conv_rows(2, 5, 2, 4);
    test_ssm_conv_rows(70, 300, 2, 3);
    test_ssm_conv_rows(9, 528, 1, 4);
    for (const bool vector_gate : {false, true}) {
        test_delta_net(5, 1, 2, 7, 2, vector_gate, true, false);
        test_delta_net(16, 2, 4, 71, 2, vector_gate, true, true);
        test_delta_net(37, 2, 2, 33, 1, vector_gate, true, false);
        test_delta_net(128, 1, 2, 130, 1, vector_gate, false, true);
        test_delta_net(128, 1, 2, 130, 1, vector_gate, false, false);
        test_delta_net(32, 1, 2, 70, 1, vector_gate, false, true, -200.0f);  // gates that are 0 in float32
    }
    test_ssm_scan({5, 3, 4, 2, 7, 2, false, true});
    test_ssm_scan({16, 5, 3, 1, 67, 2, false, true});
    test_ssm_scan({128, 64, 2, 1, 65, 1, false, false});
    test_ssm_scan({5, 2, 70, 1, 35, 2, false, true});  // several heads to a part
    test_ssm_scan({5, 1, 12, 2, 7, 2, true, true});
    test_ssm_scan({16, 1, 70, 1, 67, 2, true, true});
    test_ssm_scan({8, 3, 6, 2, 33, 1, true, true});
    for (const WkvKind kind : {WkvKind::gated, WkvKind::rwkv6, WkvKind::rwkv7}) {
        test_wkv(kind, 5, 3, 7, 2, true, false);
        test_wkv(kind, 18, 2, 71, 2, true, true);
        test_wkv(kind, 64, 2, 65, 1, false, true);
        test_wkv(kind, 64, 2, 65, 1, false, false);
    }
    return finish();
}
