// Graphs with our products in place of ggml's: the same results but for rounding, whatever shares the memory.
#include "engine/own_products.h"

#include <ggml-cpp.h>
#include <ggml-cpu.h>

#include <cmath>
#include <numeric>

#include "check.h"

namespace {

using namespace ggtune;
using namespace ggtune::test;

constexpr int64_t kWidth = 256, kInner = 1024, kExperts = 4, kUsed = 2;
constexpr int64_t kHeadDim = 64, kHeads = 4, kKeyHeads = 2, kCells = 96, kSequences = 3;

ggml_backend_ptr cpu_with_threads() {
    ggml_backend_ptr cpu(ggml_backend_cpu_init());
    ggml_backend_cpu_set_n_threads(cpu.get(), 2);
    return cpu;
}

// A graph of n_rows rows: products that share an operand, a wider one behind them, a view of a product, experts.
class Graph {
  public:
    explicit Graph(int64_t n_rows) : ctx_(ggml_init({32 << 20, nullptr, false})) {
        ggml_tensor * x = ggml_new_tensor_2d(ctx_.get(), GGML_TYPE_F32, kWidth, n_rows);
        fill(x, 1.0f);
        ggml_tensor * norm = ggml_new_tensor_1d(ctx_.get(), GGML_TYPE_F32, kWidth);
        fill(norm, 1.0f);
        ggml_tensor * normed = ggml_mul(ctx_.get(), ggml_rms_norm(ctx_.get(), x, 1e-5f), norm);
        ggml_tensor * gate = product(GGML_TYPE_Q4_K, kInner, normed);
        ggml_tensor * up = product(GGML_TYPE_Q8_0, kInner, normed);
        ggml_tensor * down = product(GGML_TYPE_Q6_K, kWidth, ggml_mul(ctx_.get(), gate, up));
        ggml_tensor * half = ggml_view_2d(ctx_.get(), up, kWidth, n_rows, up->nb[1], kWidth * sizeof(float));
        ggml_tensor * sum = ggml_add(ctx_.get(), down, half);

        ggml_tensor * experts = ggml_new_tensor_3d(ctx_.get(), GGML_TYPE_Q4_1, kWidth, kWidth, kExperts);
        fill(experts, 0.1f);
        ggml_tensor * ids = ggml_new_tensor_2d(ctx_.get(), GGML_TYPE_I32, kUsed, n_rows);
        for (int64_t i = 0; i < kUsed * n_rows; i++) {
            static_cast<int32_t *>(ids->data)[i] = static_cast<int32_t>((i * 7 / 2) % kExperts);
        }
        ggml_tensor * one = ggml_reshape_3d(ctx_.get(), sum, kWidth, 1, n_rows);
        results_ = {gate, up, sum, ggml_mul_mat_id(ctx_.get(), experts, one, ids)};
        graph_ = ggml_new_graph(ctx_.get());
        for (ggml_tensor * result : results_) {
            ggml_build_forward_expand(graph_, result);
        }
    }

    std::vector<std::vector<float>> compute(ggml_backend_t backend) {
        std::vector<std::vector<float>> values;
        if (ggml_backend_graph_compute(backend, graph_) == GGML_STATUS_SUCCESS) {
            for (const ggml_tensor * t : results_) {
                const auto * data = static_cast<const float *>(t->data);
                values.emplace_back(data, data + ggml_nelements(t));
            }
        }
        return values;
    }

  private:
    void fill(ggml_tensor * t, float scale) {
        const std::vector<float> values = random_values(ggml_nelements(t), seed_++, scale);
        if (t->type == GGML_TYPE_F32) {
            std::copy(values.begin(), values.end(), static_cast<float *>(t->data));
        } else {
            ggml_quantize_chunk(t->type, values.data(), t->data, 0, ggml_nrows(t), t->ne[0], nullptr);
        }
    }

    ggml_tensor * product(ggml_type type, int64_t n_out, ggml_tensor * x) {
        ggml_tensor * w = ggml_new_tensor_2d(ctx_.get(), type, x->ne[0], n_out);
        fill(w, 0.1f);
        return ggml_mul_mat(ctx_.get(), w, x);
    }

