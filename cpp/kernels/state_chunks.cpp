#include "kernels/state_chunks.h"

namespace ggtune::kernels::detail {

namespace {

using simd::kWidth;
using simd::Vec;

constexpr int64_t kChunk = kScanBlock;
constexpr int64_t kSkew = 16;  // floats: rows at a stride of a power of two would share a few cache sets

// to[i] = factor * from[i], n a multiple of kWidth
void write_scaled(const float * from, float factor, int64_t n, float * to) {
    for (int64_t i = 0; i < n; i += kWidth) {
        simd::store(to + i, factor * simd::load(from + i));
    }
}

float dot(const float * a, const float * b, int64_t n) {
    Vec sum = {};
    for (int64_t i = 0; i < n; i += kWidth) {
        sum += simd::load(a + i) * simd::load(b + i);
    }
    return simd::horizontal_sum(sum);
}

// to -= sum over j of factors[j * stride] * rows[j], n columns
template <int vectors>
void subtract_rows(const float * factors, int64_t stride, const float * rows, int64_t n_rows, int64_t n, float * to) {
    Vec sums[vectors] = {};
    for (int64_t j = 0; j < n_rows; ++j) {
        const Vec factor = simd::splat(factors[j * stride]);
        for (int v = 0; v < vectors; ++v) {
            sums[v] += factor * simd::load(rows + j * n + v * kWidth);
        }
    }
    for (int v = 0; v < vectors; ++v) {
        simd::store(to + v * kWidth, simd::load(to + v * kWidth) - sums[v]);
    }
}

void subtract_rows(const float * factors, int64_t stride, const float * rows, int64_t n_rows, int64_t n, float * to) {
    int64_t i = 0;
    for (; i + 8 * kWidth <= n; i += 8 * kWidth) {
        subtract_rows<8>(factors, stride, rows + i, n_rows, n, to + i);
    }
    for (; i < n; i += kWidth) {
        subtract_rows<1>(factors, stride, rows + i, n_rows, n, to + i);
    }
}

// a[i] *= b[i] for a block of kChunk by kChunk
void multiply(float * a, const float * b) {
    for (int64_t i = 0; i < kChunk * kChunk; i += kWidth) {
        simd::store(a + i, simd::load(a + i) * simd::load(b + i));
    }
}

}  // namespace

template <Update update>
StateChunks<update>::StateChunks(ScanScratch & scratch, int64_t n_tokens, int64_t n_rows, int64_t width, bool backward)
    : n_tokens_(n_tokens),
      n_rows_(n_rows),
      width_(padded_width(width)),
      height_(padded_width(n_rows)),
      key_stride_(height_ + kSkew),
      row_stride_(width_ + kSkew) {
    int64_t n_floats = 0;
    float * base = nullptr;
    const auto place = [&](float *& part, int64_t n) {
        part = base + n_floats;  // once base is known
        n_floats += padded_width(n);
    };
    const auto place_all = [&] {
        n_floats = 0;
        for (float ** part : {&x_.q, &x_.k}) {
            place(*part, kChunk * width_);
        }
        for (float ** part : {&x_.v, &out_, &inner_}) {
            place(*part, kChunk * n_rows_);
        }
        for (float ** part : {&x_.gate, &x_.beta, &from_start_}) {
            place(*part, kChunk);
        }
        place(state_, n_rows_ * width_);
        place(by_key_, n_states());
        for (float ** part : {&u_, &added_}) {
            place(*part, kChunk * height_);
        }
        place(read_, 2 * kChunk * height_);
        place(transposed_, std::max(width_, height_) * kChunk);
        for (float ** part : {&decay_, &keys_, &queries_}) {
            place(*part, kChunk * kChunk);
        }
        if (!backward) {
            return;
        }
        place(by_row_, height_ * row_stride_);
        for (float ** part : {&d_added_, &d_out_}) {
            place(*part, kChunk * height_);
        }
        place(scaled_, 2 * kChunk * height_);
        place(d_read_, 2 * kChunk * width_);
        for (float ** part : {&d_keys_, &d_queries_, &crossing_}) {
            place(*part, kChunk * kChunk);
        }
        for (float ** part : {&read_share_, &kept_share_, &d_.beta}) {
            place(*part, kChunk);
        }
        for (float ** part : {&d_.v, &d_.steps}) {
            place(*part, kChunk * n_rows_);
        }
        place(d_.gate, kChunk);
    };
    place_all();
    base = scratch.operands.reserve(n_floats);
    place_all();
    std::fill_n(base, n_floats, 0.0f);
    x_.n_rows = n_rows_;
    x_.width = width_;
    if (backward) {
        d_.q = d_read_;
        d_.k = d_read_ + kChunk * width_;
        first_states_ = scratch.history.reserve(n_blocks() * n_states() + n_tokens_ * n_rows_);
        inner_history_ = first_states_ + n_blocks() * n_states();
    }
}

template <Update update>
void StateChunks<update>::begin_head() {
    std::fill_n(by_key_, n_states(), 0.0f);
    transpose_copy(state_, width_, n_rows_, width_, by_key_, key_stride_);
}

template <Update update>
void StateChunks<update>::end_head() {
    transpose_copy(by_key_, key_stride_, width_, n_rows_, state_, width_);
}

template <Update update>
void StateChunks<update>::find_decay() {
    for (int64_t t = x_.n; t < kChunk; ++t) {
        std::fill_n(x_.k + t * width_, width_, 0.0f);
        x_.gate[t] = 1.0f;
        x_.beta[t] = 0.0f;
    }
    float share = 1.0f;
    for (int64_t t = 0; t < kChunk; ++t) {
        share *= x_.gate[t];
        from_start_[t] = share;
        float * row = decay_ + t * kChunk;
        for (int64_t s = 0; s < t; ++s) {
            row[s] = row[s - kChunk] * x_.gate[t];
        }
        row[t] = 1.0f;  // behind it stay zeros
    }
    to_end_ = decay_ + (kChunk - 1) * kChunk;
}

template <Update update>
void StateChunks<update>::find_products(bool with_queries) {
    transpose_copy(x_.k, width_, kChunk, width_, transposed_, kChunk);
    if constexpr (kRemoves) {
        small_product(kChunk, kChunk, width_, {x_.k, width_, 1}, transposed_, kChunk, false, keys_, kChunk);
        multiply(keys_, decay_);
        for (int64_t t = 0; t < kChunk; ++t) {
            keys_[t * kChunk + t] = 0.0f;
        }
    }
    if (with_queries) {
        for (int64_t t = x_.n; t < kChunk; ++t) {
            std::fill_n(x_.q + t * width_, width_, 0.0f);
        }
        small_product(kChunk, kChunk, width_, {x_.q, width_, 1}, transposed_, kChunk, false, queries_, kChunk);
        multiply(queries_, decay_);
    }
}

template <Update update>
void StateChunks<update>::find_added(bool with_queries) {
    if (with_queries) {
        small_product(kChunk, height_, width_, {x_.q, width_, 1}, by_key_, key_stride_, false, read_ + kChunk * height_,
                      height_);
    }
    if constexpr (!kRemoves) {
        read_added();
        return;
    }
    small_product(kChunk, height_, width_, {x_.k, width_, 1}, by_key_, key_stride_, false, read_, height_);
    for (int64_t t = 0; t < x_.n; ++t) {
        float * u = u_ + t * height_;
        std::copy_n(x_.v + t * n_rows_, n_rows_, u);
        const Vec share = simd::splat(from_start_[t]);
        for (int64_t i = 0; i < height_; i += kWidth) {
            simd::store(u + i, simd::load(u + i) - share * simd::load(read_ + t * height_ + i));
        }
        subtract_rows(keys_ + t * kChunk, 1, added_, t, height_, u);
        write_scaled(u, x_.beta[t], height_, added_ + t * height_);
        std::copy_n(u, n_rows_, x_.inner + t * n_rows_);
    }
    std::fill_n(added_ + x_.n * height_, (kChunk - x_.n) * height_, 0.0f);
}

template <Update update>
void StateChunks<update>::read_added() {
    for (int64_t t = 0; t < x_.n; ++t) {
        if constexpr (kRemoves) {
            std::copy_n(x_.inner + t * n_rows_, n_rows_, u_ + t * height_);
            write_scaled(u_ + t * height_, x_.beta[t], height_, added_ + t * height_);
        } else {
            std::copy_n(x_.v + t * n_rows_, n_rows_, added_ + t * height_);
        }
    }
    std::fill_n(u_ + x_.n * height_, (kChunk - x_.n) * height_, 0.0f);
    std::fill_n(added_ + x_.n * height_, (kChunk - x_.n) * height_, 0.0f);
}

template <Update update>
void StateChunks<update>::find_outputs() {
    float * out = read_ + kChunk * height_;
    for (int64_t t = 0; t < kChunk; ++t) {
        write_scaled(out + t * height_, from_start_[t], height_, out + t * height_);
    }
    small_product(kChunk, height_, kChunk, {queries_, kChunk, 1}, added_, height_, true, out, height_, Filled::lower);
    for (int64_t t = 0; t < x_.n; ++t) {
        std::copy_n(out + t * height_, n_rows_, out_ + t * n_rows_);
    }
}

template <Update update>
void StateChunks<update>::advance() {
    for (int64_t t = 0; t < kChunk; ++t) {
        write_scaled(added_ + t * height_, to_end_[t], height_, read_ + t * height_);
    }
    write_scaled(by_key_, from_start_[kChunk - 1], n_states(), by_key_);
    small_product(width_, height_, kChunk, {x_.k, 1, width_}, read_, height_, true, by_key_, key_stride_);
}

template <Update update>
void StateChunks<update>::go_back(const float * first) {
    const Operand queries = {queries_, kChunk, 1}, d_queries = {d_queries_, kChunk, 1};
    for (int64_t t = 0; t < kChunk; ++t) {
        float * row = d_out_ + t * height_;
        if (t < x_.n) {
            std::copy_n(out_ + t * n_rows_, n_rows_, row);
        } else {
            std::fill_n(row, height_, 0.0f);
        }
        write_scaled(row, from_start_[t], height_, scaled_ + t * height_);
    }
    // E reaches the outputs, the last state, and U of later tokens
    small_product(kChunk, height_, width_, {x_.k, width_, 1}, by_key_, key_stride_, false, d_added_, height_);
    for (int64_t t = 0; t < kChunk; ++t) {
        float * row = d_added_ + t * height_;
        write_scaled(row, to_end_[t], height_, row);
        kept_share_[t] = dot(row, added_ + t * height_, height_);
    }
    small_product(kChunk, height_, kChunk, queries.transposed(), d_out_, height_, true, d_added_, height_,
                  Filled::upper);
    constexpr int64_t kReads = kRemoves ? 2 * kChunk : kChunk;  // by queries, and by keys
    if constexpr (kRemoves) {
        solve_backwards();
        for (int64_t t = 0; t < kChunk; ++t) {
            write_scaled(d_added_ + t * height_, -from_start_[t], height_, scaled_ + (kChunk + t) * height_);
        }
    } else {
        std::fill_n(d_.k, kChunk * width_, 0.0f);
        for (int64_t t = 0; t < x_.n; ++t) {
            std::copy_n(d_added_ + t * height_, n_rows_, d_.v + t * n_rows_);
        }
    }
    // what was read from the state before the block
    transpose_copy(first, key_stride_, width_, height_, by_row_, row_stride_);
    small_product(kReads, width_, height_, {scaled_, height_, 1}, by_row_, row_stride_, false, d_read_, width_);
    for (int64_t t = 0; t < kChunk; ++t) {
        read_share_[t] =
            dot(d_.q + t * width_, x_.q + t * width_, width_) + dot(d_.k + t * width_, x_.k + t * width_, width_);
    }
    // the products of keys with queries and with each other
    transpose_copy(added_, height_, kChunk, height_, transposed_, kChunk);
    small_product(kChunk, kChunk, height_, {d_out_, height_, 1}, transposed_, kChunk, false, d_queries_, kChunk);
    for (int64_t i = 0; i < kChunk * kChunk; i += kWidth) {
        const Vec of_query = simd::load(d_queries_ + i);
        simd::store(crossing_ + i, of_query * simd::load(queries_ + i));
        simd::store(d_queries_ + i, of_query * simd::load(decay_ + i));
    }
    small_product(kChunk, width_, kChunk, d_queries, x_.k, width_, true, d_.q, width_, Filled::lower);
    small_product(kChunk, width_, kChunk, d_queries.transposed(), x_.q, width_, true, d_.k, width_, Filled::upper);
    if constexpr (kRemoves) {
        const Operand d_keys = {d_keys_, kChunk, 1};
        small_product(kChunk, kChunk, height_, {d_added_, height_, 1}, transposed_, kChunk, false, d_keys_, kChunk);
        for (int64_t i = 0; i < kChunk * kChunk; i += kWidth) {
            const Vec of_key = -simd::load(d_keys_ + i);
            simd::store(crossing_ + i, simd::load(crossing_ + i) + of_key * simd::load(keys_ + i));
            simd::store(d_keys_ + i, of_key * simd::load(decay_ + i));
        }
        for (int64_t t = 0; t < kChunk; ++t) {
            d_keys_[t * kChunk + t] = 0.0f;
        }
        small_product(kChunk, width_, kChunk, d_keys, x_.k, width_, true, d_.k, width_, Filled::lower);
        small_product(kChunk, width_, kChunk, d_keys.transposed(), x_.k, width_, true, d_.k, width_, Filled::upper);
    }
    // what was added to the last state
    transpose_copy(by_key_, key_stride_, width_, height_, by_row_, row_stride_);
    for (int64_t t = 0; t < kChunk; ++t) {
        write_scaled(added_ + t * height_, to_end_[t], height_, read_ + t * height_);
    }
    small_product(kChunk, width_, height_, {read_, height_, 1}, by_row_, row_stride_, true, d_.k, width_);
    find_gate_gradients(from_start_[kChunk - 1] * dot(by_key_, first, n_states()));
    write_scaled(by_key_, from_start_[kChunk - 1], n_states(), by_key_);
    small_product(width_, height_, kChunk, {x_.q, 1, width_}, scaled_, height_, true, by_key_, key_stride_);
    if constexpr (kRemoves) {
        small_product(width_, height_, kChunk, {x_.k, 1, width_}, scaled_ + kChunk * height_, height_, true, by_key_,
                      key_stride_);
    }
}

template <Update update>
void StateChunks<update>::solve_backwards() {
    for (int64_t t = kChunk - 1; t >= 0; --t) {
        float * row = d_added_ + t * height_;
        const int64_t n_later = kChunk - 1 - t;
        subtract_rows(keys_ + (t + 1) * kChunk + t, kChunk, row + height_, n_later, height_, row);
        d_.beta[t] = dot(row, u_ + t * height_, height_);
        write_scaled(row, x_.beta[t], height_, row);
        if (t < x_.n) {
            std::copy_n(row, n_rows_, d_.v + t * n_rows_);
        }
    }
}

// A gate has a share in everything that goes from a token before it to it or a later one, from the first state on,
// and up to the last one. Sums of those alone: no differences of large numbers.
template <Update update>
void StateChunks<update>::find_gate_gradients(float d_all) {
    float later[kChunk] = {};  // crossing_, summed over the tokens from t on
    float read = 0.0f;
    for (int64_t t = kChunk - 1; t >= 0; --t) {
        read += read_share_[t];
        float sum = d_all + read;
        for (int64_t s = 0; s < kChunk; ++s) {
            later[s] += crossing_[t * kChunk + s];
        }
        for (int64_t s = 0; s < t; ++s) {
            sum += later[s] + kept_share_[s];
        }
        d_.gate[t] = sum;
    }
}

template class StateChunks<Update::add>;
template class StateChunks<Update::delta>;

}  // namespace ggtune::kernels::detail
