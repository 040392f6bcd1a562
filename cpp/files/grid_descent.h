// Rounding on the grid that spares the outputs: which codes move is chosen by what the layer's inputs look like.
#pragma once

#include <cstdint>
#include <vector>

#include "files/lora_product.h"
#include "kernels/grid.h"

namespace ggtune {

// Works on a row that was rounded without bias. Its error e shows in the outputs as e^T H e, where H is the second
// moment of the inputs: a few directions hold most of it, so single moves of codes, the best one first, make it many
// times smaller. What they must not do is undo the change itself, which in any one row is smaller than a step: the part
// of the errors of all rows that the adapter's own outputs see, B^T E H A^T, is kept near 0 along with it.
class GridDescent {
  public:
    // How much more than other error counts
    struct Weights {
        double seen = 200;  // what shows in the outputs that the adapter writes to: its error is summed over the rows
        double bias = 100;  // of that, what runs along the change itself: such errors of different layers add up
    };

    // h: [n_in, n_in], the mean of x x^T over a sample, symmetric; it and the products have to outlive this object.
    GridDescent(ggml_type type, const std::vector<LoraProduct> & products, const float * h, const Weights & weights);

    // A code's move and what it costs; none where `at` is -1.
    struct Move {
        int64_t at = -1;
        float change = 0.0f;
        float cost = 0.0f;
    };

    // Rows are worked on in stripes, each from its first row to its last.
    class Stripe {
      public:
        explicit Stripe(const GridDescent & descent);

        // before, after: the row in the base and as rounded; after is changed. delta: [n_in], what it should have
        // changed by. Returns how many codes differ from the base.
        int64_t settle(int64_t row, const uint8_t * before, const float * delta, uint8_t * after);

      private:
        Move cheapest();  // of the moves that pay
        void apply(const Move & move, float own_weight, float bias_weight);

        const GridDescent & descent_;
        kernels::GridRow codes_;
        std::vector<float> error_;      // [n_in]
        std::vector<float> h_error_;    // [n_in], H error
        std::vector<float> gradient_;   // [n_in], half of that of the cost
        std::vector<float> curvature_;  // [n_in], the diagonal of what the gradient is of
        std::vector<float> old_;        // [n_in]
        std::vector<float> costs_;      // [n_in], of the cheaper move of each
        std::vector<float> seen_;       // [rank, n_in], B^T E H of the rows so far
        std::vector<double> bias_;      // [rank, rank], B^T E K of the rows so far, with orthonormal B
    };

  private:
    ggml_type type_;
    const std::vector<LoraProduct> & products_;
    const float * h_;
    Weights weights_;
    int64_t n_in_;
    int64_t rank_ = 0;        // of all products together
    std::vector<float> a_h_;  // [rank, n_in], A H
    std::vector<float> k_;    // [rank, n_in], A H with A H A^T turned into the identity
    std::vector<float> k_k_;  // [n_in, n_in], K^T K
    std::vector<float> b_;    // [n_out, rank], orthonormal columns that span B's
};

}  // namespace ggtune
