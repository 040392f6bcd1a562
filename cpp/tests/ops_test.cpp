// Descriptors of nodes, and which implementation of the makers serves a node.
#include <ggml-cpp.h>

#include "check.h"
#include "engine/autodiff.h"
#include "kernels/expert_product.h"
#include "ops/cpu/cpu_ops.h"

namespace {

using namespace ggtune;
using namespace ggtune::test;

void expect(const std::string & what, bool holds) {
    check(what, holds ? 0 : 1, 0);
}

// Counts what rules ask of it.
class CountingOps : public CpuOps {
  public:
    using CpuOps::CpuOps;
    int n_calls = 0;

    ggml_tensor * activation_dx(Activation f, ggml_tensor * x, ggml_tensor * dy) override {
        n_calls++;
        return CpuOps::activation_dx(f, x, dy);
    }
};

void test_each_node_has_its_implementation() {
    const ggml_context_ptr ctx(ggml_init({1 << 20, nullptr, true}));
    CountingOps one(ctx.get()), other(ctx.get());
    Implementations implementations(one);
    ggml_tensor * x = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 8, 3);
    ggml_tensor * first = ggml_silu(ctx.get(), x);
    ggml_tensor * second = ggml_silu(ctx.get(), first);
    ggml_tensor * third = ggml_silu(ctx.get(), second);
    implementations.assign(second, other);
    Autodiff ad(implementations);
    ad.set_trainable(x, ggml_dup_tensor(ctx.get(), x));
    const std::vector<ggml_tensor *> nodes = {first, second, third};
    ad.trace(nodes);
    ad.add(third, ggml_dup_tensor(ctx.get(), third));
    ad.backward(nodes);
    check("nodes of one implementation", std::abs(one.n_calls - 2), 0);
    check("nodes of the other", std::abs(other.n_calls - 1), 0);
    expect("both are listed", implementations.all() == std::vector<Ops *>{&one, &other});
}

void test_descriptors_of_ggml_nodes() {
    const ggml_context_ptr ctx(ggml_init({1 << 20, nullptr, true}));
    ggml_tensor * x = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 8, 3);
    ggml_tensor * w = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, 8, 4);
    expect("a product is row-wise", is_row_wise(ggml_mul_mat(ctx.get(), w, x)));
    expect("a unary function without a rule is row-wise", is_row_wise(ggml_step(ctx.get(), x)));
    expect("and has no rule", op_of(ggml_step(ctx.get(), x)).rule == nullptr);
    expect("a sum over another tensor is not row-wise", !is_row_wise(ggml_add_inplace(ctx.get(), x, x)));
    expect("a norm is not row-wise", !is_row_wise(ggml_rms_norm(ctx.get(), x, 1e-5f)));
    expect("an op without a descriptor", op_of(ggml_argsort(ctx.get(), x, GGML_SORT_ORDER_ASC)).rule == nullptr);
    expect("rows stay", cut_rows(ggml_mul_mat(ctx.get(), w, x), 2) == 2);
    expect("names of products", describe(ggml_mul_mat(ctx.get(), w, x)) == "MUL_MAT f16");
    expect("names of functions", describe(ggml_silu(ctx.get(), x)) == "SILU");
    expect("not ours", custom_node(ggml_silu(ctx.get(), x)) == nullptr);
}

void test_descriptors_of_own_nodes() {
    const ggml_context_ptr ctx(ggml_init({1 << 20, nullptr, true}));
    CpuOps ops(ctx.get());
    ggml_tensor * x = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 8, 3);
    ggml_tensor * gelu = ops.replacement(ggml_gelu(ctx.get(), x));
    expect("GELU is ours", custom_node(gelu) != nullptr && describe(gelu) == "activation" && is_row_wise(gelu));
    expect("SILU is ggml's", ops.replacement(ggml_silu(ctx.get(), x)) == nullptr);
    expect("a mask hangs on the place in the tensor", !is_row_wise(ops.dropout(x, {1, 2, 0.5f})));

    ggml_tensor * q = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 8, 3, 2);
    KeyRanges keys;
    keys.first = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, 3);
    keys.end = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, 3);
    ggml_tensor * out = ops.attention(q, q, q, keys, {1.0f, 0.0f, 1.0f}, nullptr);
    expect("attention goes by a view", out->op == GGML_OP_VIEW && op_of(out).rule == op_of(out->src[0]).rule);
    expect("and not by the view's own rule", op_of(out).rule != op_of(ggml_view_1d(ctx.get(), x, 2, 0)).rule);

    // a copy, as recomputation makes it
    ggml_tensor * copy = ggml_dup_tensor(ctx.get(), gelu);
    copy->op = gelu->op;
    std::copy(std::begin(gelu->op_params), std::end(gelu->op_params), copy->op_params);
    expect("a copy has the descriptor", custom_node(copy) == custom_node(gelu));
}

