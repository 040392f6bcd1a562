// Softmax backward, the cross-entropy of logits with integer targets, and their divergence from other logits.
#pragma once

#include <cstdint>

namespace ggtune::kernels {

// y = softmax(scale * x + mask) by row;  dx = scale * (dy - sum(dy * y)) * y
//   y, dy, dx  [n_rows, n_cols], row strides in floats, rows contiguous; dx may be the same array as dy or y.
// Thread ith of nth takes its own rows.
void softmax_backward(int64_t n_rows, int64_t n_cols, const float * y, int64_t y_row_stride, const float * dy,
                      int64_t dy_row_stride, float * dx, int64_t dx_row_stride, float scale, int ith, int nth);

// log softmax(logits)[target] of one row of n_vocab logits, 0 <= target < n_vocab.
double log_probability(const float * logits, int64_t n_vocab, int64_t target);

// The same value; the row becomes the gradient of -weight * log p(target): weight * (softmax(logits) - onehot(target)).
double cross_entropy_gradient_inplace(float * logits, int64_t n_vocab, int64_t target, float weight);

// Kullback-Leibler divergence of softmax(logits) from softmax(teacher), rows of n_vocab logits, in nats.
double divergence(const float * logits, const float * teacher, int64_t n_vocab);

// The row becomes the gradient of weight times that: weight * (softmax(logits) - softmax(teacher)) (Hinton et al. 2015,
// arXiv:1503.02531, at a temperature of 1).
void divergence_gradient_inplace(float * logits, const float * teacher, int64_t n_vocab, float weight);

}  // namespace ggtune::kernels
