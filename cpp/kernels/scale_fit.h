// The scales and mins of a row's blocks, moved so that the row's rounding error does not show in the outputs.
//
// Rounding puts each weight off by up to a step of its grid, and the layer's outputs are off by that error times the
// inputs. Inputs lie near few directions, so there is little to cancel, and scales and mins in half precision are fine
// enough to cancel it: they are found by least squares. What a factor multiplies is taken from the codes before they
// were moved at random: the fit is linear in the error then, and adds no bias. Moved codes hold the error themselves:
// those that went up would pull their scale down (errors in variables).
#pragma once

#include <ggml.h>

#include <cstdint>
#include <vector>

namespace ggtune::kernels {

// True for types whose blocks have scales in half precision (kernels/block_factors.h).
bool has_half_scales(ggml_type type);

class ScaleFit {
  public:
    // x: [n_tokens, n_in], what the rows are multiplied with; it has to outlive this object. has_half_scales(type), and
    // n_in is a multiple of its block.
    ScaleFit(ggml_type type, const float * x, int64_t n_tokens, int64_t n_in);

    // As many rows as are worked on together: more need more memory.
    int64_t batch_rows() const { return batch_rows_; }

    // rows: up to batch_rows() of them as stored, whose scales and mins are changed. error: [n_rows, n_in], what they
    // are less what they should be. unmoved: the rows before their codes were rounded at random, with the same scales
    // and mins (rows itself where none were). Minimized is the mean square of what the error gives with the inputs,
    // plus a little of its own, since a sample does not know all directions; rows that this can't improve stay as they
    // are. The same bits for a row whichever others are beside it.
    void fit(int64_t n_rows, const float * error, const uint8_t * unmoved, uint8_t * rows) const;

  private:
    struct Row;
    void fit_row(const Row & row) const;

    ggml_type type_;
    const float * x_;
    int64_t n_tokens_;
    int64_t n_in_;
    int64_t n_blocks_;   // of a row
    int64_t n_factors_;  // scales and mins of a row
    float damping_;      // how much the error itself counts
    int64_t batch_rows_;
};

}  // namespace ggtune::kernels
