// Products of a mixture of experts: the pairs of tokens and experts sorted once for all products of a layer, then an
// ordinary product for each expert.
#include "ops/experts.h"

#include "kernels/bf16_product.h"
#include "kernels/dequantize.h"
#include "kernels/expert_product.h"
#include "kernels/int16_gradient.h"
#include "kernels/int8_product.h"
#include "ops/cpu/cpu_ops.h"

namespace ggtune {

namespace {

using kernels::Dealer;
using kernels::ExpertInputs;
using kernels::ExpertRows;
using kernels::ExpertUnits;
using kernels::ExpertWeights;
using kernels::Range;

// `accumulate`: ggml puts the tensor written to before the operands.
struct ExpertNode {
    float scale = 1.0f;
    bool accumulate = false;
    Dealer dealer;

    const ggml_tensor * operand(const ggml_tensor * node, int index) const {
        return node->src[index + (accumulate ? 1 : 0)];
    }
};

ExpertWeights weights(const ggml_tensor * w) {
    return {w->type, w->data, w->nb[1], w->nb[2], w->ne[0], w->ne[1], w->ne[2]};
}

// What sort_pairs has made; n_pairs: rows of y or dy.
ExpertRows rows(const ggml_tensor * sorted, int64_t n_experts, int64_t n_pairs) {
    return kernels::expert_rows(static_cast<const int32_t *>(sorted->data), n_experts, n_pairs);
}

// x ne = [i, n_used or 1, T], rows at even distances
ExpertInputs inputs(const ggml_tensor * x, int64_t n_pairs) {
    return {stride(x, 1), ggml_nrows(x), ggml_nrows(x) != n_pairs};
}

void run_sort_pairs(ggml_tensor * sorted, int ith, int, void * userdata) {
    const ggml_tensor * ids = sorted->src[0];
    if (ith == 0) {  // some ten thousand pairs: not worth sharing
        const auto in_ints = [](size_t bytes) { return static_cast<int64_t>(bytes / sizeof(int32_t)); };
        kernels::sort_pairs(static_cast<const int32_t *>(ids->data), in_ints(ids->nb[0]), in_ints(ids->nb[1]),
                            ids->ne[0], ids->ne[1], *static_cast<int64_t *>(userdata),
                            static_cast<int32_t *>(sorted->data));
    }
}

// As many pairs for each expert.
void fill_sorted_pairs(ggml_tensor * twin, const ggml_tensor * node) {
    const ggml_tensor * ids = node->src[0];
    const int64_t n_experts = params_of<int64_t>(node);
    std::vector<int32_t> in_turn(ggml_nelements(ids));
    for (size_t i = 0; i < in_turn.size(); i++) {
        in_turn[i] = static_cast<int32_t>(static_cast<int64_t>(i) % n_experts);
    }
    kernels::sort_pairs(in_turn.data(), 1, ids->ne[0], ids->ne[0], ids->ne[1], n_experts,
                        static_cast<int32_t *>(twin->data));
}

// src: w, x, ids, sorted pairs
void run_expert_product(ggml_tensor * y, int, int nth, void * userdata) {
    ExpertNode & node = *static_cast<ExpertNode *>(userdata);
    const ExpertWeights w = weights(y->src[0]);
    const ggml_tensor * x = y->src[1];
    const int64_t n_pairs = ggml_nrows(y);
    const ExpertUnits all = kernels::expert_forward_units(w, nth);
    node.dealer.run(all.n_units, nth, [&](Range units) {
        kernels::expert_forward(w, rows(y->src[3], w.n_experts, n_pairs), floats(x), inputs(x, n_pairs), 1.0f, false,
                                floats(y), y->ne[0], all.n_columns, units);
    });
}

// An operand as the products of all experts by integers or in bf16 take it.
struct ExpertOperand {
    int64_t n_experts;
    int64_t activation_block;  // 0: packed in bf16
    bool is_gradient;
    Dealer dealer;
};

// src: x or dy, sorted pairs, ids
void run_expert_operand(ggml_tensor * prepared, int, int nth, void * userdata) {
    ExpertOperand & node = *static_cast<ExpertOperand *>(userdata);
    const ggml_tensor * x = prepared->src[0];
    const int64_t n_pairs = ggml_nelements(prepared->src[2]);
    const ExpertRows pairs = rows(prepared->src[1], node.n_experts, n_pairs);
    if (node.activation_block > 0) {
        node.dealer.run(kernels::expert_int8_quantize_units(pairs), nth, [&](Range units) {
            kernels::expert_int8_quantize(pairs, floats(x), inputs(x, n_pairs), x->ne[0], node.activation_block,
                                          prepared->data, units);
        });
        return;
    }
    node.dealer.run(kernels::expert_bf16_pack_units(pairs), nth, [&](Range units) {
        if (node.is_gradient) {
            kernels::expert_bf16_pack_gradients(pairs, floats(x), stride(x, 1), x->ne[0], prepared->data, units);
        } else {
            kernels::expert_bf16_pack_inputs(pairs, floats(x), inputs(x, n_pairs), x->ne[0], prepared->data, units);
        }
    });
}

// src: w, x, ids, sorted pairs, quantized x
void run_expert_int8(ggml_tensor * y, int, int nth, void * userdata) {
    ExpertNode & node = *static_cast<ExpertNode *>(userdata);
    const ExpertWeights w = weights(y->src[0]);
    const ExpertUnits all = kernels::expert_int8_forward_units(w, nth);
    node.dealer.run(all.n_units, nth, [&](Range units) {
        kernels::expert_int8_forward(w, rows(y->src[3], w.n_experts, ggml_nrows(y)), y->src[4]->data, floats(y),
                                     y->ne[0], all.n_columns, units);
    });
}

// src: w, x, ids, sorted pairs, packed x
void run_expert_bf16(ggml_tensor * y, int, int nth, void * userdata) {
    ExpertNode & node = *static_cast<ExpertNode *>(userdata);
    const ExpertWeights w = weights(y->src[0]);
    const ExpertUnits all = kernels::expert_bf16_forward_units(w, nth);
    node.dealer.run(all.n_units, nth, [&](Range units) {
        kernels::expert_bf16_forward(w, rows(y->src[3], w.n_experts, ggml_nrows(y)), y->src[4]->data, floats(y),
                                     y->ne[0], all.n_columns, units);
    });
}

// src: y, b, h, ids, sorted pairs
void run_expert_lora_add(ggml_tensor * y, int, int nth, void * userdata) {
    ExpertNode & node = *static_cast<ExpertNode *>(userdata);
    const ExpertWeights b = weights(y->src[1]);
    const ggml_tensor * h = y->src[2];
    const int64_t n_pairs = ggml_nrows(y);
    const ExpertUnits all = kernels::expert_forward_units(b, nth);
    node.dealer.run(all.n_units, nth, [&](Range units) {
        kernels::expert_forward(b, rows(y->src[4], b.n_experts, n_pairs), floats(h), inputs(h, n_pairs), node.scale,
                                true, floats(y), y->ne[0], all.n_columns, units);
    });
}

// src: [dx,] w, dy, sorted pairs
void run_expert_dx(ggml_tensor * dx, int, int nth, void * userdata) {
    ExpertNode & node = *static_cast<ExpertNode *>(userdata);
    const ExpertWeights w = weights(node.operand(dx, 0));
    const ggml_tensor * dy = node.operand(dx, 1);
    const int64_t n_pairs = ggml_nrows(dy);
    const ExpertInputs x = inputs(dx, n_pairs);
    const ExpertUnits all = kernels::expert_input_gradient_units(w, x, nth);
    node.dealer.run(all.n_units, nth, [&](Range units) {
        kernels::expert_input_gradient(w, rows(node.operand(dx, 2), w.n_experts, n_pairs), floats(dy), stride(dy, 1),
                                       node.scale, node.accumulate, floats(dx), x, all.n_columns, units);
    });
}

void run_expert_int16_dx(ggml_tensor * dx, int, int nth, void * userdata) {
    ExpertNode & node = *static_cast<ExpertNode *>(userdata);
    const ExpertWeights w = weights(node.operand(dx, 0));
    const ggml_tensor * dy = node.operand(dx, 1);
    const int64_t n_pairs = ggml_nrows(dy);
    const ExpertInputs x = inputs(dx, n_pairs);
    const ExpertUnits all = kernels::expert_int16_input_gradient_units(w, x, nth);
    node.dealer.run(all.n_units, nth, [&](Range units) {
        kernels::expert_int16_input_gradient(w, rows(node.operand(dx, 2), w.n_experts, n_pairs), floats(dy),
                                             stride(dy, 1), node.accumulate, floats(dx), x, all.n_columns, units);
    });
}

// src: [dx,] w, packed dy, sorted pairs, ids
void run_expert_bf16_dx(ggml_tensor * dx, int, int nth, void * userdata) {
    ExpertNode & node = *static_cast<ExpertNode *>(userdata);
    const ExpertWeights w = weights(node.operand(dx, 0));
    const int64_t n_pairs = ggml_nelements(node.operand(dx, 3));
    const ExpertInputs x = inputs(dx, n_pairs);
    const ExpertUnits all = kernels::expert_bf16_input_gradient_units(w, x, nth);
    node.dealer.run(all.n_units, nth, [&](Range units) {
        kernels::expert_bf16_input_gradient(w, rows(node.operand(dx, 2), w.n_experts, n_pairs),
                                            node.operand(dx, 1)->data, node.accumulate, floats(dx), x, all.n_columns,
                                            units);
    });
}

// src: [dw,] x, dy, sorted pairs
void run_expert_dw(ggml_tensor * dw, int, int nth, void * userdata) {
    ExpertNode & node = *static_cast<ExpertNode *>(userdata);
    const ggml_tensor * x = node.operand(dw, 0);
    const ggml_tensor * dy = node.operand(dw, 1);
    const kernels::ExpertShape shape = {dw->ne[0], dw->ne[1], dw->ne[2]};
    const int64_t n_pairs = ggml_nrows(dy);
    node.dealer.run(kernels::expert_weight_gradient_units(shape), nth, [&](Range units) {
        kernels::expert_weight_gradient(shape, rows(node.operand(dw, 2), shape.n_experts, n_pairs), floats(x),
                                        inputs(x, n_pairs), floats(dy), stride(dy, 1), node.scale, node.accumulate,
                                        floats(dw), units);
    });
}

// y = src[0] + scale b h, by experts
void expert_lora_add_rule(const BackwardStep & s) {
    add_expert_gradients(s, s.y->src[1], s.y->src[2], s.y->src[3], params_of<ExpertNode>(s.y).scale);
    s.add(s.y->src[0], s.dy);
}

// Of a sum over the experts of a token, x ne = [n, n_used, T]: weights ne = [1, n_used, T], or nullptr.
const float * floats_of(const ggml_tensor * weights) {
    return weights != nullptr ? floats(weights) : nullptr;
}

// src: x[, weights]
void run_expert_sum(ggml_tensor * y, int ith, int nth, void *) {
    const ggml_tensor * x = y->src[0];
    kernels::expert_sum(floats(x), floats_of(y->src[1]), x->ne[1], x->ne[0], floats(y),
                        kernels::split_range(y->ne[1], ith, nth));
}

// src: dy[, weights]
void run_expert_sum_dx(ggml_tensor * dx, int ith, int nth, void *) {
    const ggml_tensor * dy = dx->src[0];
    kernels::expert_sum_dx(floats_of(dx->src[1]), floats(dy), stride(dy, 1), dx->ne[1], dx->ne[0], floats(dx),
                           kernels::split_range(dx->ne[2], ith, nth));
}

// src: x, dy
void run_expert_sum_dweights(ggml_tensor * dweights, int ith, int nth, void *) {
    const ggml_tensor * x = dweights->src[0];
    const ggml_tensor * dy = dweights->src[1];
    kernels::expert_sum_dweights(floats(x), floats(dy), stride(dy, 1), x->ne[1], x->ne[0], floats(dweights),
                                 kernels::split_range(x->ne[2], ith, nth));
}

const CpuOp sort_pairs_op = {
    {"sort_pairs", nullptr, Rows::together, nullptr, Op::Arrival::nowhere, nullptr, fill_sorted_pairs}, run_sort_pairs};
const CpuOp expert_quantize_op = {{"expert_quantize", nullptr, Rows::together, nullptr, Op::Arrival::nowhere},
                                  run_expert_operand};
const CpuOp expert_bf16_pack_op = {{"expert_bf16_pack", nullptr, Rows::together, nullptr, Op::Arrival::nowhere},
                                   run_expert_operand};
const CpuOp expert_product_op = {{"expert_product", expert_product_rule}, run_expert_product};
const CpuOp expert_int8_op = {{"expert_int8", expert_product_rule}, run_expert_int8};
const CpuOp expert_bf16_op = {{"expert_bf16", expert_product_rule}, run_expert_bf16};
const CpuOp expert_lora_add_op = {{"expert_lora_add", expert_lora_add_rule}, run_expert_lora_add};
const CpuOp expert_dx_op = {{"expert_dx"}, run_expert_dx};
const CpuOp expert_int16_dx_op = {{"expert_int16_dx"}, run_expert_int16_dx};
const CpuOp expert_bf16_dx_op = {{"expert_bf16_dx"}, run_expert_bf16_dx};
const CpuOp expert_dw_op = {{"expert_dw"}, run_expert_dw};
const CpuOp expert_sum_dx_op = {{"expert_sum_dx"}, run_expert_sum_dx};
const CpuOp expert_sum_dweights_op = {{"expert_sum_dweights"}, run_expert_sum_dweights};

}  // namespace

bool CpuOps::can_expert_product(const ggml_tensor * w, const ggml_tensor * x, const ggml_tensor * ids) {
    return is_expert_product(w, x, ids) && kernels::can_dequantize(w->type);
}

ggml_tensor * CpuOps::sorted_pairs(ggml_tensor * ids, int64_t n_experts) {
    ggml_tensor *& sorted = sorted_pairs_[ids];
    if (sorted == nullptr) {
        const int64_t ne[4] = {kernels::sorted_pairs_size(n_experts, ggml_nelements(ids)), 1, 1, 1};
        sorted = node(sort_pairs_op, ne, {ids}, keep(n_experts), GGML_TYPE_I32);
    }
    return sorted;
}

ggml_tensor * CpuOps::expert_product(ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids) {
    const int64_t ne[4] = {w->ne[1], ids->ne[0], ids->ne[1], 1};
    ggml_tensor * sorted = sorted_pairs(ids, w->ne[2]);
    // x for its gradient
    if (bf16_ && w->type != GGML_TYPE_F32) {
        return node(expert_bf16_op, ne, {w, x, ids, sorted, expert_inputs(w, x, ids, 0)}, make<ExpertNode>());
    }
    if (may_round_ && kernels::int8_product_fast() && kernels::int8_product_supported(w->type)) {
        ggml_tensor * quantized = expert_inputs(w, x, ids, kernels::int8_activation_block(w->type));
        return node(expert_int8_op, ne, {w, x, ids, sorted, quantized}, make<ExpertNode>());
    }
    return node(expert_product_op, ne, {w, even_rows(x), ids, sorted}, make<ExpertNode>());
}

ggml_tensor * CpuOps::expert_inputs(const ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids,
                                    int64_t activation_block) {
    ggml_tensor *& prepared = expert_inputs_[{x, ids, activation_block}];
    if (prepared == nullptr) {
        prepared = expert_operand(x, ids, w->ne[2], activation_block, false);
    }
    return prepared;
}

ggml_tensor * CpuOps::expert_operand(ggml_tensor * x, ggml_tensor * ids, int64_t n_experts, int64_t activation_block,
                                     bool is_gradient) {
    ExpertOperand * params = make<ExpertOperand>();
    params->n_experts = n_experts;
    params->activation_block = activation_block;
    params->is_gradient = is_gradient;
    const bool packed = activation_block == 0;
    const int64_t n_pairs = ggml_nelements(ids);
    const size_t n_bytes =
        packed ? kernels::bf16_panel_bytes(x->ne[0]) : kernels::int8_token_block_bytes(x->ne[0], activation_block);
    const int64_t n =
        packed ? kernels::expert_bf16_panels(n_experts, n_pairs) : kernels::expert_int8_blocks(n_experts, n_pairs);
    const int64_t ne[4] = {static_cast<int64_t>(n_bytes), n, 1, 1};
    return node(packed ? expert_bf16_pack_op : expert_quantize_op, ne,
                {even_rows(x), sorted_pairs(ids, n_experts), ids}, params, GGML_TYPE_I8);
}

ggml_tensor * CpuOps::expert_lora_add(ggml_tensor * y, ggml_tensor * b, ggml_tensor * h, ggml_tensor * ids,
                                      float scale) {
    ExpertNode * params = make<ExpertNode>();
    params->scale = scale;
    return node_over(expert_lora_add_op, y, {b, h, ids, sorted_pairs(ids, b->ne[2])}, params);
}

ggml_tensor * CpuOps::expert_gradient(const CpuOp & op, const int64_t ne[4], const Operands & operands, float scale,
                                      ggml_tensor * accumulator) {
    ExpertNode * params = make<ExpertNode>();
    params->scale = scale;
    params->accumulate = accumulator != nullptr;
    return accumulator != nullptr ? node_over(op, accumulator, operands, params) : node(op, ne, operands, params);
}

ggml_tensor * CpuOps::expert_dx(ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids, ggml_tensor * dy, float scale,
                                ggml_tensor * accumulator) {
    ggml_tensor * sorted = sorted_pairs(ids, w->ne[2]);
    const bool rounded = may_round_ && scale == 1.0f;
    if (rounded && bf16_ && w->type != GGML_TYPE_F32) {
        ggml_tensor * packed = expert_operand(dy, ids, w->ne[2], 0, true);
        return expert_gradient(expert_bf16_dx_op, x->ne, {w, packed, sorted, ids}, scale, accumulator);
    }
    const bool by_integers = rounded && kernels::int16_gradient_fast() && kernels::int16_gradient_supported(w->type);
    return expert_gradient(by_integers ? expert_int16_dx_op : expert_dx_op, x->ne, {w, even_rows(dy), sorted}, scale,
                           accumulator);
}

ggml_tensor * CpuOps::expert_dw(ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids, ggml_tensor * dy, float scale,
                                ggml_tensor * accumulator) {
    return expert_gradient(expert_dw_op, w->ne, {even_rows(x), even_rows(dy), sorted_pairs(ids, w->ne[2])}, scale,
                           accumulator);
}

ggml_tensor * CpuOps::expert_sum(ggml_tensor * x, ggml_tensor * weights) {
    static const CpuOp op = {{"expert_sum", expert_sum_rule}, run_expert_sum};
    const int64_t ne[4] = {x->ne[0], x->ne[2], 1, 1};
    Operands operands = {contiguous(x)};
    if (weights != nullptr) {
        operands.push_back(contiguous(weights));
    }
    return node(op, ne, operands);
}

void CpuOps::expert_sum_rule(const BackwardStep & s) {
    auto & ops = static_cast<CpuOps &>(s.ops);
    ggml_tensor *x = s.y->src[0], *weights = s.y->src[1];
    ggml_tensor * dy = ops.even_rows(s.dy);
    if (s.needs(x)) {
        Operands operands = {dy};
        if (weights != nullptr) {
            operands.push_back(weights);
        }
        s.gradients.add_own(x, ops.node(expert_sum_dx_op, x->ne, operands));
    }
    if (s.needs(weights)) {
        s.gradients.add_own(weights, ops.node(expert_sum_dweights_op, weights->ne, {x, dy}));
    }
}

}  // namespace ggtune
