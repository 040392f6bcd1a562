#include "files/grid_descent.h"

#include <algorithm>
#include <cmath>

#include "files/cholesky.h"
#include "kernels/dequantize.h"

namespace ggtune {

namespace {

// x = L^-1 x for rows x of `width` values: [n, width].
void solve_lower(const std::vector<double> & lower, size_t n, std::vector<float> & x, size_t width) {
    for (size_t i = 0; i < n; ++i) {
        float * xi = x.data() + i * width;
        for (size_t k = 0; k < i; ++k) {
            const auto factor = static_cast<float>(lower[i * n + k]);
            const float * xk = x.data() + k * width;
            for (size_t c = 0; c < width; ++c) {
                xi[c] -= factor * xk[c];
            }
        }
        const auto scale = static_cast<float>(1.0 / lower[i * n + i]);
        for (size_t c = 0; c < width; ++c) {
            xi[c] *= scale;
        }
    }
}

double dot(const float * a, const float * b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    }
    return sum;
}

void add(float * to, float factor, const float * from, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        to[i] += factor * from[i];
    }
}

}  // namespace

GridDescent::GridDescent(ggml_type type, const std::vector<LoraProduct> & products, const float * h,
                         const Weights & weights)
    : type_(type), products_(products), h_(h), weights_(weights), n_in_(products.front().n_in) {
    const int64_t n_out = products.front().n_out;
    for (const LoraProduct & product : products) {
        rank_ += product.rank;
    }
    const auto rank = static_cast<size_t>(rank_);
    const auto n_in = static_cast<size_t>(n_in_);
    a_h_.resize(rank * n_in);
    std::vector<const float *> a;  // rows of A
    for (const LoraProduct & product : products) {
        for (int64_t k = 0; k < product.rank; ++k) {
            a.push_back(product.right.data() + k * n_in_);
        }
    }
    for (size_t k = 0; k < rank; ++k) {
        for (size_t j = 0; j < n_in; ++j) {
            add(a_h_.data() + k * n_in, a[k][j], h + j * n_in, n_in_);
        }
    }
    std::vector<double> gram(rank * rank);
    for (size_t i = 0; i < rank; ++i) {
        for (size_t j = 0; j < rank; ++j) {
            gram[i * rank + j] = dot(a_h_.data() + i * n_in, a[j], n_in_);
        }
    }
    cholesky(gram, rank);
    k_ = a_h_;
    solve_lower(gram, rank, k_, n_in);

    k_k_.resize(n_in * n_in);
    for (size_t j = 0; j < n_in; ++j) {
        for (size_t k = 0; k < rank; ++k) {
            add(k_k_.data() + j * n_in, k_[k * n_in + j], k_.data() + k * n_in, n_in_);
        }
    }

    std::vector<float> columns(rank * static_cast<size_t>(n_out));  // B transposed: [rank, n_out]
    size_t first = 0;
    for (const LoraProduct & product : products) {
        for (int64_t row = 0; row < n_out; ++row) {
            for (int64_t k = 0; k < product.rank; ++k) {
                columns[(first + static_cast<size_t>(k)) * static_cast<size_t>(n_out) + static_cast<size_t>(row)] =
                    product.left[static_cast<size_t>(row * product.rank + k)];
            }
        }
        first += static_cast<size_t>(product.rank);
    }
    for (size_t i = 0; i < rank; ++i) {
        for (size_t j = 0; j < rank; ++j) {
            gram[i * rank + j] = dot(columns.data() + i * static_cast<size_t>(n_out),
                                     columns.data() + j * static_cast<size_t>(n_out), n_out);
        }
    }
    cholesky(gram, rank);
    solve_lower(gram, rank, columns, static_cast<size_t>(n_out));
    b_.resize(columns.size());
    for (size_t row = 0; row < static_cast<size_t>(n_out); ++row) {
        for (size_t k = 0; k < rank; ++k) {
            b_[row * rank + k] = columns[k * static_cast<size_t>(n_out) + row];
        }
    }
}

GridDescent::Stripe::Stripe(const GridDescent & descent)
    : descent_(descent),
      codes_(descent.type_, descent.n_in_),
      error_(static_cast<size_t>(descent.n_in_)),
      h_error_(static_cast<size_t>(descent.n_in_)),
      gradient_(static_cast<size_t>(descent.n_in_)),
      curvature_(static_cast<size_t>(descent.n_in_)),
      old_(static_cast<size_t>(descent.n_in_)),
      costs_(static_cast<size_t>(descent.n_in_)),
      seen_(static_cast<size_t>(descent.rank_ * descent.n_in_)),
      bias_(static_cast<size_t>(descent.rank_ * descent.rank_)) {}

