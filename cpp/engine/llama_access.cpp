#include "engine/llama_access.h"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <unordered_set>

#include "base/abort_guard.h"
#include "base/error.h"
#include "engine/cache_bypass.h"
#include "engine/devices.h"
#include "files/llama_log.h"
#include "ggml-impl.h"
#include "llama-adapter.h"
#include "llama-batch.h"
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"
#include "llama-memory.h"
#include "llama-model.h"
#include "llama.h"

namespace ggtune {

std::vector<std::pair<std::string, ggml_tensor *>> model_tensors(const llama_model & model) {
    return model.tensors_by_name;
}

std::string model_architecture(const llama_model & model) {
    return llm_arch_name(model.arch);
}

Error untrainable(const std::string & architecture, const std::string & reason) {
    return Error("this model of the architecture " + architecture + " can't be trained: " + reason +
                 " (docs/architectures.md lists those that can)");
}

void LoraDeleter::operator()(llama_adapter_lora * lora) const {
    llama_adapter_lora_free(lora);
}

LoraHandle make_lora(llama_model & model, float alpha, const std::vector<LoraWeights> & weights) {
    LoraHandle lora(new llama_adapter_lora(&model));
    lora->alpha = alpha;
    for (const LoraWeights & pair : weights) {
        lora->ab_map[pair.weight_name] = llama_adapter_lora_weight(pair.a, pair.b);
    }
    model.loras.insert(lora.get());
    return lora;
}

void remove_from_lora(llama_adapter_lora & lora, const std::vector<std::string> & weight_names) {
    for (const std::string & name : weight_names) {
        lora.ab_map.erase(name);
    }
}

namespace {

// What only the graph tells: ops that would write where they must not, or never end. "" where there is none.
std::string problem_of_nodes(const llama_model & model, ggml_cgraph * graph) {
    const std::string advice = "): convert the model again";
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        const ggml_tensor * node = ggml_graph_node(graph, i);
        constexpr int kNDims = 1;  // its place among the op's parameters
        if (node->op == GGML_OP_ROPE && ggml_get_op_params_i32(node, kNDims) <= 0) {
            return "RoPE can't rotate 0 of the " + std::to_string(node->ne[0]) + " dimensions of a head (" +
                   model_architecture(model) + ".rope.dimension_count" + advice;
        }
        constexpr int kWkvStep = 64;  // ggml's vectorized loops go through a head in steps of it
        if ((node->op == GGML_OP_RWKV_WKV6 || node->op == GGML_OP_RWKV_WKV7) && node->src[1]->ne[0] % kWkvStep != 0) {
            return "llama.cpp can compute with heads of a multiple of 64 values alone, not of " +
                   std::to_string(node->src[1]->ne[0]) + " (" + model_architecture(model) + ".wkv.head_size" + advice;
        }
    }
    return "";
}

class LlamaForwardGraph final : public ForwardGraph {
  public:
    LlamaForwardGraph(std::unique_ptr<llama_memory_i> memory, uint32_t n_pos_per_embd, int64_t max_nodes)
        : memory(std::move(memory)), allocr(n_pos_per_embd), result(max_nodes) {}

    const std::vector<ggml_tensor *> & nodes() const override { return list; }
    ggml_tensor * hidden() const override { return result.t_embd; }
    ggml_tensor * logits() const override { return result.t_logits; }

    bool is_cache_without_memory(const ggml_tensor * leaf) const override {
        const std::string name = leaf->name, prefix = "cache_";
        return leaf->op == GGML_OP_NONE && leaf->data == nullptr && leaf->buffer != nullptr &&
               name.compare(0, prefix.size(), prefix) == 0;
    }

    size_t n_state_bytes() const override {
        size_t n_bytes = 0;
        if (const llama_memory_i * states = recurrent_memory()) {
            for (const auto & [type, n] : states->memory_breakdown()) {
                n_bytes += n;
            }
        }
        return n_bytes;
    }

