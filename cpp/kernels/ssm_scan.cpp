#include "kernels/ssm_scan.h"

#include "kernels/reduce.h"
#include "kernels/scan_core.h"
#include "kernels/state_chunks.h"

namespace ggtune::kernels {
namespace {

using namespace detail;

using HeadGate = StateChunks<Update::add>;                  // Mamba-2: a scan for each head
using StateGate = Scan<ScanKind<Gate::rows, Update::add>>;  // Mamba-1: one scan for the rows of many heads

template <class HeadScan>
constexpr bool kHasRowGates = std::is_same_v<HeadScan, StateGate>;

template <class F>
void map(int64_t n, float * to, F && f) {
    using simd::kWidth;
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) {
        simd::store(to + i, f([i](const float * p) { return simd::load(p + i); }));
    }
    if (i < n) {
        simd::store_partial(to + i, f([i, n](const float * p) { return simd::load_partial(p + i, n - i); }), n - i);
    }
}

// The rows of one head lie so far apart that the CPU does not see a pattern in them.
constexpr int64_t kTokensAhead = 4;

void prefetch(const float * p, int64_t n) {
    constexpr int64_t kLine = 16;  // floats
    for (int64_t i = 0; i < n; i += kLine) {
        __builtin_prefetch(p + i);
    }
}

// Heads [heads.begin, heads.end) of one sequence, all of one group.
struct Part {
    int64_t sequence;
    int64_t group;
    int64_t part;  // of the group
    Range heads;
};

struct Scratch {
    ScanScratch scan;
    AlignedFloats steps;
};

Scratch & this_threads_scratch() {
    static thread_local Scratch scratch;
    return scratch;
}

// A scan for n_heads heads at a time.
template <class HeadScan>
class Scans {
  public:
    Scans(const SsmScanShape & shape, const SsmScanOperands & x, Scratch & scratch, int64_t n_heads, bool backward)
        : shape_(shape),
          x_(x),
          n_heads_(n_heads),
          n_rows_(n_heads * shape.head_dim),
          scan_(scratch.scan, shape.n_tokens, n_rows_, shape.n_state, backward) {
        steps_ = scratch.steps.reserve(kScanBlock * n_heads + n_rows_);
        row_steps_ = steps_ + kScanBlock * n_heads;
    }

    void forward(const Part & part, int64_t head, float * y, float * last_states) {
        load_state(part, head);
        scan_.forward(
            nullptr, [&](Range tokens, const ScanBlock & block) { pack(part, head, tokens, block); },
            [&](Range tokens, const float * out) {
                for (int64_t t = 0; t < tokens.size(); ++t) {
                    std::copy_n(out + t * n_rows_, n_rows_, y + index(tokens.begin + t, part, head) * shape_.head_dim);
                }
            });
        copy_state(scan_.state(), scan_.width(), last_states + state_at(part.sequence, head), shape_.n_state);
    }

    void backward(const Part & part, int64_t head, const float * dy, const float * d_last_states,
                  const SsmScanGradients & d) {
        load_state(part, head);
        scan_.backward(
            nullptr,
            [&](Range tokens, const ScanBlock & block, float * d_out) {
                pack(part, head, tokens, block);
                for (int64_t t = 0; d_out != nullptr && t < tokens.size(); ++t) {
                    const int64_t ahead = std::min(tokens.begin + t + kTokensAhead, shape_.n_tokens - 1);
                    prefetch(dy + index(ahead, part, head) * shape_.head_dim, n_rows_);
                    std::copy_n(dy + index(tokens.begin + t, part, head) * shape_.head_dim, n_rows_,
                                d_out + t * n_rows_);
                }
            },
            [&](float * d_state) {
                copy_state(d_last_states + state_at(part.sequence, head), shape_.n_state, d_state, scan_.width());
                std::fill_n(d.d_a + a_at(part, head), n_heads_ * shape_.a_width, 0.0f);
            },
            [&](Range tokens, const ScanBlock & block, const ScanBlockGradient & gradient) {
                unpack(part, head, tokens, block, gradient, d);
            });
        if constexpr (kHasRowGates<HeadScan>) {
            float * d_a = d.d_a + a_at(part, head);
            for (int64_t row = 0; row < n_rows_; ++row) {
                for (int64_t i = 0; i < shape_.n_state; ++i) {
                    d_a[row / shape_.head_dim * shape_.n_state + i] += scan_.d_rates()[row * scan_.width() + i];
                }
            }
        }
        if (d.d_states != nullptr) {
            copy_state(scan_.state(), scan_.width(), d.d_states + state_at(part.sequence, head), shape_.n_state);
        }
    }