GridDescent::Move GridDescent::Stripe::cheapest() {
    const float * up = codes_.up().data();
    const float * down = codes_.down().data();
    Move best;
    for (size_t j = 0; j < costs_.size(); ++j) {
        const float g = 2.0f * gradient_[j];
        costs_[j] = std::min(up[j] * (g + up[j] * curvature_[j]), down[j] * (g + down[j] * curvature_[j]));
        if (costs_[j] < best.cost) {
            best = {static_cast<int64_t>(j), 0.0f, costs_[j]};
        }
    }
    if (best.at >= 0) {
        const auto j = static_cast<size_t>(best.at);
        const float g = 2.0f * gradient_[j];
        best.change = up[j] * (g + up[j] * curvature_[j]) < down[j] * (g + down[j] * curvature_[j]) ? up[j] : down[j];
    }
    return best;
}

void GridDescent::Stripe::apply(const Move & move, float own_weight, float bias_weight) {
    const int64_t n = descent_.n_in_;
    const auto at = static_cast<size_t>(move.at);
    error_[at] += move.change == codes_.up()[at] ? codes_.move_up(move.at) : codes_.move_down(move.at);
    add(h_error_.data(), move.change, descent_.h_ + move.at * n, n);
    add(gradient_.data(), move.change * own_weight, descent_.h_ + move.at * n, n);
    add(gradient_.data(), move.change * bias_weight, descent_.k_k_.data() + move.at * n, n);
}

int64_t GridDescent::Stripe::settle(int64_t row, const uint8_t * before, const float * delta, uint8_t * after) {
    const GridDescent & d = descent_;
    const int64_t n = d.n_in_;
    const auto rank = static_cast<size_t>(d.rank_);
    kernels::dequantize_row(d.type_, before, old_.data(), n);
    kernels::dequantize_row(d.type_, after, error_.data(), n);

    // H e: a column for each code that has moved, and the adapter's own share, which has low rank
    std::fill(h_error_.begin(), h_error_.end(), 0.0f);
    for (int64_t j = 0; j < n; ++j) {
        const auto at = static_cast<size_t>(j);
        const float moved = error_[at] - old_[at];
        if (moved != 0.0f) {
            add(h_error_.data(), moved, d.h_ + j * n, n);
        }
        error_[at] = moved - delta[at];
    }
    size_t first = 0;
    for (const LoraProduct & product : d.products_) {
        for (int64_t k = 0; k < product.rank; ++k) {
            add(h_error_.data(), -product.left[static_cast<size_t>(row * product.rank + k)],
                d.a_h_.data() + (first + static_cast<size_t>(k)) * static_cast<size_t>(n), n);
        }
        first += static_cast<size_t>(product.rank);
    }

    const float * b = d.b_.data() + static_cast<size_t>(row) * rank;
    double b_square = 0;
    for (size_t k = 0; k < rank; ++k) {
        b_square += static_cast<double>(b[k]) * static_cast<double>(b[k]);
    }
    const auto own_weight = static_cast<float>(1.0 + d.weights_.seen * b_square);
    for (int64_t j = 0; j < n; ++j) {
        gradient_[static_cast<size_t>(j)] = own_weight * h_error_[static_cast<size_t>(j)];
    }
    for (size_t k = 0; k < rank; ++k) {
        add(gradient_.data(), static_cast<float>(d.weights_.seen) * b[k], seen_.data() + k * static_cast<size_t>(n), n);
        const float * direction = d.k_.data() + k * static_cast<size_t>(n);
        double pull = b_square * dot(direction, error_.data(), n);
        for (size_t i = 0; i < rank; ++i) {
            pull += static_cast<double>(b[i]) * bias_[i * rank + k];
        }
        add(gradient_.data(), static_cast<float>(d.weights_.bias * pull), direction, n);
    }
    const auto bias_weight = static_cast<float>(d.weights_.bias * b_square);
    for (int64_t j = 0; j < n; ++j) {
        curvature_[static_cast<size_t>(j)] =
            own_weight * d.h_[j * n + j] + bias_weight * d.k_k_[static_cast<size_t>(j * n + j)];
    }

    codes_.load(after);
    // every move pays, so this ends; the limit is for damaged values
    for (int64_t step = 0; step < n; ++step) {
        const Move single = cheapest();
        if (single.at < 0) {
            break;
        }
        apply(single, own_weight, bias_weight);
    }
    codes_.store(after);

    for (size_t k = 0; k < rank; ++k) {
        add(seen_.data() + k * static_cast<size_t>(n), b[k], h_error_.data(), n);
        const double along = dot(d.k_.data() + k * static_cast<size_t>(n), error_.data(), n);
        for (size_t i = 0; i < rank; ++i) {
            bias_[i * rank + k] += static_cast<double>(b[i]) * along;
        }
    }
    const std::vector<float> & up = codes_.up();
    const std::vector<float> & down = codes_.down();
    int64_t n_moved = 0;
    for (size_t at = 0; at < static_cast<size_t>(n); ++at) {
        n_moved += std::fabs(error_[at] + delta[at]) > 0.25f * std::max(std::fabs(up[at]), std::fabs(down[at])) ? 1 : 0;
    }
    return n_moved;
}

}  // namespace ggtune
