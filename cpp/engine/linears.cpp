#include "engine/linears.h"

#include <ggml-cpp.h>
#include <llama-cpp.h>

#include <algorithm>
#include <optional>
#include <set>
#include <unordered_map>

#include "engine/adapter.h"
#include "engine/inference.h"
#include "engine/llama_access.h"

namespace ggtune {

namespace {

// "blk.<layer>.<kind>.weight"
bool parse_block_tensor(const std::string & name, int & layer, std::string & kind) {
    static const std::string prefix = "blk.";
    static const std::string suffix = ".weight";
    if (name.compare(0, prefix.size(), prefix) != 0 || name.size() <= prefix.size() + suffix.size() ||
        name.compare(name.size() - suffix.size(), suffix.size(), suffix) != 0) {
        return false;
    }
    const size_t dot = name.find('.', prefix.size());
    if (dot == prefix.size() || dot >= name.size() - suffix.size()) {
        return false;
    }
    layer = 0;
    for (size_t i = prefix.size(); i < dot; i++) {
        if (name[i] < '0' || name[i] > '9') {
            return false;
        }
        layer = layer * 10 + (name[i] - '0');
    }
    kind = name.substr(dot + 1, name.size() - suffix.size() - dot - 1);
    return true;
}

bool has_common_name(const Linear & linear) {
    static const std::set<std::string> kinds = {"attn_q",      "attn_k",   "attn_v", "attn_qkv",
                                                "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
    return linear.n_mat == 1 && kinds.count(linear.kind) != 0;
}

// All matrices and stacks of the blocks. A matrix of one row (the gate of shared experts) is a vector.
std::vector<Linear> candidates(const Model & model) {
    std::vector<Linear> found;
    for (const auto & [name, tensor] : model.tensors()) {
        int layer;
        std::string kind;
        if (parse_block_tensor(name, layer, kind) && ggml_n_dims(tensor) >= 2 && ggml_n_dims(tensor) <= 3) {
            found.push_back({name, kind, layer, tensor->ne[0], tensor->ne[1], tensor->ne[2], false, "", tensor});
        }
    }
    return found;
}

bool is_product(const ggml_tensor * node) {
    return node != nullptr && (node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_MUL_MAT_ID);
}

// a x of a sum that adds scale * b (a x), as llama.cpp adds the product of a pair, else nullptr.
const ggml_tensor * a_product_of(const ggml_tensor * sum) {
    const ggml_tensor * scaled = sum->op == GGML_OP_ADD ? sum->src[1] : nullptr;
    const ggml_tensor * b_product = scaled != nullptr && scaled->op == GGML_OP_SCALE ? scaled->src[0] : nullptr;
    return is_product(b_product) && is_product(b_product->src[1]) ? b_product->src[1] : nullptr;
}

// The tensor of factors that the product w x was multiplied with, of which experts' are looked up; "" for w x itself.
std::string scale_of(const ggml_tensor * product) {
    if (product->op != GGML_OP_MUL || !is_product(product->src[0])) {
        return "";
    }
    const ggml_tensor * factors = product->src[1];
    while (factors->op != GGML_OP_NONE && factors->src[0] != nullptr) {
        factors = factors->src[0];
    }
    return factors->name;
}

// The candidates whose pairs llama.cpp's graph has.
std::vector<Linear> in_graph(Model & model, const std::vector<Linear> & given) {
    PlacedTensors placed(2 * given.size());
    std::vector<LoraWeights> pairs;
    std::unordered_map<const ggml_tensor *, size_t> index_of_a;
    for (const Linear & linear : given) {
        ggml_context * ctx = placed.beside(linear.weight);
        ggml_tensor * a = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, linear.n_in, 1, linear.n_mat);
        ggml_tensor * b = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 1, linear.n_out, linear.n_mat);
        index_of_a[a] = pairs.size();
        pairs.push_back({linear.name, a, b});
    }
    placed.allocate(false, "");
    const LoraHandle lora = make_lora(model.llama(), 1.0f, pairs);

    constexpr int64_t kNTokens = 32;  // the graphs are the same for any number
    const llama_context_ptr context = make_planning_context(model, inference_params(kNTokens, 1), {{lora.get(), 1.0f}});
    ggml_cgraph * graph = reserved_graph(*context);
    std::vector<std::optional<Linear>> found(given.size());
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        const ggml_tensor * sum = ggml_graph_node(graph, i);
        const ggml_tensor * a_product = a_product_of(sum);
        const auto index = a_product != nullptr ? index_of_a.find(a_product->src[0]) : index_of_a.end();
        if (index != index_of_a.end()) {
            Linear & linear = found[index->second].emplace(given[index->second]);
            linear.routed = a_product->op == GGML_OP_MUL_MAT_ID;
            linear.scale = scale_of(sum->src[0]);
        }
    }
    std::vector<Linear> linears;
    for (std::optional<Linear> & linear : found) {
        if (linear) {
            linears.push_back(std::move(*linear));
        }
    }
    return linears;
}

// The same linears of another object of the model.
std::vector<Linear> of_model(std::vector<Linear> linears, const Model & model) {
    std::unordered_map<std::string, ggml_tensor *> weights;
    for (const auto & [name, tensor] : model.tensors()) {
        weights[name] = tensor;
    }
    for (Linear & linear : linears) {
        linear.weight = weights.at(linear.name);
    }
    return linears;
}

}  // namespace

std::vector<Linear> find_linears(Model & model) {
    if (model.contents == Model::Contents::vocabulary) {
        return {};
    }
    if (!model.places.devices.empty()) {
        // found without devices, where llama.cpp puts no copies between the nodes that are looked for
        Model plain(model.path, Model::Contents::header);
        return of_model(plain.linears(), model);
    }
    std::vector<Linear> all = candidates(model);
    if (all.empty()) {
        return all;
    }
    try {
        return in_graph(model, all);
    } catch (const ModelFileError &) {
        all.erase(std::remove_if(all.begin(), all.end(), [](const Linear & l) { return !has_common_name(l); }),
                  all.end());
        return all;
    }
}

}  // namespace ggtune
