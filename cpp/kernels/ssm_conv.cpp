#include "kernels/ssm_conv.h"

#include <algorithm>

#include "kernels/aligned_buffer.h"
#include "kernels/partition.h"
#include "kernels/simd.h"
#include "kernels/transpose.h"

namespace ggtune::kernels {
namespace {

using simd::kWidth;
using simd::Vec;

constexpr int64_t kTile = 64;  // tokens

// A vector of channels of one sequence. The last vector of a sequence may be partial.
struct Channels {
    int64_t sequence;
    int64_t first;
    int64_t n;
};

template <class Work>
void for_channels(const SsmConvShape & shape, int ith, int nth, Work && work) {
    const int64_t n_vectors = (shape.n_channels + kWidth - 1) / kWidth;
    const Range mine = split_range(n_vectors * shape.n_sequences, ith, nth);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
        const int64_t first = i % n_vectors * kWidth;
        work(Channels{i / n_vectors, first, std::min<int64_t>(kWidth, shape.n_channels - first)});
    }
}

Vec load_channels(const float * p, int64_t n) {
    return n == kWidth ? simd::load(p) : simd::load_partial(p, n);
}

void store_channels(float * p, Vec v, int64_t n) {
    if (n == kWidth) {
        simd::store(p, v);
    } else {
        simd::store_partial(p, v, n);
    }
}

// taps[k]: of all channels. Lanes past n are zero.
void load_taps(const SsmConvShape & shape, const float * filters, const Channels & channels, float * taps) {
    std::fill_n(taps, shape.n_taps * kWidth, 0.0f);
    detail::transpose_copy(filters + channels.first * shape.n_taps, shape.n_taps, channels.n, shape.n_taps, taps,
                           kWidth);
}

}  // namespace

void ssm_conv_forward(const SsmConvShape & shape, const float * x, const float * filters, float * y, int ith, int nth) {
    static thread_local detail::AlignedFloats scratch;
    const int64_t n_rows = kTile + shape.n_taps - 1;
    float * taps = scratch.reserve((shape.n_taps + n_rows) * kWidth);
    float * rows = taps + shape.n_taps * kWidth;  // x of all channels, time by time
    std::fill_n(rows, n_rows * kWidth, 0.0f);
    for_channels(shape, ith, nth, [&](const Channels & channels) {
        load_taps(shape, filters, channels, taps);
        const float * from = x + channels.sequence * shape.x_sequence_stride + channels.first * shape.x_channel_stride;
        float * to = y + channels.sequence * shape.y_sequence_stride + channels.first;
        for (int64_t begin = 0; begin < shape.n_tokens; begin += kTile) {
            const int64_t n = std::min(kTile, shape.n_tokens - begin);
            detail::transpose_copy(from + begin, shape.x_channel_stride, channels.n, n + shape.n_taps - 1, rows,
                                   kWidth);
            for (int64_t t = 0; t < n; ++t) {
                Vec sum = {};
                for (int64_t k = 0; k < shape.n_taps; ++k) {
                    sum += simd::load(taps + k * kWidth) * simd::load(rows + (t + k) * kWidth);
                }
                store_channels(to + (begin + t) * shape.y_token_stride, sum, channels.n);
            }
        }
    });
}

void ssm_conv_backward(const SsmConvShape & shape, const float * filters, const float * dy, float * dx, int ith,
                       int nth) {
    static thread_local detail::AlignedFloats scratch;
    float * taps = scratch.reserve((shape.n_taps + kTile) * kWidth);
    float * rows = taps + shape.n_taps * kWidth;  // dx of all channels, time by time
    const int64_t n_times = shape.n_tokens + shape.n_taps - 1;
    for_channels(shape, ith, nth, [&](const Channels & channels) {
        load_taps(shape, filters, channels, taps);
        const float * from = dy + channels.sequence * shape.y_sequence_stride + channels.first;
        float * to = dx + channels.sequence * shape.x_sequence_stride + channels.first * shape.x_channel_stride;
        for (int64_t begin = 0; begin < n_times; begin += kTile) {
            const int64_t n = std::min(kTile, n_times - begin);
            for (int64_t s = begin; s < begin + n; ++s) {
                Vec sum = {};
                const int64_t first_tap = std::max<int64_t>(0, s - shape.n_tokens + 1);
                for (int64_t k = first_tap; k < std::min(shape.n_taps, s + 1); ++k) {
                    sum += simd::load(taps + k * kWidth) *
                           load_channels(from + (s - k) * shape.y_token_stride, channels.n);
                }
                simd::store(rows + (s - begin) * kWidth, sum);
            }
            detail::transpose_copy(rows, kWidth, n, channels.n, to + begin, shape.x_channel_stride);
        }
    });
}

namespace {

// of channels at a time: so many that a row of each tap stays in the nearest cache
constexpr int64_t kBlockChannels = 256;

template <class Work>
void for_channel_blocks(const SsmConvRowsShape & shape, int ith, int nth, Work && work) {
    const int64_t n_blocks = (shape.n_channels + kBlockChannels - 1) / kBlockChannels;
    const Range mine = split_range(n_blocks * shape.n_sequences, ith, nth);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
        const int64_t first = i % n_blocks * kBlockChannels;
        work(Channels{i / n_blocks, first, std::min(kBlockChannels, shape.n_channels - first)});
    }
}