    void set_inputs() override {
        const llama_ubatch * rows = &memory_context->get_ubatch();
        // Attention's inputs first: those that nothing reads, masks of T x T among them, are left out as long as they
        // have no memory. Those of hybrid models would fill all of their tensors.
        std::vector<llm_graph_input_i *> others;
        std::unordered_set<const ggml_tensor *> masks;
        for (const auto & input : result.inputs) {
            if (const auto * hybrid = dynamic_cast<const llm_graph_input_mem_hybrid *>(input.get())) {
                set_attention(*hybrid->inp_attn, rows, masks);
                set_states(*hybrid->inp_rs, rows);
            } else if (const auto * mixed = dynamic_cast<const llm_graph_input_mem_hybrid_iswa *>(input.get())) {
                set_attention(*mixed->inp_attn, rows, masks);
                set_states(*mixed->inp_rs, rows);
            } else if (auto * windows = dynamic_cast<llm_graph_input_attn_kv_iswa *>(input.get())) {
                set_attention(*windows, rows, masks);
            } else if (auto * plain = dynamic_cast<llm_graph_input_attn_kv *>(input.get());
                       plain != nullptr && dynamic_cast<llm_graph_input_attn_kv_msa *>(plain) == nullptr) {
                set_attention(*plain, rows, masks);
            } else {
                others.push_back(input.get());
            }
        }
        give_memory_to_unread_inputs(masks);
        for (llm_graph_input_i * input : others) {
            input->set_input(rows);
        }
    }

    bool visible_keys(const ggml_tensor * mask, std::vector<int32_t> & first,
                      std::vector<int32_t> & end) const override {
        return std::any_of(result.inputs.begin(), result.inputs.end(), [&](const auto & input) {
            const llm_graph_input_i * any = input.get();
            if (const auto * hybrid = dynamic_cast<const llm_graph_input_mem_hybrid *>(any)) {
                return keys_of_input(*hybrid->inp_attn, mask, first, end);
            }
            if (const auto * hybrid = dynamic_cast<const llm_graph_input_mem_hybrid_iswa *>(any)) {
                return keys_of_input(*hybrid->inp_attn, mask, first, end);
            }
            if (const auto * plain = dynamic_cast<const llm_graph_input_attn_kv *>(any)) {
                return keys_of_input(*plain, mask, first, end);
            }
            const auto * mixed = dynamic_cast<const llm_graph_input_attn_kv_iswa *>(any);
            return mixed != nullptr && keys_of_input(*mixed, mask, first, end);
        });
    }

    std::unique_ptr<llama_memory_i> memory;  // bookkeeping of sequences and positions, zeros as recurrent states
    llama_batch_allocr allocr;
    llama_memory_context_ptr memory_context;
    llm_graph_result result;
    std::vector<ggml_tensor *> list;  // of nodes

  private:
    const llama_memory_i * recurrent_memory() const {
        if (const auto * hybrid = dynamic_cast<const llama_memory_hybrid *>(memory.get())) {
            return hybrid->get_mem_recr();
        }
        if (const auto * hybrid = dynamic_cast<const llama_memory_hybrid_iswa *>(memory.get())) {
            return hybrid->get_mem_recr();
        }
        return dynamic_cast<const llama_memory_recurrent *>(memory.get());
    }

    static void set_states(llm_graph_input_rs & states, const llama_ubatch * rows) {
        if (states.s_copy->buffer != nullptr) {
            states.set_input(rows);
        }
    }

    static void set_attention(llm_graph_input_attn_kv & input, const llama_ubatch * rows,
                              std::unordered_set<const ggml_tensor *> & masks) {
        input.set_input(rows);
        masks.insert(input.self_kq_mask);
    }

    static void set_attention(llm_graph_input_attn_kv_iswa & input, const llama_ubatch * rows,
                              std::unordered_set<const ggml_tensor *> & masks) {
        input.set_input(rows);
        masks.insert({input.self_kq_mask, input.self_kq_mask_swa});
    }

