#include <cmath>
#include <vector>

#include "kernels/attention.h"

namespace ggtune::kernels {
namespace {

const float * element(const ConstHeads & heads, int64_t token, int64_t head) {
    return heads.data + token * heads.token_stride + head * heads.head_stride;
}

double dot(const float * a, const float * b, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) {
        sum += static_cast<double>(a[i]) * b[i];
    }
    return sum;
}

struct Row {
    std::vector<double> weights;  // of the keys from first_key[t] on
    std::vector<double> d_logit;  // d logit / d (q . k)
    double lse;
};

Row softmax_row(const AttentionShape & shape, const ConstHeads & q, const ConstHeads & k, int64_t head, int64_t t) {
    const int64_t head_kv = head / (shape.n_heads / shape.n_heads_kv);
    Row row = {{}, {}, -INFINITY};
    double maximum = -INFINITY;
    for (int64_t s = shape.first_key[t]; s < shape.end_key[t]; ++s) {
        double x = shape.pre_scale * dot(element(q, t, head), element(k, s, head_kv), shape.head_dim);
        double slope = static_cast<double>(shape.pre_scale) * shape.post_scale;
        if (shape.softcap != 0.0f) {
            const double tanh = std::tanh(x / shape.softcap);
            x = shape.softcap * tanh;
            slope *= 1.0 - tanh * tanh;
        }
        row.weights.push_back(shape.post_scale * x);
        row.d_logit.push_back(slope);
        maximum = std::max(maximum, row.weights.back());
    }
    double sum = 0.0;
    if (shape.sinks != nullptr) {
        maximum = std::max<double>(maximum, shape.sinks[head]);
        sum = std::exp(shape.sinks[head] - maximum);
    }
    for (double & weight : row.weights) {
        weight = std::exp(weight - maximum);
        sum += weight;
    }
    for (double & weight : row.weights) {
        weight /= sum;
    }
    if (!row.weights.empty()) {
        row.lse = maximum + std::log(sum);
    }
    return row;
}

// [n_tokens, n_heads, dim], dense, in double
class Sums {
  public:
    Sums(int64_t n_tokens, int64_t n_heads, int64_t dim)
        : n_tokens_(n_tokens), n_heads_(n_heads), dim_(dim), values_(static_cast<size_t>(n_tokens * n_heads * dim)) {}

    void add(int64_t token, int64_t head, double factor, const float * row) {
        double * sum = values_.data() + (token * n_heads_ + head) * dim_;
        for (int64_t i = 0; i < dim_; ++i) {
            sum[i] += factor * row[i];
        }
    }

    void write(const Heads & result, bool accumulate) const {
        for (int64_t t = 0; t < n_tokens_; ++t) {
            for (int64_t h = 0; h < n_heads_; ++h) {
                float * row = result.data + t * result.token_stride + h * result.head_stride;
                const double * sum = values_.data() + (t * n_heads_ + h) * dim_;
                for (int64_t i = 0; i < dim_; ++i) {
                    row[i] = static_cast<float>(accumulate ? row[i] + sum[i] : sum[i]);
                }
            }
        }
    }

  private:
    int64_t n_tokens_, n_heads_, dim_;
    std::vector<double> values_;
};

}  // namespace

void attention_forward_reference(const AttentionShape & shape, const ConstHeads & q, const ConstHeads & k,
                                 const ConstHeads & v, const Heads & out, float * lse) {
    Sums sums(shape.n_tokens, shape.n_heads, shape.head_dim_v);
    for (int64_t h = 0; h < shape.n_heads; ++h) {
        const int64_t head_kv = h / (shape.n_heads / shape.n_heads_kv);
        for (int64_t t = 0; t < shape.n_tokens; ++t) {
            const Row row = softmax_row(shape, q, k, h, t);
            for (size_t i = 0; i < row.weights.size(); ++i) {
                sums.add(t, h, row.weights[i], element(v, shape.first_key[t] + static_cast<int64_t>(i), head_kv));
            }
            lse[h * shape.n_tokens + t] = static_cast<float>(row.lse);
        }
    }
    sums.write(out, false);
}

void attention_backward_reference(const AttentionShape & shape, const ConstHeads & q, const ConstHeads & k,
                                  const ConstHeads & v, const ConstHeads & d_out, const Heads & dq, const Heads & dk,
                                  const Heads & dv, bool accumulate) {
    Sums dq_sums(shape.n_tokens, shape.n_heads, shape.head_dim);
    Sums dk_sums(shape.n_tokens, shape.n_heads_kv, shape.head_dim);
    Sums dv_sums(shape.n_tokens, shape.n_heads_kv, shape.head_dim_v);
    for (int64_t h = 0; h < shape.n_heads; ++h) {
        const int64_t head_kv = h / (shape.n_heads / shape.n_heads_kv);
        for (int64_t t = 0; t < shape.n_tokens; ++t) {
            const Row row = softmax_row(shape, q, k, h, t);
            std::vector<double> d_weights;
            double mean = 0.0;
            for (size_t i = 0; i < row.weights.size(); ++i) {
                const int64_t s = shape.first_key[t] + static_cast<int64_t>(i);
                d_weights.push_back(dot(element(d_out, t, h), element(v, s, head_kv), shape.head_dim_v));
                mean += row.weights[i] * d_weights[i];
            }
            for (size_t i = 0; i < row.weights.size(); ++i) {
                const int64_t s = shape.first_key[t] + static_cast<int64_t>(i);
                const double d_score = row.weights[i] * (d_weights[i] - mean) * row.d_logit[i];
                dq_sums.add(t, h, d_score, element(k, s, head_kv));
                dk_sums.add(s, head_kv, d_score, element(q, t, h));
                dv_sums.add(s, head_kv, row.weights[i], element(d_out, t, h));
            }
        }
    }
    dq_sums.write(dq, accumulate);
    dk_sums.write(dk, accumulate);
    dv_sums.write(dv, accumulate);
}

}  // namespace ggtune::kernels