  private:
    int64_t state_at(int64_t sequence, int64_t head) const {
        return (sequence * shape_.n_heads + head) * shape_.head_dim * shape_.n_state;
    }
    int64_t a_at(const Part & part, int64_t head) const {
        return (part.sequence * shape_.n_heads + head) * shape_.a_width;
    }
    int64_t index(int64_t token, const Part & part, int64_t head) const {
        return (part.sequence * shape_.n_tokens + token) * shape_.n_heads + head;
    }
    // of the gradients of b and c
    int64_t part_at(int64_t token, const Part & part) const {
        const int64_t group = (part.sequence * shape_.n_tokens + token) * shape_.n_groups + part.group;
        return (group * ssm_scan_parts(shape_) + part.part) * shape_.n_state;
    }
    void copy_state(const float * from, int64_t from_stride, float * to, int64_t to_stride) const {
        for (int64_t row = 0; row < n_rows_; ++row) {
            std::copy_n(from + row * from_stride, shape_.n_state, to + row * to_stride);
        }
    }
    void load_state(const Part & part, int64_t head) {
        copy_state(x_.states + state_at(x_.first_state[part.sequence], head), shape_.n_state, scan_.state(),
                   scan_.width());
        if constexpr (kHasRowGates<HeadScan>) {
            for (int64_t row = 0; row < n_rows_; ++row) {
                std::copy_n(x_.a + (head + row / shape_.head_dim) * shape_.n_state, shape_.n_state,
                            scan_.rates() + row * scan_.width());
            }
        }
    }

    // steps of the heads, for each of their rows
    const float * for_rows_of(const float * steps) {
        if (shape_.head_dim == 1) {
            return steps;
        }
        for (int64_t h = 0; h < n_heads_; ++h) {
            std::fill_n(row_steps_ + h * shape_.head_dim, shape_.head_dim, steps[h]);
        }
        return row_steps_;
    }

    void pack(const Part & part, int64_t head, Range tokens, const ScanBlock & block) {
        for (int64_t t = 0; t < tokens.size(); ++t) {
            const int64_t token = tokens.begin + t;
            std::copy_n(x_.c.at(token, part.group, part.sequence), shape_.n_state, block.q + t * block.width);
            std::copy_n(x_.b.at(token, part.group, part.sequence), shape_.n_state, block.k + t * block.width);
            float * steps = steps_ + t * n_heads_;
            map(n_heads_, steps, [&](auto get) { return simd::softplus(get(x_.dt + index(token, part, head))); });
            const float * row_steps = for_rows_of(steps);
            const float * x = x_.x.at(token, head, part.sequence);
            prefetch(x_.x.at(std::min(token + kTokensAhead, shape_.n_tokens - 1), head, part.sequence), n_rows_);
            map(n_rows_, block.v + t * n_rows_, [&](auto get) { return get(x) * get(row_steps); });
            if constexpr (kHasRowGates<HeadScan>) {
                std::copy_n(row_steps, n_rows_, block.steps + t * n_rows_);
            } else {
                map(1, block.gate + t, [&](auto get) { return simd::exp(get(steps) * get(x_.a + head)); });
            }
        }
    }

