// Scans with one gate for a head, in chunks of tokens: what a scan does row by row of the state becomes products of
// small matrices. Private to cpp/kernels. Sources: Dao & Gu, "Transformers are SSMs", arXiv:2405.21060, section 6; for
// the delta rule Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
// arXiv:2406.06484.
//
// Of a chunk that starts with the state M_0 (see scan_core.h), with decay[t, s] = the product of the gates behind s, up
// to t, and from_start[t] that of all gates up to t:
//   out = from_start Q M_0^T + (decay * Q K^T up to the diagonal) E
//   M = from_start[last] M_0 + (decay[last] E)^T K
//   Update::add     E = V
//   Update::delta   E = beta U      U = V - from_start K M_0^T - (decay * K K^T below the diagonal) E
// The rows of U depend on those before them: they are found one after another.
#pragma once

#include "kernels/scan_core.h"
#include "kernels/small_product.h"
#include "kernels/transpose.h"

namespace ggtune::kernels::detail {

// The scans of one thread, a head at a time, with the interface of Scan; pack() gives v in each pass of Update::add,
// and of Update::delta where U is not known. The gradient of a gate [kScanBlock] is that of
// its logarithm, which needs no division by a gate that has become 0.
template <Update update>
class StateChunks {
  public:
    static_assert(update != Update::low_rank);
    static constexpr bool kRemoves = update == Update::delta;

    StateChunks(ScanScratch & scratch, int64_t n_tokens, int64_t n_rows, int64_t width, bool backward);

    float * state() { return state_; }  // [n_rows, width], to be written for each head
    int64_t width() const { return width_; }

    // As of Scan.
    template <class Pack, class Take>
    void forward(float * inner, Pack && pack, Take && take) {
        begin_head();
        for (int64_t begin = 0; begin < n_tokens_; begin += kScanBlock) {
            const Range tokens = block_at(begin);
            pack(tokens, static_cast<const ScanBlock &>(x_));
            x_.inner = inner != nullptr ? inner + begin * n_rows_ : inner_;
            find_decay();
            find_products(true);
            find_added(true);
            find_outputs();
            advance();
            take(tokens, static_cast<const float *>(out_));
        }
        end_head();
    }

    template <class Pack, class Last, class Take>
    void backward(float * inner, Pack && pack, Last && last, Take && take) {
        const bool known = inner != nullptr;
        inner = known ? inner : inner_history_;
        begin_head();
        for (int64_t block = 0; block < n_blocks(); ++block) {
            std::memcpy(first_states_ + block * n_states(), by_key_, static_cast<size_t>(n_states()) * sizeof(float));
            if (block + 1 == n_blocks() && (known || !kRemoves)) {
                break;
            }
            const Range tokens = block_at(block * kScanBlock);
            pack(tokens, static_cast<const ScanBlock &>(x_), nullptr);
            x_.inner = inner + tokens.begin * n_rows_;
            find_decay();
            if (known || !kRemoves) {
                read_added();
            } else {
                find_products(false);
                find_added(false);
            }
            advance();
        }
        std::fill_n(state_, n_rows_ * width_, 0.0f);
        last(state_);
        begin_head();
        for (int64_t block = n_blocks() - 1; block >= 0; --block) {
            const Range tokens = block_at(block * kScanBlock);
            pack(tokens, static_cast<const ScanBlock &>(x_), out_);
            x_.inner = inner + tokens.begin * n_rows_;
            find_decay();
            find_products(true);
            read_added();
            go_back(first_states_ + block * n_states());
            take(tokens, static_cast<const ScanBlock &>(x_), static_cast<const ScanBlockGradient &>(d_));
        }
        end_head();
    }

  private:
    int64_t n_blocks() const { return (n_tokens_ + kScanBlock - 1) / kScanBlock; }
    int64_t n_states() const { return width_ * key_stride_; }
    Range block_at(int64_t begin) {
        x_.n = std::min(kScanBlock, n_tokens_ - begin);
        return {begin, begin + x_.n};
    }

    void begin_head();                      // state() into by_key_
    void end_head();                        // and back
    void find_decay();                      // rows behind the last token become such that they change nothing
    void find_products(bool with_queries);  // of keys with each other, and with queries
    void find_added(bool with_queries);     // E, and U
    void read_added();                      // of a known U
    void find_outputs();
    void advance();                         // by_key_ becomes the state behind the block
    void go_back(const float * first);      // by_key_ is the gradient of the state; first: the state before the block
    void solve_backwards();                 // d_added_ becomes the gradient of U
    void find_gate_gradients(float d_all);  // of their logarithms

    const int64_t n_tokens_, n_rows_, width_;
    const int64_t height_;  // n_rows, padded
    const int64_t key_stride_, row_stride_;
    ScanBlock x_ = {};
    ScanBlockGradient d_ = {};
    // [n_rows, width], the state or its gradient as it comes and goes; between them [width, height], [height, width]
    float *state_ = nullptr, *by_key_ = nullptr, *by_row_ = nullptr;
    float *out_ = nullptr, *inner_ = nullptr;                     // [kScanBlock, n_rows]
    float *u_ = nullptr, *added_ = nullptr, *d_added_ = nullptr;  // U, E, dE, then dU [kScanBlock, height]
    float * read_ = nullptr;                                      // products with the state [2 kScanBlock, height]
    float * d_out_ = nullptr;                                     // [kScanBlock, height]
    float * scaled_ = nullptr;                                    // [2 kScanBlock, height]
    float * d_read_ = nullptr;                                    // [2 kScanBlock, width]
    float * transposed_ = nullptr;                                // [max(width, height), kScanBlock]
    // [kScanBlock, kScanBlock]
    float *decay_ = nullptr, *keys_ = nullptr, *queries_ = nullptr, *d_keys_ = nullptr, *d_queries_ = nullptr,
          *crossing_ = nullptr;
    float *from_start_ = nullptr, *read_share_ = nullptr, *kept_share_ = nullptr;  // [kScanBlock]
    const float * to_end_ = nullptr;                                               // the last row of decay_
    float *first_states_ = nullptr, *inner_history_ = nullptr;
};

}  // namespace ggtune::kernels::detail