    ggml_context_ptr ctx_;
    uint32_t seed_ = 1;
    std::vector<ggml_tensor *> results_;
    ggml_cgraph * graph_;
};

// Attention over a memory in half precision: three sequences with n_tokens new tokens each, of which the last sees all.
struct AttentionCase {
    std::string name;
    int64_t n_tokens;
    float max_bias = 0.0f, softcap = 0.0f;
    bool sinks = false;
    ggml_type type = GGML_TYPE_F16;  // of the memory
    bool ours = true;
};

std::vector<float> attend(const AttentionCase & c, ggml_backend_t backend) {
    const ggml_context_ptr ctx(ggml_init({16 << 20, nullptr, false}));
    uint32_t seed = 1;
    const auto tensor = [&](ggml_type type, int64_t ne1, int64_t ne2) {  // heads side by side, as llama.cpp has them
        ggml_tensor * t = ggml_new_tensor_4d(ctx.get(), type, kHeadDim, ne2, ne1, kSequences);
        const std::vector<float> values = random_values(ggml_nelements(t), seed++);
        if (type == GGML_TYPE_F32) {
            std::copy(values.begin(), values.end(), static_cast<float *>(t->data));
        } else {
            ggml_quantize_chunk(type, values.data(), t->data, 0, ggml_nrows(t), kHeadDim, nullptr);
        }
        return ggml_permute(ctx.get(), t, 0, 2, 1, 3);
    };
    ggml_tensor * q = tensor(GGML_TYPE_F32, c.n_tokens, kHeads);
    ggml_tensor * k = tensor(c.type, kCells, kKeyHeads);
    ggml_tensor * v = tensor(c.type, kCells, kKeyHeads);
    ggml_tensor * mask = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F16, kCells, c.n_tokens, 1, kSequences);
    for (int64_t i = 0; i < ggml_nelements(mask); i++) {
        const int64_t cell = i % kCells, token = i / kCells % c.n_tokens;
        const float distance = static_cast<float>(kCells - c.n_tokens + token - cell);
        static_cast<ggml_fp16_t *>(mask->data)[i] = ggml_fp32_to_fp16(distance < 0     ? -INFINITY
                                                                      : c.max_bias > 0 ? -distance
                                                                                       : 0.0f);
    }
    ggml_tensor * y = ggml_flash_attn_ext(ctx.get(), q, k, v, mask, 0.125f, c.max_bias, c.softcap);
    if (c.sinks) {
        ggml_tensor * sinks = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, kHeads);
        std::iota(static_cast<float *>(sinks->data), static_cast<float *>(sinks->data) + kHeads, 0.5f);
        ggml_flash_attn_ext_add_sinks(y, sinks);
    }
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, y);
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
        return {};
    }
    const auto * data = static_cast<const float *>(y->data);
    return {data, data + ggml_nelements(y)};
}

void test_attention(ggml_backend_t plain, ggml_backend_t own) {
    for (const int64_t n_tokens : {1, 6, 37}) {
        for (const AttentionCase & c : {AttentionCase{"", n_tokens},
                                        {"soft cap, ", n_tokens, 0.0f, 2.0f},
                                        {"sinks, ", n_tokens, 0.0f, 0.0f, true},
                                        {"ALiBi, ", n_tokens, 8.0f, 0.0f, false, GGML_TYPE_F16, false},
                                        {"memory in Q8_0, ", n_tokens, 0.0f, 0.0f, false, GGML_TYPE_Q8_0, false}}) {
            const std::string name = "attention, " + c.name + std::to_string(n_tokens) + " tokens";
            const std::vector<float> expected = attend(c, plain), found = attend(c, own);
            check(name, found.empty() ? 1 : relative_difference(found, expected), 2e-3);  // ggml sums up in 16 bits
            check(name + ", by ours", same_bits(found, expected) != (c.ours && kSequences * n_tokens >= 16) ? 0 : 1, 0);
        }
    }
}

}  // namespace

int main() {
    const ggml_backend_ptr plain = cpu_with_threads(), own = cpu_with_threads();
    use_own_products(own.get());
    const std::vector<std::string> names = {"gate", "up", "sum", "experts"};
    for (const int64_t n_rows : {24, 1, 100, 17}) {
        Graph graph(n_rows);
        const std::vector<std::vector<float>> expected = graph.compute(plain.get());
        const std::vector<std::vector<float>> found = graph.compute(own.get());
        const std::string rows = std::to_string(n_rows) + " rows, ";
        check(rows + "computed", expected.size() == names.size() && found.size() == names.size() ? 0 : 1, 0);
        for (size_t i = 0; i < std::min(found.size(), names.size()); i++) {
            check(rows + names[i], relative_difference(found[i], expected[i]), 2e-2);
        }
        check(rows + "by ours", same_bits(found[0], expected[0]) == (n_rows == 1) ? 0 : 1, 0);
        check(rows + "ggml's own again", same_bits(graph.compute(plain.get())[0], expected[0]) ? 0 : 1, 0);
    }
    test_attention(plain.get(), own.get());
    return finish();
}
