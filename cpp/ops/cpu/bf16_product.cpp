// Products in bf16 with sums in float32, on the CPU's matrix unit, and the whole of a linear with its adapter.
#include "kernels/bf16_product.h"

#include <algorithm>

#include "ops/cpu/cpu_ops.h"
#include "ops/products.h"

namespace ggtune {

namespace {

// How a node in bf16 is run: `scale` of what is packed, `accumulate` where ggml puts the tensor written to before the
// arguments.
struct Bf16Node {
    float scale = 1.0f;
    bool accumulate = false;
    kernels::Dealer dealer;
};

template <class Pack>
void pack_bf16(ggml_tensor * packed, int nth, void * userdata, Pack pack) {
    Bf16Node & node = *static_cast<Bf16Node *>(userdata);
    const ggml_tensor * x = packed->src[0];
    const int64_t n_tokens = ggml_nrows(x);
    node.dealer.run(kernels::bf16_panel_count(n_tokens), nth, [&](kernels::Range panels) {
        pack(floats(x), stride(x, 1), x->ne[0], n_tokens, node.scale, packed->data, panels.begin, panels.end);
    });
}

void run_bf16_pack(ggml_tensor * packed, int, int nth, void * userdata) {
    pack_bf16(packed, nth, userdata, kernels::bf16_pack_inputs);
}

void run_bf16_pack_gradients(ggml_tensor * packed, int, int nth, void * userdata) {
    pack_bf16(packed, nth, userdata, kernels::bf16_pack_gradients);
}

// `operands`: weights and what is packed for them, in turn.
template <class Multiply>
void multiply_bf16(ggml_tensor * y, ggml_tensor * const * operands, int n_terms, bool over_inputs, int nth,
                   Bf16Node & node, Multiply multiply) {
    kernels::Bf16Term terms[kernels::kMostBf16Terms];
    for (int i = 0; i < n_terms; i++) {
        const ggml_tensor * w = operands[2 * i];
        terms[i] = {w->type, w->data, w->nb[1], w->ne[over_inputs ? 0 : 1], operands[2 * i + 1]->data};
    }
    const int64_t n_columns = y->ne[0];
    const int64_t n_tokens = ggml_nrows(y);
    const kernels::Bf16Blocks block = kernels::bf16_blocks(n_tokens, n_columns, nth);
    const int64_t n_column_blocks = (n_columns + block.columns - 1) / block.columns;
    const int64_t n_token_blocks = (n_tokens + block.tokens - 1) / block.tokens;
    // neighbours in a portion are computed in one call, where they are columns of the same tokens
    node.dealer.run(n_token_blocks * n_column_blocks, nth, [&](kernels::Range portion) {
        while (portion.begin < portion.end) {
            const int64_t row = portion.begin / n_column_blocks;
            const int64_t end = std::min(portion.end, (row + 1) * n_column_blocks);
            const kernels::Range tokens = {row * block.tokens, std::min((row + 1) * block.tokens, n_tokens)};
            const int64_t first = portion.begin - row * n_column_blocks;
            const kernels::Range columns = {first * block.columns,
                                            std::min((end - row * n_column_blocks) * block.columns, n_columns)};
            multiply(terms, n_terms, n_tokens, floats(y), stride(y, 1), node.accumulate, tokens, columns);
            portion.begin = end;
        }
    });
}

// src: w, x, packed x
void run_bf16_product(ggml_tensor * y, int, int nth, void * userdata) {
    ggml_tensor * const operands[] = {y->src[0], y->src[2]};
    multiply_bf16(y, operands, 1, true, nth, *static_cast<Bf16Node *>(userdata), kernels::bf16_forward);
}

struct Bf16Lora {
    Bf16Node node;
    float scale;
    ggml_tensor * a;  // may be nullptr
};

// src: w, x, packed x, b, packed scale h, h
void run_bf16_lora(ggml_tensor * y, int, int nth, void * userdata) {
    ggml_tensor * const operands[] = {y->src[0], y->src[2], y->src[3], y->src[4]};
    multiply_bf16(y, operands, 2, true, nth, static_cast<Bf16Lora *>(userdata)->node, kernels::bf16_forward);
}

void run_bf16_dx(ggml_tensor * dx, int, int nth, void * userdata) {
    Bf16Node & node = *static_cast<Bf16Node *>(userdata);
    ggml_tensor * const * operands = dx->src + (node.accumulate ? 1 : 0);
    multiply_bf16(dx, operands, operands[2] != nullptr ? 2 : 1, false, nth, node, kernels::bf16_input_gradient);
}

// src: dw itself, x, dy. One of its sides is the rank, whose tokens are S.
void run_bf16_dw(ggml_tensor * dw, int, int nth, void * userdata) {
    Bf16Node & node = *static_cast<Bf16Node *>(userdata);
    const ggml_tensor * x = dw->src[1];
    const ggml_tensor * dy = dw->src[2];
    const bool rank_is_in = dw->ne[0] < dw->ne[1];
    const ggml_tensor * s = rank_is_in ? x : dy;
    const ggml_tensor * l = rank_is_in ? dy : x;
    const int64_t block = kernels::bf16_outer_block();
    node.dealer.run((l->ne[0] + block - 1) / block, nth, [&](kernels::Range blocks) {
        kernels::bf16_outer_product(floats(s), stride(s, 1), s->ne[0], floats(l), stride(l, 1), l->ne[1], node.scale,
                                    true, floats(dw), rank_is_in ? 1 : stride(dw, 1), rank_is_in ? stride(dw, 1) : 1,
                                    blocks.begin * block, std::min(blocks.end * block, l->ne[0]));
    });
}

// One more panel than there are, so that the first can begin on a cache line.
int64_t packed_rows(int64_t n_rows) {
    return kernels::bf16_panel_count(n_rows) + 1;
}

const CpuOp bf16_pack_op = {{"bf16_pack", nullptr, Rows::singly, nullptr, Op::Arrival::nowhere, packed_rows},
                            run_bf16_pack};
const CpuOp bf16_pack_gradients_op = {{"bf16_pack_gradients"}, run_bf16_pack_gradients};
const CpuOp bf16_product_op = {{"bf16_product", product_rule, Rows::singly}, run_bf16_product};
const CpuOp bf16_dx_op = {{"bf16_dx"}, run_bf16_dx};
const CpuOp bf16_dw_op = {{"bf16_dw"}, run_bf16_dw};

}  // namespace

bool CpuOps::can_bf16_product(const ggml_tensor * w, const ggml_tensor * x) const {
    return bf16_ && w->type != GGML_TYPE_F32 && can_weight_forward(w, x) && ggml_nrows(x) >= kMinUnpackingRows;
}

ggml_tensor * CpuOps::bf16_product(ggml_tensor * w, ggml_tensor * x) {
    const int64_t ne[4] = {w->ne[1], x->ne[1], x->ne[2], x->ne[3]};
    return node(bf16_product_op, ne, {w, x, packed_operand(x)}, make<Bf16Node>());  // x for its gradient
}

ggml_tensor * CpuOps::packed_operand(ggml_tensor * x) {
    ggml_tensor *& rows = packed_[x];
    if (rows == nullptr) {
        rows = packed_tensor(bf16_pack_op, x, 1.0f);
    }
    return rows;
}

ggml_tensor * CpuOps::packed_gradient(ggml_tensor * dy, float scale) {
    ggml_tensor *& rows = packed_gradients_[{dy, scale}];
    if (rows == nullptr) {
        rows = packed_tensor(bf16_pack_gradients_op, dy, scale);
    }
    return rows;
}

ggml_tensor * CpuOps::packed_tensor(const CpuOp & op, ggml_tensor * x, float scale) {
    Bf16Node * params = make<Bf16Node>();
    params->scale = scale;
    const int64_t ne[4] = {static_cast<int64_t>(kernels::bf16_panel_bytes(x->ne[0])), packed_rows(ggml_nrows(x)), 1, 1};
    return node(op, ne, {rows_in_step(x) ? x : contiguous(x)}, params, GGML_TYPE_I8);
}

ggml_tensor * CpuOps::lora_product(ggml_tensor * w, ggml_tensor * x, ggml_tensor * a, ggml_tensor * b, ggml_tensor * h,
                                   float scale) {
    static const CpuOp op = {{"bf16_product", lora_product_rule}, run_bf16_lora};
    Bf16Lora * params = make<Bf16Lora>();
    params->scale = scale;
    params->a = a;
    ggml_tensor * packed_x = packed_operand(x);
    ggml_tensor * packed_h = packed_tensor(bf16_pack_op, h, scale);
    const int64_t ne[4] = {w->ne[1], x->ne[1], x->ne[2], x->ne[3]};
    return node(op, ne, {w, x, packed_x, b, packed_h, h}, params);
}

void CpuOps::lora_product_rule(const BackwardStep & s) {
    ggml_tensor *w = s.y->src[0], *x = s.y->src[1], *b = s.y->src[3], *h = s.y->src[5];
    const Bf16Lora & params = params_of<Bf16Lora>(s.y);
    ggml_tensor * a = params.a;
    if (a == nullptr) {
        add_product_gradients(s, b, h, params.scale);
        add_product_gradients(s, w, x, 1.0f);
        return;
    }
    auto & ops = static_cast<CpuOps &>(s.ops);
    ggml_tensor * dh = ops.bf16_dx(b, s.dy, nullptr);
    s.gradients.add_result(b, ops.bf16_dw(h, s.dy, params.scale, s.gradients.accumulator(b)));
    s.gradients.add_result(a, ops.bf16_dw(x, dh, params.scale, s.gradients.accumulator(a)));
    if (s.needs(x)) {
        add_in_place(s, x, [&](ggml_tensor * accumulator) {
            return ops.bf16_lora_dx(w, s.dy, a, dh, params.scale, accumulator);
        });
    }
}

ggml_tensor * CpuOps::bf16_gradient(const ggml_tensor * w, const Operands & operands, ggml_tensor * dy,
                                    ggml_tensor * accumulator) {
    Bf16Node * params = make<Bf16Node>();
    params->accumulate = accumulator != nullptr;
    const int64_t ne[4] = {w->ne[0], dy->ne[1], dy->ne[2], dy->ne[3]};
    return accumulator != nullptr ? node_over(bf16_dx_op, accumulator, operands, params)
                                  : node(bf16_dx_op, ne, operands, params);
}

ggml_tensor * CpuOps::bf16_dx(ggml_tensor * w, ggml_tensor * dy, ggml_tensor * accumulator) {
    return bf16_gradient(w, {w, packed_gradient(dy, 1.0f)}, dy, accumulator);
}

ggml_tensor * CpuOps::bf16_dw(ggml_tensor * x, ggml_tensor * dy, float scale, ggml_tensor * accumulator) {
    Bf16Node * params = make<Bf16Node>();
    params->scale = scale;
    return node_over(bf16_dw_op, accumulator, {even_rows(x), even_rows(dy)}, params);
}

ggml_tensor * CpuOps::bf16_lora_dx(ggml_tensor * w, ggml_tensor * dy, ggml_tensor * a, ggml_tensor * dh, float scale,
                                   ggml_tensor * accumulator) {
    return bf16_gradient(w, {w, packed_gradient(dy, 1.0f), a, packed_gradient(dh, scale)}, dy, accumulator);
}

}  // namespace ggtune