    // llama.cpp writes to all other inputs of its graph whether or not something reads them.
    void give_memory_to_unread_inputs(const std::unordered_set<const ggml_tensor *> & masks) {
        std::vector<ggml_tensor *> unread;
        size_t n_bytes = 0;
        ggml_backend_buffer_type_t type = ggml_backend_cpu_buffer_type();
        for (ggml_tensor * t = ggml_get_first_tensor(result.get_ctx()); t != nullptr;
             t = ggml_get_next_tensor(result.get_ctx(), t)) {
            if ((t->flags & GGML_TENSOR_FLAG_INPUT) != 0 && t->buffer == nullptr && t->view_src == nullptr &&
                masks.count(t) == 0) {
                unread.push_back(t);
                n_bytes += GGML_PAD(ggml_nbytes(t), ggml_backend_buft_get_alignment(type));
            }
        }
        unread_inputs_.reset(ggml_backend_buft_alloc_buffer(type, n_bytes));
        if (!unread_inputs_) {
            throw Error("not enough memory for the inputs of a micro-batch");
        }
        ggml_tallocr places = ggml_tallocr_new(unread_inputs_.get());
        for (ggml_tensor * t : unread) {
            ggml_tallocr_alloc(&places, t);
        }
    }

    bool keys_of_input(const llm_graph_input_attn_kv & input, const ggml_tensor * mask, std::vector<int32_t> & first,
                       std::vector<int32_t> & end) const {
        return mask == input.get_kq_mask() &&
               keys_in_window(input.hparams, input.cparams, input.hparams.n_swa, input.hparams.swa_type, first, end);
    }

    bool keys_of_input(const llm_graph_input_attn_kv_iswa & input, const ggml_tensor * mask,
                       std::vector<int32_t> & first, std::vector<int32_t> & end) const {
        if (mask == input.get_kq_mask()) {
            return keys_in_window(input.hparams, input.cparams, 0, LLAMA_SWA_TYPE_NONE, first, end);
        }
        return mask == input.get_kq_mask_swa() &&
               keys_in_window(input.hparams, input.cparams, input.hparams.n_swa, input.hparams.swa_type, first, end);
    }

    bool keys_in_window(const llama_hparams & hparams, const llama_cparams & cparams, uint32_t window,
                        llama_swa_type window_type, std::vector<int32_t> & first, std::vector<int32_t> & end) const {
        if (!cparams.causal_attn || hparams.use_alibi) {
            return false;
        }
        const llama_ubatch & rows = memory_context->get_ubatch();
        first.resize(rows.n_tokens);
        end.resize(rows.n_tokens);
        for (uint32_t t = 0; t < rows.n_tokens; t++) {
            const bool starts = t == 0 || rows.seq_id[t][0] != rows.seq_id[t - 1][0];
            int32_t key = starts ? t : first[t - 1];  // windows only move forward
            while (llama_hparams::is_masked_swa(window, window_type, rows.pos[key], rows.pos[t])) {
                key++;
            }
            first[t] = key;
            end[t] = t + 1;
        }
        return true;
    }

    ggml_backend_buffer_ptr unread_inputs_;
};

// Sets a value for as long as it lives.
template <typename T>
class Setting {
  public:
    Setting(T & variable, T value) : variable_(variable), before_(variable) { variable_ = value; }
    ~Setting() { variable_ = before_; }
    Setting(const Setting &) = delete;
    Setting & operator=(const Setting &) = delete;

  private:
    T & variable_;
    const T before_;
};

}  // namespace

struct ForwardGraphBuilder::Impl {
    llama_model & model;
    llama_context * context = nullptr;
    llama_cparams cparams;
    llama_adapter_loras loras;
    llama_adapter_cvec control_vector;  // graphs ask for one; this one is empty
    llama_cross cross;
    ggml_backend_t backend_cpu = nullptr;
    bool recurrent = false;  // all layers, or some of them
    int64_t max_nodes;

    explicit Impl(llama_model & model) : model(model) {}
    ~Impl() {
        if (context != nullptr) {
            llama_free(context);
        }
    }

