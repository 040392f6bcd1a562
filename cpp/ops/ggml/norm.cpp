// Gradients of what is normalized by rows: norms, softmax. Metal lacks ggml's own nodes for them.
#include "ops/ggml/ggml_ops.h"

namespace ggtune {

// scale y (dy - sum(dy y))
ggml_tensor * GgmlOps::softmax_dx(ggml_tensor * y, ggml_tensor * dy, float scale) {
    y = contiguous(y);
    dy = contiguous(dy);
    if (traits_.has_norm_back) {
        return ggml_soft_max_ext_back(ctx, dy, y, scale, 0.0f);
    }
    ggml_tensor * sums = ggml_sum_rows(ctx, ggml_mul(ctx, dy, y));
    return ggml_scale(ctx, ggml_mul(ctx, y, ggml_sub(ctx, dy, sums)), scale);
}

// (dy - y mean(dy y)) / rms, y = x / rms, rms = sqrt(mean(x^2) + eps)
ggml_tensor * GgmlOps::rms_norm_dx(ggml_tensor * x, ggml_tensor * dy, float eps) {
    x = contiguous(x);
    dy = contiguous(dy);
    if (traits_.has_norm_back) {
        return ggml_rms_norm_back(ctx, dy, x, eps);
    }
    ggml_tensor * rms = ggml_sqrt(ctx, ggml_scale_bias(ctx, row_means(ggml_sqr(ctx, x)), 1.0f, eps));
    ggml_tensor * y = ggml_div(ctx, x, rms);
    ggml_tensor * along_y = ggml_mul(ctx, y, row_means(ggml_mul(ctx, dy, y)));
    return ggml_div(ctx, ggml_sub(ctx, dy, along_y), rms);
}

// (dy - mean(dy) - y mean(dy y)) / deviation: as above for x - mean(x)
ggml_tensor * GgmlOps::norm_dx(ggml_tensor * x, ggml_tensor * dy, float eps) {
    x = contiguous(x);
    dy = contiguous(dy);
    return rms_norm_dx(ggml_sub(ctx, x, row_means(x)), ggml_sub(ctx, dy, row_means(dy)), eps);
}

// (dy - y sum(dy y)) / |x|, y = x / |x|; where |x| is not above eps, eps in its place and without the second term
ggml_tensor * GgmlOps::l2_norm_dx(ggml_tensor * x, ggml_tensor * dy, float eps) {
    constexpr float kLargest = 1e38f;
    x = contiguous(x);
    dy = contiguous(dy);
    ggml_tensor * size = ggml_sqrt(ctx, ggml_sum_rows(ctx, ggml_sqr(ctx, x)));
    ggml_tensor * normal = ggml_step(ctx, ggml_scale_bias(ctx, size, 1.0f, -eps));
    ggml_tensor * divisor = ggml_clamp(ctx, size, eps, kLargest);
    ggml_tensor * y = ggml_div(ctx, x, divisor);
    ggml_tensor * along_y = ggml_mul(ctx, ggml_sum_rows(ctx, ggml_mul(ctx, dy, y)), normal);
    return ggml_div(ctx, ggml_sub(ctx, dy, ggml_mul(ctx, y, along_y)), divisor);
}

}  // namespace ggtune
