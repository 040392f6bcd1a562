// Layers with a state: the convolution in front of them and their scans over the tokens of a sequence.
#include "ops/recurrent.h"

#include "base/error.h"
#include "kernels/ssm_conv.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/scan.h"

namespace ggtune {

namespace {

kernels::SsmConvShape ssm_conv_shape(const ggml_tensor * x, const ggml_tensor * filters, const ggml_tensor * y) {
    return {y->ne[1], y->ne[0], y->ne[2], filters->ne[0], stride(x, 1), stride(x, 2), stride(y, 1), stride(y, 2)};
}

void run_ssm_conv(ggml_tensor * y, int ith, int nth, void *) {
    const ggml_tensor *x = y->src[0], *filters = y->src[1];
    kernels::ssm_conv_forward(ssm_conv_shape(x, filters, y), floats(x), floats(filters), floats(y), ith, nth);
}

void run_ssm_conv_dx(ggml_tensor * dx, int ith, int nth, void *) {
    const ggml_tensor *filters = dx->src[0], *dy = dx->src[1];
    kernels::ssm_conv_backward(ssm_conv_shape(dx, filters, dy), floats(filters), floats(dy), floats(dx), ith, nth);
}

kernels::SsmConvRowsShape ssm_conv_rows_shape(const ggml_tensor * x, const ggml_tensor * filters,
                                              const ggml_tensor * y) {
    return {y->ne[1], y->ne[0], y->ne[2], filters->ne[0], stride(x, 1), stride(x, 2), stride(y, 1), stride(y, 2), 0, 0};
}

void run_ssm_conv_rows(ggml_tensor * y, int ith, int nth, void *) {
    const ggml_tensor *state = y->src[0], *x = y->src[1], *filters = y->src[2];
    kernels::SsmConvRowsShape shape = ssm_conv_rows_shape(x, filters, y);
    shape.state_channel_stride = stride(state, 1);
    shape.state_sequence_stride = stride(state, 2);
    kernels::ssm_conv_rows_forward(shape, floats(state), floats(x), floats(filters), floats(y), ith, nth);
}

void run_ssm_conv_rows_dx(ggml_tensor * dx, int ith, int nth, void *) {
    const ggml_tensor *filters = dx->src[0], *dy = dx->src[1];
    kernels::ssm_conv_rows_backward(ssm_conv_rows_shape(dx, filters, dy), floats(filters), floats(dy), floats(dx), ith,
                                    nth);
}

const CpuOp ssm_conv_rows_dx_op = {{"ssm_conv_dx"}, run_ssm_conv_rows_dx};
const CpuOp ssm_conv_op = {{"ssm_conv", add_ssm_conv_gradient}, run_ssm_conv};
const CpuOp ssm_conv_dx_op = {{"ssm_conv_dx"}, run_ssm_conv_dx};

float scale_of(ggml_op scan, const ggml_tensor * y) {
    if (scan != GGML_OP_GATED_LINEAR_ATTN) {
        return 1.0f;
    }
    return custom_node(y) != nullptr ? params_of<ScanParams>(y).scale : float_param(y, 0);
}

}  // namespace

const CpuScan * cpu_scan(ggml_op op) {
    switch (op) {
        case GGML_OP_GATED_DELTA_NET:
            return &delta_net_scan;
        case GGML_OP_SSM_SCAN:
            return &ssm_scan;
        case GGML_OP_GATED_LINEAR_ATTN:
            return &gated_scan;
        case GGML_OP_RWKV_WKV6:
            return &rwkv6_scan;
        case GGML_OP_RWKV_WKV7:
            return &rwkv7_scan;
        default:
            return nullptr;
    }
}

std::vector<int64_t> part_offsets(const std::vector<ScanPart> & parts, int state) {
    std::vector<int64_t> offsets(parts.size());
    int64_t end = 0;
    for (size_t i = 0; i < parts.size(); i++) {
        offsets[i] = end;
        end += static_cast<int>(i) != state ? parts[i].size() : 0;
    }
    offsets[state] = end;
    return offsets;
}

std::vector<float *> gradient_parts(const CpuScan & scan, ggml_tensor * dx, const ScanParams & params) {
    const std::vector<int64_t> offsets = part_offsets(scan.parts(dx->src), scan.state);
    std::vector<float *> parts;
    for (int i = 0; i < scan.n_operands; i++) {
        parts.push_back(i != scan.state || params.with_state ? floats(dx) + offsets[i] : nullptr);
    }
    return parts;
}

ggml_tensor * CpuOps::recurrent(ggml_tensor * y) {
    if (y->op == GGML_OP_SSM_CONV) {
        return ssm_conv(y);
    }
    const CpuScan * scan = cpu_scan(y->op);
    if (scan == nullptr || !keeps_last_state_alone(y)) {
        return nullptr;
    }
    int64_t ne[4] = {y->ne[0], y->ne[1], y->ne[2], y->ne[3]};
    if (scan->keeps) {  // as many rows as there are of outputs
        ne[1] += ne[1] - ggml_nelements(y->src[scan->state]) / ne[0];
    }
    return node(scan->forward, ne, Operands(y->src, y->src + scan->n_operands),
                keep(ScanParams{scale_of(y->op, y), false}));
}

// llama.cpp puts the states and the transpose of x together: the filters can as well go over x by rows.
ggml_tensor * CpuOps::ssm_conv(ggml_tensor * y) {
    static const CpuOp by_rows = {{"ssm_conv", ssm_conv_rows_rule}, run_ssm_conv_rows};
    const ggml_tensor *all = y->src[0], *filters = y->src[1];
    if (all->op == GGML_OP_CONCAT && all->op_params[0] == 0 && all->src[1]->op == GGML_OP_TRANSPOSE) {
        ggml_tensor *state = all->src[0], *x = all->src[1]->src[0];
        const bool fits = state->type == GGML_TYPE_F32 && state->nb[0] == sizeof(float) && x->type == GGML_TYPE_F32 &&
                          x->nb[0] == sizeof(float) && state->ne[0] == filters->ne[0] - 1 && ggml_are_same_shape(x, y);
        if (fits) {
            return node(by_rows, y->ne, {state, x, y->src[1]});
        }
    }
    return node(ssm_conv_op, y->ne, {y->src[0], y->src[1]});
}

void CpuOps::ssm_conv_rows_rule(const BackwardStep & s) {
    auto & ops = static_cast<CpuOps &>(s.ops);
    ggml_tensor *state = s.y->src[0], *x = s.y->src[1], *filters = s.y->src[2];
    refuse_filters(s, filters);
    if (s.needs(x)) {
        s.add(x, ops.node(ssm_conv_rows_dx_op, x->ne, {filters, ops.with_rows(s.dy)}));
    }
    if (s.needs(state)) {
        ggml_tensor * all = ggml_new_tensor_3d(ops.ctx, GGML_TYPE_F32, state->ne[0] + x->ne[1], x->ne[0], x->ne[2]);
        ggml_tensor * d_all = ops.ssm_conv_dx(all, filters, s.dy);
        s.add(state,
              ggml_view_3d(ops.ctx, d_all, state->ne[0], state->ne[1], state->ne[2], d_all->nb[1], d_all->nb[2], 0));
    }
}

ggml_tensor * CpuOps::ssm_conv_dx(ggml_tensor * x, ggml_tensor * filters, ggml_tensor * dy) {
    return node(ssm_conv_dx_op, x->ne, {filters, with_rows(dy)});
}

std::vector<ggml_tensor *> CpuOps::scan_dx(ggml_op op, ggml_tensor * y, ggml_tensor * dy,
                                           const std::vector<bool> & needed) {
    const CpuScan & scan = *cpu_scan(op);
    const ScanParams params = {scale_of(op, y), needed[scan.state]};
    const std::vector<ScanPart> parts = scan.parts(y->src);
    const std::vector<int64_t> offsets = part_offsets(parts, scan.state);
    Operands operands(y->src, y->src + scan.n_operands);
    operands.push_back(contiguous(dy));
    if (scan.keeps && custom_node(y) != nullptr) {
        operands.push_back(y);
    }
    const int64_t ne[4] = {offsets[scan.state] + (params.with_state ? parts[scan.state].size() : 0), 1, 1, 1};
    ggml_tensor * dx = node(scan.backward, ne, operands, keep(params));
    std::vector<ggml_tensor *> gradients(GGML_MAX_SRC);
    for (int i = 0; i < scan.n_operands; i++) {
        if (!needed[i]) {
            continue;
        }
        const auto & [n, summed] = parts[i];
        ggml_tensor * flat = ggml_view_1d(ctx, dx, parts[i].size(), offsets[i] * sizeof(float));
        gradients[i] = ggml_reshape_4d(ctx, flat, n[0], n[1], n[2], n[3]);
        if (n != summed) {
            gradients[i] = repeat_dx(ggml_new_tensor(ctx, GGML_TYPE_F32, GGML_MAX_DIMS, summed.data()), gradients[i]);
        }
        const int64_t * to = y->src[i]->ne;
        if (op == GGML_OP_SSM_SCAN && i == scan.state) {  // the sequences' states are rows of those that there are
            ggml_tensor * all = ggml_reshape_2d(ctx, y->src[i], n[0], to[3]);
            gradients[i] = rows_dx(all, y->src[6], gradients[i]);
        }
        gradients[i] = ggml_reshape_4d(ctx, gradients[i], to[0], to[1], to[2], to[3]);
    }
    return gradients;
}

}  // namespace ggtune