    std::unique_ptr<llama_memory_i> make_memory(uint32_t n_tokens, uint32_t n_sequences) const {
        llama_cparams of_memory = cparams;
        of_memory.n_ctx = n_tokens;
        of_memory.n_ctx_seq = n_tokens;
        of_memory.n_ubatch = n_tokens;
        of_memory.n_seq_max = n_sequences;
        of_memory.n_rs_seq = 0;
        of_memory.flash_attn = true;  // values are then stored by rows, as keys are
        of_memory.offload_kqv = false;
        llama_memory_params params = {};
        params.type_k = GGML_TYPE_F32;  // quantized K or V would add rotation nodes
        params.type_v = GGML_TYPE_F32;
        params.swa_full = true;
        params.ctx_type = cparams.ctx_type;
        const Setting without_keys_and_values(model.hparams.no_alloc, true);
        return std::unique_ptr<llama_memory_i>(model.create_memory(params, of_memory));
    }

    // The sequences of rows, numbered from 0 in their order.
    static std::vector<int32_t> numbered_sequences(const GraphBatch & batch) {
        std::vector<int32_t> numbered(batch.n_tokens);
        for (uint32_t i = 1; i < batch.n_tokens; i++) {
            numbered[i] = numbered[i - 1] + (batch.sequences[i] != batch.sequences[i - 1] ? 1 : 0);
        }
        return numbered;
    }

    static void fill(llama_batch_ext & rows, const GraphBatch & batch, const std::vector<int32_t> & sequences) {
        for (uint32_t i = 0; i < batch.n_tokens; i++) {
            if (rows.add_token(sequences[i]) < 0 || !rows.set_token_id(i, batch.tokens[i])) {
                throw Error("row " + std::to_string(i) + " of a micro-batch: token " + std::to_string(batch.tokens[i]) +
                            " or sequence " + std::to_string(batch.sequences[i]) + " is out of range");
            }
            rows.set_token_pos(i, &batch.positions[i]);
            rows.set_output(i, batch.outputs[i] != 0);
        }
    }
};

ForwardGraphBuilder::ForwardGraphBuilder(llama_model & model, uint32_t context, llama_adapter_lora * lora)
    : impl_(std::make_unique<Impl>(model)) {
    const std::string arch = model_architecture(model);
    if (llama_model_has_encoder(&model)) {
        throw untrainable(arch, "it has an encoder, only decoders can");
    }
    // Wanted are only llama.cpp's derived parameters (RoPE scaling and the like) and its scheduler: as small as it can
    // be.
    take_llama_log();
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 256;
    params.n_batch = 1;
    params.n_ubatch = 1;
    params.n_seq_max = 1;
    params.n_threads = 1;
    params.n_threads_batch = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.offload_kqv = false;
    params.no_perf = true;
    {
        const AbortAsException guard;
        try {
            impl_->context = llama_init_from_model(&model, params);
        } catch (const std::exception & e) {
            throw Error(reason_of_no_graph(model, reason(e)));
        }
    }
    if (impl_->context == nullptr) {
        throw Error(reason_of_no_graph(model, take_llama_log()));
    }
    if (llama_get_memory(impl_->context) == nullptr) {
        throw untrainable(arch, "it does not predict a token from those before it");
    }
    impl_->recurrent = llama_model_is_recurrent(&model) || llama_model_is_hybrid(&model);
    impl_->cparams = impl_->context->get_cparams();
    // graphs place some of their nodes in a scheduler, which is asked for nothing here
    for (int i = 0; i < ggml_backend_sched_get_n_backends(impl_->context->get_sched()); i++) {
        impl_->backend_cpu = ggml_backend_sched_get_backend(impl_->context->get_sched(), i);  // the last is the CPU's
    }
    impl_->cparams.n_ctx = context;
    impl_->cparams.n_ctx_seq = context;
    impl_->cparams.n_seq_max = LLAMA_MAX_SEQ;
    impl_->cparams.flash_attn = false;
    impl_->cparams.auto_fa = false;
    impl_->cparams.kv_unified = true;
    impl_->cparams.embeddings_layer_inp.assign(model.hparams.n_layer_all, false);
    impl_->max_nodes = 1024 + 32 * (int64_t)model.tensors_by_name.size();
    if (lora != nullptr) {
        impl_->loras[lora] = 1.0f;
        impl_->max_nodes += lora->get_n_nodes();
    }
}

ForwardGraphBuilder::~ForwardGraphBuilder() = default;