    void unpack(const Part & part, int64_t head, Range tokens, const ScanBlock & block,
                const ScanBlockGradient & gradient, const SsmScanGradients & d) {
        const bool first = head == part.heads.begin;
        for (int64_t t = 0; t < tokens.size(); ++t) {
            const int64_t token = tokens.begin + t;
            const int64_t at = index(token, part, head);
            const float * steps = steps_ + t * n_heads_;
            const float * row_steps = for_rows_of(steps);
            const float * x = x_.x.at(token, head, part.sequence);
            const float * dv = gradient.v + t * n_rows_;
            map(n_rows_, d.dx + at * shape_.head_dim, [&](auto get) { return get(dv) * get(row_steps); });
            float * d_steps = gradient.steps + t * n_rows_;
            map(n_rows_, d_steps,
                [&](auto get) { return kHasRowGates<HeadScan> ? get(d_steps) + get(dv) * get(x) : get(dv) * get(x); });
            float * d_dt = d.d_dt + at;
            for (int64_t h = 0; h < n_heads_; ++h) {
                const float * of_head = d_steps + h * shape_.head_dim;
                d_dt[h] = shape_.head_dim == 1 ? *of_head : static_cast<float>(sum(of_head, shape_.head_dim));
            }
            if constexpr (!kHasRowGates<HeadScan>) {
                const float d_exponent = gradient.gate[t];
                d_dt[0] += d_exponent * x_.a[head];
                d.d_a[a_at(part, head)] += d_exponent * steps[0];
            }
            map(n_heads_, d_dt, [&](auto get) { return get(d_dt) * simd::sigmoid(get(x_.dt + at)); });
            float * d_b = d.d_b + part_at(token, part);
            float * d_c = d.d_c + part_at(token, part);
            for (int64_t i = 0; i < shape_.n_state; ++i) {
                d_b[i] = (first ? 0.0f : d_b[i]) + gradient.k[t * block.width + i];
                d_c[i] = (first ? 0.0f : d_c[i]) + gradient.q[t * block.width + i];
            }
        }
    }

    const SsmScanShape & shape_;
    const SsmScanOperands & x_;
    const int64_t n_heads_, n_rows_;
    HeadScan scan_;
    float * steps_;      // [kScanBlock, n_heads]
    float * row_steps_;  // [n_rows]
};

template <class HeadScan, class Work>
void for_parts(const SsmScanShape & shape, const SsmScanOperands & x, bool backward, int ith, int nth, Work && work) {
    const int64_t n_parts = ssm_scan_parts(shape);
    const int64_t group_heads = shape.n_heads / shape.n_groups;
    const Range mine = split_range(shape.n_sequences * shape.n_groups * n_parts, ith, nth);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
        const Range of_group = split_range(group_heads, static_cast<int>(i % n_parts), static_cast<int>(n_parts));
        const int64_t group = i / n_parts % shape.n_groups;
        const Part part = {i / n_parts / shape.n_groups,
                           group,
                           i % n_parts,
                           {group * group_heads + of_group.begin, group * group_heads + of_group.end}};
        const int64_t n_heads = kHasRowGates<HeadScan> ? part.heads.size() : 1;
        Scans<HeadScan> scans(shape, x, this_threads_scratch(), n_heads, backward);
        for (int64_t head = part.heads.begin; head < part.heads.end; head += n_heads) {
            work(scans, part, head);
        }
    }
}

}  // namespace

int64_t ssm_scan_parts(const SsmScanShape & shape) {
    constexpr int64_t kParts = 32;  // of all groups: as many threads have work
    return std::min(shape.n_heads / shape.n_groups, (kParts + shape.n_groups - 1) / shape.n_groups);
}

void ssm_scan_forward(const SsmScanShape & shape, const SsmScanOperands & x, float * y, float * last_states, int ith,
                      int nth) {
    const auto work = [&](auto & scans, const Part & part, int64_t head) { scans.forward(part, head, y, last_states); };
    if (shape.a_width == 1) {
        for_parts<HeadGate>(shape, x, false, ith, nth, work);
    } else {
        for_parts<StateGate>(shape, x, false, ith, nth, work);
    }
}

void ssm_scan_backward(const SsmScanShape & shape, const SsmScanOperands & x, const float * dy,
                       const float * d_last_states, const SsmScanGradients & d, int ith, int nth) {
    const auto work = [&](auto & scans, const Part & part, int64_t head) {
        scans.backward(part, head, dy, d_last_states, d);
    };
    if (shape.a_width == 1) {
        for_parts<HeadGate>(shape, x, true, ith, nth, work);
    } else {
        for_parts<StateGate>(shape, x, true, ith, nth, work);
    }
}

}  // namespace ggtune::kernels