// Operands in another form have as many rows as that form has, and products of them are differentiated past them.
void test_prepared_operands() {
    const ggml_context_ptr ctx(ggml_init({1 << 20, nullptr, true}));
    CpuOps ops(ctx.get(), true);
    ggml_tensor * w = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_Q8_0, 64, 32);
    ggml_tensor * x = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 64, 40);
    ggml_tensor * product = ggml_mul_mat(ctx.get(), w, x);
    ops.begin_stretch({product});
    ggml_tensor * own = ops.replacement(product);
    if (own == nullptr) {
        std::printf("skip operands in another form: this CPU has neither int8 dot products nor a matrix unit\n");
        return;
    }
    ggml_tensor * prepared = own->src[2];
    expect("no gradient arrives", op_of(prepared).arrival == Op::Arrival::nowhere);
    expect("all rows", cut_rows(prepared, 40) == prepared->ne[1]);
    expect("fewer rows", is_row_wise(prepared) && cut_rows(prepared, 8) < prepared->ne[1]);
    expect("made once", ops.replacement(ggml_mul_mat(ctx.get(), w, x))->src[2] == prepared);
    ops.begin_stretch({product});
    expect("made anew for the next stretch", ops.replacement(product)->src[2] != prepared);
}

// What products by experts read is made once for all of a layer; where only time counts, each expert has its share.
void test_experts() {
    const ggml_context_ptr ctx(ggml_init({1 << 20, nullptr, true}));
    CpuOps ops(ctx.get());
    constexpr int64_t kExperts = 6, kUsed = 2, kTokens = 9;
    ggml_tensor * w = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 8, 4, kExperts);
    ggml_tensor * x = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 8, 1, kTokens);
    ggml_tensor * ids = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_I32, kUsed, kTokens);
    const ggml_tensor * product = ops.replacement(ggml_mul_mat_id(ctx.get(), w, x, ids));
    ggml_tensor * sorted = product->src[3];
    expect("sorted once", ops.replacement(ggml_mul_mat_id(ctx.get(), w, x, ids))->src[3] == sorted);
    expect("no gradient arrives", op_of(sorted).arrival == Op::Arrival::nowhere);
    ops.begin_stretch({});
    expect("sorted anew for the next stretch",
           ops.replacement(ggml_mul_mat_id(ctx.get(), w, x, ids))->src[3] != sorted);

    std::vector<int32_t> values(ggml_nelements(sorted), -1);
    ggml_tensor twin = *sorted;
    twin.data = values.data();
    op_of(sorted).fill_twin(&twin, sorted);
    const kernels::ExpertRows rows = kernels::expert_rows(values.data(), kExperts, kUsed * kTokens);
    bool same = true;
    for (int64_t expert = 0; expert < kExperts; expert++) {
        same = same && rows.of(expert).size() == kUsed * kTokens / kExperts;
    }
    expect("each expert has its share", same);

    ggml_tensor * two = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 8, 2, kTokens);
    ggml_tensor * four_ids = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_I32, 4, kTokens);
    ggml_tensor * repeated = ggml_mul_mat_id(ctx.get(), w, two, four_ids);
    expect("rows for some of the experts are ggml's, and have no gradient",
           ops.replacement(repeated) == nullptr && !op_of(repeated).can_differentiate(repeated));
}

}  // namespace

int main() {
    test_each_node_has_its_implementation();
    test_descriptors_of_ggml_nodes();
    test_descriptors_of_own_nodes();
    test_prepared_operands();
    test_experts();
    return finish();
}