bool ForwardGraphBuilder::needs_equal_lengths() const {
    return impl_->recurrent;
}

size_t ForwardGraphBuilder::most_sequences() const {
    // llama.cpp's graph of this one mixes the sequences of a batch up
    return impl_->model.arch == LLM_ARCH_PLAMO2 ? 1 : LLAMA_MAX_SEQ;
}

std::map<ggml_backend_dev_t, uint64_t> ForwardGraphBuilder::n_context_bytes() const {
    std::map<ggml_backend_dev_t, uint64_t> n_bytes;
    for (const auto & [type, of_type] : impl_->context->memory_breakdown()) {
        n_bytes[device_of(type)] += of_type.context + of_type.compute;
    }
    return n_bytes;
}

std::unique_ptr<ForwardGraph> ForwardGraphBuilder::build(const GraphBatch & batch) const {
    const llama_model & model = impl_->model;
    const std::string arch = model_architecture(model);
    const uint32_t n_tokens = batch.n_tokens;
    // llama.cpp asserts on architectures that it can't build a training graph for.
    const AbortAsException guard;
    try {
        llama_cparams cparams = impl_->cparams;
        cparams.n_batch = n_tokens;
        cparams.n_ubatch = n_tokens;
        cparams.n_outputs_max = n_tokens;
        cparams.n_outputs_max_per_seq = n_tokens;

        const std::vector<int32_t> sequences = Impl::numbered_sequences(batch);
        auto built = std::make_unique<LlamaForwardGraph>(impl_->make_memory(n_tokens, sequences.back() + 1),
                                                         model.hparams.n_pos_per_embd(), impl_->max_nodes);
        llama_batch_ext rows(n_tokens, llama_batch_ext_select_n_embd_inp(cparams.ctx_type, model.arch, model.hparams),
                             model.hparams.n_embd_inp_enc(), LLAMA_MAX_SEQ, built->memory.get(), model.vocab.n_tokens(),
                             model.hparams.n_pos_per_embd());
        Impl::fill(rows, batch, sequences);
        if (!built->allocr.init(rows, model.vocab, false)) {
            throw Error("llama.cpp refused a micro-batch: positions of each sequence must run from 0 without gaps");
        }
        built->memory_context = built->memory->init_batch(built->allocr, n_tokens, false);
        if (!built->memory_context || built->memory_context->get_status() != LLAMA_MEMORY_STATUS_SUCCESS ||
            !built->memory_context->apply()) {
            throw Error("llama.cpp could not prepare a micro-batch of " + std::to_string(n_tokens) + " tokens");
        }
        if (built->memory_context->get_ubatch().n_tokens != n_tokens) {
            throw Error("the sequences of a micro-batch are of unequal length, which layers of the architecture " +
                        arch + " can't go through side by side");
        }
        built->result.reset();

        const llm_graph_cb name_tensor = [](const llama_ubatch &, ggml_tensor * tensor, const char * name, int il) {
            if (il >= 0) {
                ggml_format_name(tensor, "%s-%d", name, il);
            } else {
                ggml_set_name(tensor, name);
            }
        };
        llm_graph_params params;
        params.arch = model.arch;
        params.hparams = model.hparams;
        params.cparams = cparams;
        params.ubatch = built->memory_context->get_ubatch();
        params.gtype = LLM_GRAPH_TYPE_DEFAULT;
        params.sched = impl_->context->get_sched();
        params.backend_cpu = impl_->backend_cpu;
        params.cvec = &impl_->control_vector;
        params.loras = &impl_->loras;
        params.mctx = built->memory_context.get();
        params.cross = &impl_->cross;
        params.prec_policy = &model.prec_policy;
        params.n_outputs = std::count_if(batch.outputs, batch.outputs + n_tokens, [](uint8_t is) { return is != 0; });
        params.cb = name_tensor;
        params.res = &built->result;
        model.build_graph(params);
        const std::string problem = problem_of_nodes(model, built->result.get_gf());
        if (!problem.empty()) {
            throw Error(problem);
        }
        if (built->logits() == nullptr || built->hidden() == nullptr) {
            throw untrainable(arch, "it gives no logits");
        }
        built->list = without_caches(built->result.get_gf(), built->result.get_ctx());
        return built;
    } catch (const Error &) {
        throw;
    } catch (const std::exception & e) {
        throw untrainable(arch, "llama.cpp can't build its graph: " + reason(e));
    }
}

