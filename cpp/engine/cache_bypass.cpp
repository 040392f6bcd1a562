#include "engine/cache_bypass.h"

#include <unordered_map>

namespace ggtune {

namespace {

// The leaf that a node fills completely with the rows of its first operand, or nullptr.
ggml_tensor * filled_leaf(const ggml_tensor * node) {
    if (node->op != GGML_OP_SET_ROWS) {
        return nullptr;
    }
    ggml_tensor * leaf = node->view_src;
    const ggml_tensor * rows = node->src[0];
    const bool fills = leaf->op == GGML_OP_NONE && leaf->type == GGML_TYPE_F32 && rows->type == GGML_TYPE_F32 &&
                       ggml_nelements(leaf) == ggml_nelements(rows) && leaf->ne[0] == rows->ne[0];
    return fills ? leaf : nullptr;
}

}  // namespace

std::vector<ggml_tensor *> without_caches(ggml_cgraph * graph, ggml_context * ctx) {
    std::vector<ggml_tensor *> nodes;
    std::unordered_map<const ggml_tensor *, ggml_tensor *> written;
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        ggml_tensor * node = ggml_graph_node(graph, i);
        if (const ggml_tensor * leaf = filled_leaf(node)) {
            ggml_tensor * rows = node->src[0];
            if (!ggml_is_contiguous(rows)) {
                rows = ggml_cont(ctx, rows);
                ggml_format_name(rows, "%s (contiguous)", node->src[0]->name);
                nodes.push_back(rows);
            }
            written[leaf] = rows;
            continue;
        }
        for (ggml_tensor *& src : node->src) {
            const auto found = written.find(src);
            src = found != written.end() ? found->second : src;
        }
        if (const auto found = written.find(node->view_src); found != written.end()) {
            // ggml's allocator wants views of what owns the memory, never of views
            ggml_tensor * rows = found->second;
            node->view_offs += rows->view_src != nullptr ? rows->view_offs : 0;
            node->view_src = rows->view_src != nullptr ? rows->view_src : rows;
            if (node->op == GGML_OP_VIEW && ggml_nelements(node) == ggml_nelements(rows) && ggml_is_contiguous(node)) {
                node->op = GGML_OP_RESHAPE;  // whose gradient ggml's own backward pass can take in any layout
            }
        }
        nodes.push_back(node);
    }
    return nodes;
}

}  // namespace ggtune
