#include "ops/op.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "ops/families.h"
#include "ops/ops.h"

namespace ggtune {

namespace {

using Key = std::pair<ggml_op, int>;

std::map<Key, Op> all_ggml_ops() {
    std::map<Key, Op> ops;
    for (const auto family : {activation_ops, elementwise_ops, expert_ops, hyper_connection_ops, norm_ops, product_ops,
                              recurrent_ops, rope_ops, shape_ops, softmax_ops}) {
        for (const GgmlOp & op : family()) {
            ops.emplace(Key{op.op, op.function}, Op{nullptr, op.rule, op.rows, op.can_differentiate});
        }
    }
    return ops;
}

int function_of(const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_UNARY:
            return ggml_get_unary_op(node);
        case GGML_OP_GLU:
            return ggml_get_glu_op(node);
        default:
            return kAnyFunction;
    }
}

const Op & ggml_op_of(const ggml_tensor * node) {
    static const std::map<Key, Op> known = all_ggml_ops();
    static const Op unknown;
    auto found = known.find({node->op, function_of(node)});
    if (found == known.end()) {
        found = known.find({node->op, kAnyFunction});
    }
    return found != known.end() ? found->second : unknown;
}

// ggml's parameters of a custom node: ggml_custom_op_params of its private ggml-impl.h
struct CustomParams {
    ggml_custom_op_t function;
    int n_tasks;
    void * userdata;
};
static_assert(sizeof(CustomParams) <= GGML_MAX_OP_PARAMS, "fits into a node");

// At the end of the parameters of a copy (CONT), which has none of its own.
struct Descriptor {
    uint64_t mark;
    CustomNode * custom;
};
constexpr uint64_t kMark = 0x67677475'6e650001;
constexpr size_t kDescriptorAt = GGML_MAX_OP_PARAMS - sizeof(Descriptor);

}  // namespace

void run_custom_node(ggml_tensor * node, int ith, int nth, void * userdata) {
    const CustomNode & custom = *static_cast<const CustomNode *>(userdata);
    custom.run(node, ith, nth, custom.params);
}

ggml_tensor * standing_for(ggml_context * ctx, ggml_tensor * result, const std::vector<ggml_tensor *> & operands,
                           CustomNode * custom) {
    ggml_tensor * node = ggml_cont(ctx, result);
    const Descriptor descriptor = {kMark, custom};
    std::memcpy(reinterpret_cast<char *>(node->op_params) + kDescriptorAt, &descriptor, sizeof(descriptor));
    std::copy(operands.begin(), operands.end(), node->src + 1);
    return node;
}

ggml_tensor * operand_behind(const ggml_tensor * node, int i) {
    return node->src[1 + i];
}

CustomNode * custom_node(const ggml_tensor * node) {
    if (node->op == GGML_OP_CONT) {
        Descriptor descriptor;
        std::memcpy(&descriptor, reinterpret_cast<const char *>(node->op_params) + kDescriptorAt, sizeof(descriptor));
        return descriptor.mark == kMark ? descriptor.custom : nullptr;
    }
    if (node->op != GGML_OP_CUSTOM) {
        return nullptr;
    }
    CustomParams params;
    std::memcpy(&params, node->op_params, sizeof(params));
    return params.function == run_custom_node ? static_cast<CustomNode *>(params.userdata) : nullptr;
}

const Op & op_of(const ggml_tensor * node) {
    if (const CustomNode * custom = custom_node(node)) {
        return *custom->op;
    }
    if (node->op == GGML_OP_VIEW) {
        const CustomNode * shown = custom_node(node->src[0]);
        if (shown != nullptr && shown->op->arrival == Op::Arrival::view) {
            return *shown->op;
        }
    }
    return ggml_op_of(node);
}

bool computes_nothing(const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_NONE:
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
            return true;
        default:
            return false;
    }
}

std::string describe(const ggml_tensor * node) {
    if (const CustomNode * custom = node->op == GGML_OP_CUSTOM ? custom_node(node) : nullptr) {
        return custom->op->name;
    }
    std::string name = ggml_op_desc(node);
    if (node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_MUL_MAT_ID) {
        name += std::string(" ") + ggml_type_name(node->src[0]->type);
    }
    return name;
}

bool is_row_wise(const ggml_tensor * node) {
    return op_of(node).rows == Rows::singly && node->view_src == nullptr;
}

int64_t cut_rows(const ggml_tensor * node, int64_t n_rows) {
    const Op & op = op_of(node);
    return op.cut_rows != nullptr ? op.cut_rows(n_rows) : n_rows;
}

float float_param(const ggml_tensor * node, int index) {
    float value;
    std::memcpy(&value, node->op_params + index, sizeof(value));
    return value;
}

ggml_tensor * contiguous(ggml_context * ctx, ggml_tensor * t) {
    if (!ggml_is_contiguous(t)) {
        return ggml_cont(ctx, t);
    }
    // dimensions of size 1 may have any stride, which some of ggml's ops do not take
    const bool usual_strides = t->nb[1] == ggml_row_size(t->type, t->ne[0]) && t->nb[2] == t->nb[1] * t->ne[1] &&
                               t->nb[3] == t->nb[2] * t->ne[2];
    return usual_strides ? t : ggml_reshape_4d(ctx, t, t->ne[0], t->ne[1], t->ne[2], t->ne[3]);
}

}  // namespace ggtune