namespace {

// Ops that take a weight of any type that has a row dequantizer, or only move it.
bool takes_any_type(ggml_op op) {
    switch (op) {
        case GGML_OP_NONE:
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
        case GGML_OP_DUP:
        case GGML_OP_CPY:
        case GGML_OP_CONT:
        case GGML_OP_GET_ROWS:
        case GGML_OP_MUL_MAT:
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_IM2COL:
            return true;
        default:
            return false;
    }
}

}  // namespace

std::string reason_of_no_graph(const llama_model & model, const std::string & said) {
    const bool no_gating =
        model.hparams.n_expert > 0 && model.hparams.expert_gating_func == LLAMA_EXPERT_GATING_FUNC_TYPE_NONE;
    const std::string prefix = "failed to initialize the context: ";
    const size_t at = said.rfind(prefix);
    const std::string short_form = at == std::string::npos ? said : said.substr(at + prefix.size());
    return "llama.cpp can't compute with this model" + (short_form.empty() ? "" : " (" + short_form + ")") + ": " +
           (no_gating ? "the key " + model_architecture(model) + ".expert_gating_func is missing"
                      : "a key is missing or wrong") +
           ". Convert the model again, or get another file of it";
}

ggml_backend_t cpu_backend(const llama_context & context) {
    ggml_backend_sched_t scheduler = context.get_sched();
    return ggml_backend_sched_get_backend(scheduler, ggml_backend_sched_get_n_backends(scheduler) - 1);
}

ggml_cgraph * reserved_graph(llama_context & context) {
    return context.get_gf_res_reserve()->get_gf();
}

std::string problem_of_graph(llama_context & context) {
    context.sched_reserve();
    std::unordered_set<const ggml_tensor *> weights;
    for (const auto & [name, tensor] : context.get_model().tensors_by_name) {
        weights.insert(tensor);
    }
    ggml_cgraph * graph = reserved_graph(context);
    const std::string problem = problem_of_nodes(context.get_model(), graph);
    if (!problem.empty()) {
        return problem;
    }
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        const ggml_tensor * node = ggml_graph_node(graph, i);
        for (const ggml_tensor * src : node->src) {
            const ggml_tensor * whole = src != nullptr && src->view_src != nullptr ? src->view_src : src;
            if (whole != nullptr && weights.count(whole) != 0 && whole->type != GGML_TYPE_F32 &&
                !takes_any_type(node->op)) {
                return "tensor " + std::string(whole->name) + " is of type " + ggml_type_name(whole->type) +
                       "; llama.cpp computes with it in f32 only: convert the model again";
            }
        }
    }
    return "";
}

ggml_tensor * model_output(const llama_model & model) {
    return model.output;
}

std::vector<ggml_tensor *> leafs_of(const ggml_cgraph * graph) {
    return {graph->leafs, graph->leafs + graph->n_leafs};
}

ggml_cgraph * graph_of(ggml_context * ctx, const ggml_cgraph * with_leafs, const std::vector<ggml_tensor *> & nodes) {
    const size_t size = std::max<size_t>(nodes.size(), with_leafs->n_leafs) + 1;
    ggml_cgraph * graph = ggml_new_graph_custom(ctx, size, false);
    std::copy(nodes.begin(), nodes.end(), graph->nodes);
    graph->n_nodes = static_cast<int>(nodes.size());
    std::copy_n(with_leafs->leafs, with_leafs->n_leafs, graph->leafs);
    graph->n_leafs = with_leafs->n_leafs;
    return graph;
}

ggml_status compute_slice(ggml_backend_t backend, ggml_cgraph * graph, int begin, int end) {
    ggml_cgraph slice = ggml_graph_view(graph, begin, end);
    return ggml_backend_graph_compute(backend, &slice);
}

}  // namespace ggtune
