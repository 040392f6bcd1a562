#include "files/grid_merge.h"

#include "files/cholesky.h"
#include "kernels/dropout.h"

namespace ggtune {

namespace {

// Row k of the A's of an expert, all products stacked.
const float * stacked_row(const std::vector<LoraProduct> & products, int64_t expert, int64_t k) {
    for (const LoraProduct & product : products) {
        if (k < product.rank) {
            return product.right.data() + (expert * product.rank + k) * product.n_in;
        }
        k -= product.rank;
    }
    return nullptr;
}

}  // namespace

ggml_type next_type_with_grid(ggml_type type, int64_t n_in) {
    const auto bits = [](ggml_type t) {
        return static_cast<double>(ggml_type_size(t)) / static_cast<double>(ggml_blck_size(t));
    };
    for (const ggml_type next : {GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_Q5_1}) {
        if (n_in % ggml_blck_size(next) == 0 && bits(next) > bits(type)) {
            return next;
        }
    }
    return GGML_TYPE_Q8_0;
}

uint64_t rounding_key(uint64_t seed, const std::string & tensor) {
    uint64_t key = kernels::detail::mix64(seed);
    for (const char c : tensor) {
        key = kernels::detail::mix64(key ^ static_cast<unsigned char>(c));
    }
    return key;
}

CutOff::CutOff(const std::vector<LoraProduct> & products) : products_(products) {
    for (const LoraProduct & product : products) {
        rank_ += product.rank;
    }
    const int64_t n_in = products.front().n_in;
    const int64_t n_expert = static_cast<int64_t>(products.front().right.size()) / (products.front().rank * n_in);
    const auto n = static_cast<size_t>(rank_);
    for (int64_t expert = 0; expert < n_expert; ++expert) {
        std::vector<double> lower(n * n);
        for (size_t i = 0; i < n; ++i) {
            const float * a = stacked_row(products, expert, static_cast<int64_t>(i));
            for (size_t j = 0; j <= i; ++j) {
                const float * b = stacked_row(products, expert, static_cast<int64_t>(j));
                double sum = 0;
                for (int64_t k = 0; k < n_in; ++k) {
                    sum += static_cast<double>(a[k]) * static_cast<double>(b[k]);
                }
                lower[i * n + j] = sum;
            }
        }
        cholesky(lower, n);
        cholesky_.push_back(std::move(lower));
    }
}

void CutOff::give_back(int64_t row, const float * lost, float * delta) const {
    const int64_t n_in = products_.front().n_in;
    const int64_t expert = row / products_.front().n_out;
    const std::vector<double> & lower = cholesky_[static_cast<size_t>(expert)];
    const auto n = static_cast<size_t>(rank_);
    std::vector<double> x(n);
    for (int64_t i = 0; i < n_in; ++i) {
        if (lost[i] != 0.0f) {
            for (size_t k = 0; k < n; ++k) {
                x[k] += static_cast<double>(lost[i]) *
                        static_cast<double>(stacked_row(products_, expert, static_cast<int64_t>(k))[i]);
            }
        }
    }
    for (size_t i = 0; i < n; ++i) {
        for (size_t k = 0; k < i; ++k) {
            x[i] -= lower[i * n + k] * x[k];
        }
        x[i] /= lower[i * n + i];
    }
    for (size_t i = n; i-- > 0;) {
        for (size_t k = i + 1; k < n; ++k) {
            x[i] -= lower[k * n + i] * x[k];
        }
        x[i] /= lower[i * n + i];
    }
    for (size_t k = 0; k < n; ++k) {
        const float * a = stacked_row(products_, expert, static_cast<int64_t>(k));
        const auto factor = static_cast<float>(x[k]);
        for (int64_t i = 0; i < n_in; ++i) {
            delta[i] += factor * a[i];
        }
    }
}

}  // namespace ggtune