// y = sum over k of taps[k] * row(k), n channels; row(k) nullptr: zeros. taps [n_taps, kBlockChannels]
template <class Row>
void sum_of_taps(const float * taps, int64_t n_taps, int64_t n, float * y, Row && row) {
    for (int64_t i = 0; i < n; i += kWidth) {
        const int64_t lanes = std::min<int64_t>(kWidth, n - i);
        Vec sum = {};
        for (int64_t k = 0; k < n_taps; ++k) {
            if (const float * values = row(k)) {
                sum += simd::load(taps + k * kBlockChannels + i) * load_channels(values + i, lanes);
            }
        }
        store_channels(y + i, sum, lanes);
    }
}

}  // namespace

void ssm_conv_rows_forward(const SsmConvRowsShape & shape, const float * state, const float * x, const float * filters,
                           float * y, int ith, int nth) {
    static thread_local detail::AlignedFloats scratch;
    const int64_t n_before = shape.n_taps - 1;
    float * taps = scratch.reserve((shape.n_taps + n_before) * kBlockChannels);
    float * before = taps + shape.n_taps * kBlockChannels;
    std::fill_n(taps, (shape.n_taps + n_before) * kBlockChannels, 0.0f);
    for_channel_blocks(shape, ith, nth, [&](const Channels & c) {
        detail::transpose_copy(filters + c.first * shape.n_taps, shape.n_taps, c.n, shape.n_taps, taps, kBlockChannels);
        detail::transpose_copy(state + c.sequence * shape.state_sequence_stride + c.first * shape.state_channel_stride,
                               shape.state_channel_stride, c.n, n_before, before, kBlockChannels);
        const float * from = x + c.sequence * shape.x_sequence_stride + c.first;
        float * to = y + c.sequence * shape.y_sequence_stride + c.first;
        for (int64_t t = 0; t < shape.n_tokens; ++t) {
            sum_of_taps(taps, shape.n_taps, c.n, to + t * shape.y_token_stride, [&](int64_t k) {
                const int64_t token = t + k - n_before;
                return token < 0 ? before + (t + k) * kBlockChannels : from + token * shape.x_token_stride;
            });
        }
    });
}

void ssm_conv_rows_backward(const SsmConvRowsShape & shape, const float * filters, const float * dy, float * dx,
                            int ith, int nth) {
    static thread_local detail::AlignedFloats scratch;
    float * taps = scratch.reserve(shape.n_taps * kBlockChannels);
    std::fill_n(taps, shape.n_taps * kBlockChannels, 0.0f);
    for_channel_blocks(shape, ith, nth, [&](const Channels & c) {
        detail::transpose_copy(filters + c.first * shape.n_taps, shape.n_taps, c.n, shape.n_taps, taps, kBlockChannels);
        const float * from = dy + c.sequence * shape.y_sequence_stride + c.first;
        float * to = dx + c.sequence * shape.x_sequence_stride + c.first;
        for (int64_t t = 0; t < shape.n_tokens; ++t) {
            sum_of_taps(taps, shape.n_taps, c.n, to + t * shape.x_token_stride, [&](int64_t k) {
                const int64_t token = t + shape.n_taps - 1 - k;
                return token < shape.n_tokens ? from + token * shape.y_token_stride : nullptr;
            });
        }
    });
}

void ssm_conv_forward_reference(const SsmConvShape & shape, const float * x, const float * filters, float * y) {
    for (int64_t sequence = 0; sequence < shape.n_sequences; ++sequence) {
        for (int64_t t = 0; t < shape.n_tokens; ++t) {
            for (int64_t c = 0; c < shape.n_channels; ++c) {
                double sum = 0.0;
                for (int64_t k = 0; k < shape.n_taps; ++k) {
                    sum += static_cast<double>(filters[c * shape.n_taps + k]) *
                           x[sequence * shape.x_sequence_stride + c * shape.x_channel_stride + t + k];
                }
                y[sequence * shape.y_sequence_stride + t * shape.y_token_stride + c] = static_cast<float>(sum);
            }
        }
    }
}

void ssm_conv_backward_reference(const SsmConvShape & shape, const float * filters, const float * dy, float * dx) {
    for (int64_t sequence = 0; sequence < shape.n_sequences; ++sequence) {
        for (int64_t c = 0; c < shape.n_channels; ++c) {
            for (int64_t s = 0; s < shape.n_tokens + shape.n_taps - 1; ++s) {
                double sum = 0.0;
                for (int64_t k = 0; k < shape.n_taps; ++k) {
                    if (s - k >= 0 && s - k < shape.n_tokens) {
                        sum += static_cast<double>(filters[c * shape.n_taps + k]) *
                               dy[sequence * shape.y_sequence_stride + (s - k) * shape.y_token_stride + c];
                    }
                }
                dx[sequence * shape.x_sequence_stride + c * shape.x_channel_stride + s] = static_cast<float>(sum);
            }
        }
    }
}

}  // namespace ggtune::kernels
