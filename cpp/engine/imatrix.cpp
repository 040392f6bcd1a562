#include "engine/imatrix.h"

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "engine/inference.h"

namespace ggtune {

namespace {

bool starts_with(const std::string & text, const char * prefix) {
    return text.compare(0, std::strlen(prefix), prefix) == 0;
}

bool ends_with(const std::string & text, const std::string & suffix) {
    return text.size() >= suffix.size() && text.compare(text.size() - suffix.size(), suffix.size(), suffix) == 0;
}

// A tensor's bytes, which may have gaps between the rows, on the host.
void copy_to_host(const ggml_tensor * tensor, std::vector<uint8_t> & bytes) {
    bytes.resize(ggml_nbytes(tensor));
    ggml_backend_tensor_get(tensor, bytes.data(), 0, bytes.size());
}

void add_squares(const float * row, int64_t n, double * sums) {
    for (int64_t i = 0; i < n; ++i) {
        sums[i] += static_cast<double>(row[i]) * static_cast<double>(row[i]);
    }
}

}  // namespace

ImatrixCollector::ImatrixCollector(Model & model, int context, int threads, bool process_output)
    : model_(model), context_(context), process_output_(process_output) {
    if (context < 1) {
        throw Error("a context of " + std::to_string(context) + " tokens holds no text");
    }
    model.check_positions(context);
    llama_context_params params = inference_params(context, threads);  // one graph for a text: each token counts once
    params.cb_eval = on_node;
    params.cb_eval_user_data = this;
    ctx_ = make_context(model, params);
    batch_ = llama_batch_init(context, 0, 1);
    batch_owner_.reset(&batch_);
}

void ImatrixCollector::add(const std::vector<int32_t> & tokens) {
    if (tokens.empty()) {
        return;
    }
    if (static_cast<int64_t>(tokens.size()) > context_) {
        throw Error("a text of " + std::to_string(tokens.size()) + " tokens does not fit the context of " +
                    std::to_string(context_));
    }
    batch_.n_tokens = static_cast<int32_t>(tokens.size());
    for (int32_t i = 0; i < batch_.n_tokens; ++i) {
        const int32_t token = tokens[static_cast<size_t>(i)];
        if (token < 0 || token >= model_.n_vocab()) {
            throw Error("token " + std::to_string(token) + " is not in the vocabulary of " +
                        std::to_string(model_.n_vocab()));
        }
        batch_.token[i] = token;
        batch_.pos[i] = i;
        batch_.n_seq_id[i] = 1;
        batch_.seq_id[i][0] = 0;
        batch_.logits[i] = 1;  // else the last layer would compute the rest of it for one token alone
    }
    llama_memory_clear(llama_get_memory(ctx_.get()), true);
    try {
        decode(model_, *ctx_, batch_);
    } catch (const std::exception &) {
        if (problem_.empty()) {
            throw;
        }
    }
    if (!problem_.empty()) {
        throw Error(problem_);
    }
}

// ggml's scheduler calls this for each node, and again once a wanted one is computed; false then ends the graph.
bool ImatrixCollector::on_node(ggml_tensor * node, bool ask, void * self) {
    auto & collector = *static_cast<ImatrixCollector *>(self);
    if (!ask && collector.problem_.empty()) {
        try {
            collector.collect(node);
        } catch (const std::exception & error) {  // the frames between here and add() are not ours to unwind
            collector.problem_ = error.what();
        }
    }
    return ask ? collector.wanted(node) : collector.problem_.empty();
}

bool ImatrixCollector::wanted(const ggml_tensor * node) const {
    if ((node->op != GGML_OP_MUL_MAT && node->op != GGML_OP_MUL_MAT_ID) || node->src[1]->type != GGML_TYPE_F32) {
        return false;
    }
    const std::string name = ggml_get_name(node->src[0]);
    const bool is_output = name == "output.weight" || name == "token_embd.weight";
    return ends_with(name, ".weight") && (starts_with(name, "blk.") || (process_output_ && is_output));
}

void ImatrixCollector::collect(const ggml_tensor * node) {
    const ggml_tensor * weight = node->src[0];
    const ggml_tensor * input = node->src[1];  // ne = [n_in, n_tokens, ...], or [n_in, n_used or 1, n_tokens]
    const std::string name = ggml_get_name(weight);
    const int64_t n_mat = weight->ne[2] * weight->ne[3];
    ImatrixEntry & entry = entries_[name];
    if (entry.sums.empty()) {
        entry.n_in = weight->ne[0];
        entry.sums.assign(static_cast<size_t>(entry.n_in * n_mat), 0.0);
        entry.counts.assign(static_cast<size_t>(n_mat), 0);
    }
    copy_to_host(input, inputs_);
    if (node->op == GGML_OP_MUL_MAT_ID) {
        collect_experts(node, entry);
    } else {
        for (int64_t i3 = 0; i3 < input->ne[3]; ++i3) {
            for (int64_t i2 = 0; i2 < input->ne[2]; ++i2) {
                // ggml_mul_mat repeats the matrices over the input's outer dimensions
                const int64_t i_mat =
                    i3 / (input->ne[3] / weight->ne[3]) * weight->ne[2] + i2 / (input->ne[2] / weight->ne[2]);
                for (int64_t i1 = 0; i1 < input->ne[1]; ++i1) {
                    const uint8_t * row = inputs_.data() + i1 * input->nb[1] + i2 * input->nb[2] + i3 * input->nb[3];
                    add_squares(reinterpret_cast<const float *>(row), entry.n_in,
                                entry.sums.data() + i_mat * entry.n_in);
                }
                entry.counts[static_cast<size_t>(i_mat)] += input->ne[1];
            }
        }
    }
    for (const double sum : entry.sums) {
        if (!std::isfinite(sum)) {
            throw Error(model_.path + ": an input of " + name +
                        " is not a finite number: the model can't compute this text");
        }
    }
}

void ImatrixCollector::collect_experts(const ggml_tensor * node, ImatrixEntry & entry) {
    const ggml_tensor * input = node->src[1];  // ne = [n_in, n_used or 1, n_tokens]
    const ggml_tensor * ids = node->src[2];    // I32, ne = [n_used, n_tokens], rows with gaps
    copy_to_host(ids, ids_);
    for (int64_t token = 0; token < ids->ne[1]; ++token) {
        for (int64_t used = 0; used < ids->ne[0]; ++used) {
            int32_t expert;
            std::memcpy(&expert, ids_.data() + token * ids->nb[1] + used * ids->nb[0], sizeof(expert));
            if (expert < 0 || static_cast<size_t>(expert) >= entry.counts.size()) {
                continue;
            }
            const uint8_t * row = inputs_.data() + (used % input->ne[1]) * input->nb[1] + token * input->nb[2];
            add_squares(reinterpret_cast<const float *>(row), entry.n_in, entry.sums.data() + expert * entry.n_in);
            ++entry.counts[static_cast<size_t>(expert)];
        }
    }
}

}  // namespace ggtune
