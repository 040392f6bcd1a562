// The short causal convolution in front of a recurrent layer: one filter per channel.
//   y[t][c] = sum over k < n_taps of filters[c][k] * x[c][t + k]
#pragma once

#include <cstdint>

namespace ggtune::kernels {

// Strides in floats. Time runs fastest in x, which begins with n_taps - 1 values from before the sequence; channels run
// fastest in y.
struct SsmConvShape {
    int64_t n_tokens;
    int64_t n_channels;
    int64_t n_sequences;
    int64_t n_taps;
    int64_t x_channel_stride;  // n_tokens + n_taps - 1 values
    int64_t x_sequence_stride;
    int64_t y_token_stride;
    int64_t y_sequence_stride;
};

// filters [n_channels, n_taps]. Thread ith of nth takes its own channels; the result has the same bits for every nth.
void ssm_conv_forward(const SsmConvShape & shape, const float * x, const float * filters, float * y, int ith, int nth);

// dx[c][s] = sum over k of filters[c][k] * dy[s - k][c]
void ssm_conv_backward(const SsmConvShape & shape, const float * filters, const float * dy, float * dx, int ith,
                       int nth);

// The same where channels run fastest in x, too, and the values from before the sequence are apart.
struct SsmConvRowsShape {
    int64_t n_tokens;
    int64_t n_channels;
    int64_t n_sequences;
    int64_t n_taps;
    int64_t x_token_stride;
    int64_t x_sequence_stride;
    int64_t y_token_stride;
    int64_t y_sequence_stride;
    int64_t state_channel_stride;
    int64_t state_sequence_stride;
};

// state [n_sequences, n_channels, n_taps - 1]
void ssm_conv_rows_forward(const SsmConvRowsShape & shape, const float * state, const float * x, const float * filters,
                           float * y, int ith, int nth);
void ssm_conv_rows_backward(const SsmConvRowsShape & shape, const float * filters, const float * dy, float * dx,
                            int ith, int nth);

// The loops that define them, in double.
void ssm_conv_forward_reference(const SsmConvShape & shape, const float * x, const float * filters, float * y);
void ssm_conv_backward_reference(const SsmConvShape & shape, const float * filters, const float * dy, float * dx);

}  // namespace ggtune::kernels
