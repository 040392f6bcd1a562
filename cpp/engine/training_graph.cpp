#include "engine/training_graph.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <iterator>
#include <unordered_set>

#include "base/error.h"
#include "engine/calibrate.h"
#include "engine/devices.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/ggml/ggml_ops.h"

namespace ggtune {

namespace {

// Logits and their gradient exist for one chunk of rows at a time: at most so many floats, and enough rows for the
// product with the output matrix to run at matrix speed.
constexpr int64_t kMaxChunkLogits = 8 << 20;
constexpr int64_t kMinChunkRows = 64;

// Nodes of the whole graph, at most. n_chunks: of the head, which is made for each.
int64_t max_nodes(const std::vector<ggml_tensor *> & forward, int64_t n_chunks, bool with_ggml_ops) {
    constexpr int64_t kPerForwardNode = 8, kPerChunk = 32, kOthers = 1024;
    constexpr int64_t kPerPlainChunk = 256;  // without what a product gives rise to
    int64_t sum = kPerForwardNode * forward.size() + kPerChunk * n_chunks + kOthers;
    if (with_ggml_ops) {
        int64_t most = 0;
        for (const ggml_tensor * node : forward) {
            const int64_t n = GgmlOps::max_nodes(node);
            sum += n;
            most = std::max(most, n);
        }
        sum += n_chunks * (most + kPerPlainChunk);
    }
    return sum;
}

bool is_view_op(const ggml_tensor * node) {
    return node->view_src != nullptr;
}

// llama.cpp's in-place ops: views that compute. (Our own, a custom node that adds a LoRA product, writes over a product
// that nothing else reads.)
bool computes_in_place(const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
        case GGML_OP_CUSTOM:
            return false;
        default:
            return is_view_op(node);
    }
}

// 12 of "ffn_out-12"; -1 of all others, also of views, which llama.cpp gives names like "l_out-12 (view)".
int layer_of_name(const ggml_tensor * node) {
    const std::string name = node->name;
    const size_t dash = name.rfind('-');
    constexpr size_t kMaxDigits = 6;
    const size_t n_digits = dash == std::string::npos ? 0 : name.size() - dash - 1;
    const bool is_number = n_digits > 0 && n_digits <= kMaxDigits &&
                           std::all_of(name.end() - n_digits, name.end(), [](char c) { return c >= '0' && c <= '9'; });
    return is_number ? std::stoi(name.substr(dash + 1)) : -1;
}

// Inputs that nothing reads have no memory.
void set_if_read(ggml_tensor * input, const void * values) {
    if (input->buffer != nullptr) {
        ggml_backend_tensor_set(input, values, 0, ggml_nbytes(input));
    }
}

std::string joined(const std::vector<std::string> & items) {
    std::string text;
    constexpr size_t kMost = 12;
    for (size_t i = 0; i < items.size() && i < kMost; i++) {
        text += (i ? ", " : "") + items[i];
    }
    return items.size() > kMost ? text + ", ..." : text;
}

// Of lines "OP (tensor NAME)" the first of each op: mixtures of experts have dozens.
std::vector<std::string> first_of_each_op(const std::vector<std::string> & lines) {
    std::vector<std::string> first;
    std::unordered_set<std::string> seen;
    for (const std::string & line : lines) {
        if (seen.insert(line.substr(0, line.find(' '))).second) {
            first.push_back(line);
        }
    }
    return first;
}

// values of all rows, of the chunks of a tensor each
template <typename T>
std::vector<T> of_chunks(const std::vector<ggml_tensor *> & chunks, size_t n_rows) {
    std::vector<T> values(n_rows);
    size_t row = 0;
    for (const ggml_tensor * chunk : chunks) {
        ggml_backend_tensor_get(chunk, values.data() + row, 0, ggml_nbytes(chunk));
        row += ggml_nelements(chunk);
    }
    return values;
}

}  // namespace

void check_rows(const MicroBatch & batch, int64_t context, int32_t n_vocab) {
    const auto row = [](int64_t i) { return "row " + std::to_string(i) + " of a micro-batch: "; };
    if (batch.n_tokens < 1) {
        throw Error("a micro-batch needs at least one token");
    }
    std::vector<bool> seen(kMaxSequences, false);
    for (int64_t i = 0; i < batch.n_tokens; i++) {
        const int32_t sequence = batch.sequences[i];
        if (sequence < 0 || sequence >= kMaxSequences) {
            throw Error(row(i) + "sequence " + std::to_string(sequence) + " is not in 0 to 255");
        }
        const bool starts = i == 0 || batch.sequences[i - 1] != sequence;
        if (starts && seen[sequence]) {
            throw Error(row(i) + "sequence " + std::to_string(sequence) + " is in two pieces");
        }
        seen[sequence] = true;
        const int32_t expected = starts ? 0 : batch.positions[i - 1] + 1;
        if (batch.positions[i] != expected) {
            throw Error(row(i) + "position " + std::to_string(batch.positions[i]) + " where " +
                        std::to_string(expected) + " was expected");
        }
        if (batch.positions[i] >= context) {
            throw Error(row(i) + "the sequence is longer than the context of " + std::to_string(context) + " tokens");
        }
        if (batch.tokens[i] < 0 || batch.tokens[i] >= n_vocab) {
            throw Error(row(i) + "token " + std::to_string(batch.tokens[i]) + " is not in the vocabulary of " +
                        std::to_string(n_vocab));
        }
        if (!std::isfinite(batch.weights[i])) {
            throw Error(row(i) + "the weight is not finite");
        }
        if (batch.weights[i] != 0 && (batch.targets[i] < 0 || batch.targets[i] >= n_vocab)) {
            throw Error(row(i) + "target " + std::to_string(batch.targets[i]) + " is not in the vocabulary of " +
                        std::to_string(n_vocab));
        }
    }
}

TrainingGraph::TrainingGraph(const ForwardGraphBuilder & builder, const Adapter & adapter,
                             const std::unordered_map<ggml_tensor *, ggml_tensor *> & accumulators,
                             const MicroBatch & batch, const GraphOptions & options) {
    const std::string arch = adapter.model().architecture();
    std::vector<uint8_t> outputs(batch.n_tokens);
    std::transform(batch.weights, batch.weights + batch.n_tokens, outputs.begin(), [](float w) { return w != 0.0f; });
    n_layers_ = adapter.model().n_layer();
    placement_ = options.placement;
    loss_scale_ = options.loss_scale;
    forward_ = builder.build({batch.n_tokens, batch.tokens, batch.positions, batch.sequences, outputs.data()});
    hidden_ = forward_->hidden();
    logits_ = forward_->logits();
    const int64_t n_outputs = logits_->ne[1];
    // some architectures compute the logits of all rows, whichever are asked for
    const bool all_rows = n_outputs == batch.n_tokens;
    for (int64_t i = 0; i < batch.n_tokens; i++) {
        if (all_rows || outputs[i] != 0) {
            target_values_.push_back(outputs[i] != 0 ? batch.targets[i] : 0);
            weight_values_.push_back(batch.weights[i]);
        }
    }
    if (static_cast<int64_t>(target_values_.size()) != n_outputs || logits_->type != GGML_TYPE_F32) {
        throw untrainable(arch, "it computes logits of other rows than those asked for");
    }

    const int64_t n_chunks = 2 + n_outputs / kMinChunkRows;
    const bool with_ggml_ops = options.ops == OpsKind::ggml || !options.placement.is_cpu_alone();
    const int64_t n_nodes = max_nodes(forward_->nodes(), n_chunks, with_ggml_ops);
    const ggml_init_params params = {n_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_nodes, false),
                                     nullptr, true};
    ctx_.reset(ggml_init(params));
    choose_ops(options);
    gf_ = ggml_new_graph_custom(ctx_.get(), n_nodes, false);
    targets_ = ggml_new_tensor_1d(ctx_.get(), GGML_TYPE_I32, n_outputs);
    weights_ = ggml_new_tensor_1d(ctx_.get(), GGML_TYPE_F32, n_outputs);
    ggml_set_input(targets_);
    ggml_set_input(weights_);

    if (!collect_forward_nodes()) {
        throw untrainable(arch, "its logits are not computed from its last hidden state");
    }
    if (const ggml_tensor * cache = cache_that_is_read()) {
        throw untrainable(arch, "its layers read " + std::string(cache->name) +
                                    " in another way than row by row as the micro-batch has written it");
    }
    assign_layers(options);
    if (options.noise.alpha != 0) {
        add_noise(options.noise, batch);
    }
    Rewriter rewriter(*implementations_, *forward_, adapter, options.dropout, options.precision, options.in_place_of);
    rewriter.rewrite(body_);
    auto * on_device = placement_.is_cpu_alone() ? nullptr : dynamic_cast<GgmlOps *>(&implementations_->otherwise);
    if (on_device != nullptr) {
        on_device->leaves_products = true;  // until the head has been cut into chunks of rows
    }
    rewriter.rewrite(head_);
    if (on_device != nullptr) {
        on_device->leaves_products = false;
    }
    hidden_ = rewriter.current(hidden_);
    logits_ = rewriter.current(logits_);
    key_ranges_ = rewriter.key_ranges();

    if (options.hidden_alone) {
        hidden_ = implementations_->otherwise.contiguous(hidden_);
        ggml_set_output(hidden_);
        expand(hidden_, true);
        check_devices();
        return;
    }
    if (!options.gradients) {
        with_predictions_ = options.predictions;
        build_head(nullptr);
        check_devices();
        return;
    }
    Autodiff ad(*implementations_);
    for (const auto & [leaf, accumulator] : accumulators) {
        ad.set_trainable(leaf, accumulator);
    }
    ad.trace(body_);
    ad.trace(head_);
    if (!ad.needs_gradient(hidden_)) {
        throw untrainable(arch, "llama.cpp does not apply adapters to its linears");
    }
    std::vector<ggml_tensor *> all = body_;
    all.insert(all.end(), head_.begin(), head_.end());
    const std::vector<std::string> missing = Autodiff::missing_rules(ad.gradient_path(all));
    if (!missing.empty()) {
        throw untrainable(arch, "there is no gradient rule for " + joined(first_of_each_op(missing)));
    }
    if (options.teacher != nullptr) {
        teacher_ = ggml_new_tensor_2d(ctx_.get(), GGML_TYPE_F32, hidden_->ne[0], hidden_->ne[1]);
        ggml_set_input(teacher_);
        teacher_values_ = options.teacher;
        if (teacher_values_->size() != static_cast<size_t>(ggml_nelements(teacher_))) {
            throw Error("the teacher's hidden states are of other rows than those of this micro-batch");
        }
    }
    build_head(&ad);
    build_backward(ad, options.recompute_layers);
    check_devices();
    for (const AdapterPair & pair : adapter.pairs()) {
        if (!ad.has_result(pair.a) || !ad.has_result(pair.b)) {
            unreached_.push_back(pair.linear.name);
        }
    }
}

void TrainingGraph::choose_ops(const GraphOptions & options) {
    if (options.ops == OpsKind::ggml) {
        makers_.push_back(std::make_unique<GgmlOps>(ctx_.get()));
    }
    for (ggml_backend_dev_t device : placement_.devices) {
        makers_.push_back(std::make_unique<GgmlOps>(ctx_.get(), traits_of(device, placement_.exact)));
    }
    if (options.ops == OpsKind::cpu || options.ops_layers.has_value()) {
        makers_.push_back(std::make_unique<CpuOps>(ctx_.get(), options.precision == Precision::automatic));
    }
    Ops & of_head = placement_.is_cpu_alone() ? *makers_.back() : *makers_[placement_.layer_places[n_layers_]];
    implementations_ = std::make_unique<Implementations>(of_head, makers_.size() == 1);
    if (placement_.is_cpu_alone()) {
        return;
    }
    for (size_t place = 0; place < makers_.size(); place++) {
        places_[makers_[place].get()] = static_cast<int>(place);
    }
    place_of_ = [this](const ggml_tensor * node) { return places_.at(&implementations_->of(node)); };
}

// Nodes up to the end of a layer by the first of the makers; the last one's are all others.
void TrainingGraph::assign_layers(const GraphOptions & options) {
    if (!placement_.is_cpu_alone()) {
        place_layers();
        return;
    }
    if (makers_.size() == 1 || options.ops_layers == 0) {
        return;
    }
    const std::vector<size_t> ends = marked_layer_ends();
    if (static_cast<int>(ends.size()) < *options.ops_layers) {
        throw Error("the layers can't be shared out: this architecture's graph does not mark the end of layer " +
                    std::to_string(*options.ops_layers));
    }
    std::for_each(body_.begin(), body_.begin() + ends[*options.ops_layers - 1],
                  [&](const ggml_tensor * t) { implementations_->assign(t, *makers_.front()); });
}

// Each layer's nodes by the maker of its place. What comes before the first layer is its, what follows the last one
// (the final norm) the head's.
void TrainingGraph::place_layers() {
    const std::vector<size_t> ends = marked_layer_ends();
    const bool in_one_place =
        std::equal(placement_.layer_places.begin() + 1, placement_.layer_places.end(), placement_.layer_places.begin());
    if (static_cast<int>(ends.size()) < n_layers_ && !in_one_place) {
        throw Error("the layers can't be shared out among devices: this architecture's graph does not mark their ends");
    }
    const auto assign = [&] {
        size_t layer = 0;
        for (size_t i = 0; i < body_.size(); i++) {
            while (layer < ends.size() && i >= ends[layer]) {
                layer++;
            }
            const int of_layer = layer < ends.size() ? static_cast<int>(layer) : n_layers_;
            implementations_->assign(body_[i], *makers_[placement_.layer_places[of_layer]], of_layer);
        }
        for (const ggml_tensor * node : head_) {
            implementations_->assign(node, implementations_->otherwise, n_layers_);
        }
    };
    assign();
    for (const ggml_tensor * node : body_) {
        const auto * on_device = dynamic_cast<const GgmlOps *>(&implementations_->of(node));
        if (on_device != nullptr && !on_device->can_serve(node)) {
            send_back(node, implementations_->layer_of(node));
        }
    }
    if (!unsupported_.empty()) {
        assign();
    }
    place_weights();
    place_between_experts(ends);
}

// What its device can't compute makes the whole layer the CPU's: its parts would go to and fro.
void TrainingGraph::send_back(const ggml_tensor * node, int layer) {
    if (!placement_.falls_back) {
        throw Error("the device of layer " + std::to_string(layer) + " can't compute " + ggml_op_desc(node) +
                    " (tensor " + node->name + "): keep this layer on the CPU");
    }
    const bool is_known = std::any_of(unsupported_.begin(), unsupported_.end(),
                                      [&](const Unsupported & other) { return other.layer == layer; });
    if (!is_known) {
        unsupported_.push_back({layer, ggml_op_desc(node), node->name});
    }
    if (layer < n_layers_) {
        placement_.layer_places[layer] = placement_.cpu();
    }
}

// A product is computed where its matrix lies, whichever layer it is of.
void TrainingGraph::place_weights() {
    for (const std::vector<ggml_tensor *> * stretch : {&body_, &head_}) {
        for (const ggml_tensor * node : *stretch) {
            const ggml_tensor * weight = node->src[0];
            if (weight != nullptr && weight->view_src != nullptr) {
                weight = weight->view_src;
            }
            // (states that recurrent layers start from are copied)
            const bool reads_weight = weight != nullptr && weight->op == GGML_OP_NONE && weight->buffer != nullptr &&
                                      (node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_MUL_MAT_ID ||
                                       (node->op == GGML_OP_GET_ROWS && ggml_backend_buffer_get_usage(weight->buffer) ==
                                                                            GGML_BACKEND_BUFFER_USAGE_WEIGHTS));
            if (!reads_weight) {
                continue;
            }
            ggml_backend_dev_t device = device_of(weight);
            const auto found = std::find(placement_.devices.begin(), placement_.devices.end(), device);
            const auto place =
                static_cast<size_t>(found - placement_.devices.begin());  // the CPU's where there is none
            const int layer = implementations_->layer_of(node);
            implementations_->assign(node, *makers_[place], layer);
        }
    }
}

// Experts whose matrices lie in main memory: what is computed between their products is the CPU's, too, up to the sum
// of a token's experts, which has the fewest values to be moved.
void TrainingGraph::place_between_experts(const std::vector<size_t> & ends) {
    const Ops & cpu = *makers_.back();
    size_t begin = 0;
    for (size_t layer = 0; layer < ends.size(); begin = ends[layer++]) {
        if (placement_.layer_places[layer] == placement_.cpu()) {
            continue;
        }
        size_t last = begin;
        const std::string sum = "ffn_moe_out-" + std::to_string(layer);
        std::unordered_set<const ggml_tensor *> behind;  // an expert's product on the CPU
        for (size_t i = begin; i < ends[layer]; i++) {
            const ggml_tensor * node = body_[i];
            const bool is_product = node->op == GGML_OP_MUL_MAT_ID && &implementations_->of(node) == &cpu;
            const bool is_behind = std::any_of(std::begin(node->src), std::end(node->src),
                                               [&](const ggml_tensor * src) { return behind.count(src) != 0; });
            if (is_product || is_behind) {
                behind.insert(node);
            }
            if (is_product || (is_behind && node->name == sum)) {
                last = i;
            }
        }
        for (size_t i = begin; i <= last && i < ends[layer]; i++) {
            if (behind.count(body_[i]) != 0) {
                implementations_->assign(body_[i], *makers_.back(), static_cast<int>(layer));
            }
        }
    }
}

// Nothing may be asked of a device that it can't do: its backend would end the process.
void TrainingGraph::check_devices() {
    implementations_->assign_made(implementations_->otherwise, n_layers_);
    if (placement_.is_cpu_alone()) {
        return;
    }
    int begin = 0;
    for (const Phase & phase : phases_) {
        group_by_place(gf_, begin, phase.end, place_of_, placement_.cpu());
        begin = phase.end;
    }
    for (int i = 0; i < ggml_graph_n_nodes(gf_); i++) {
        const ggml_tensor * node = ggml_graph_node(gf_, i);
        const int place = place_of_(node);
        if (place == placement_.cpu()) {
            continue;
        }
        ggml_backend_dev_t device = placement_.devices[place];
        if (!ggml_backend_dev_supports_op(device, node) ||
            !is_within_limits(traits_of(device, placement_.exact), node)) {
            send_back(node, implementations_->layer_of(node));
        }
    }
}

DeviceBytes TrainingGraph::measure(const Executor & executor) const {
    DeviceBytes n_bytes =
        place_of_ ? executor.measure(gf_, kept_, place_of_) : DeviceBytes{{nullptr, executor.measure(gf_, kept_)}};
    n_bytes[nullptr] += forward_->n_state_bytes();
    return n_bytes;
}

std::map<ggml_backend_dev_t, std::map<std::string, int>> TrainingGraph::nodes_by_device() const {
    std::map<ggml_backend_dev_t, std::map<std::string, int>> found;
    for (int i = 0; i < ggml_graph_n_nodes(gf_); i++) {
        const ggml_tensor * node = ggml_graph_node(gf_, i);
        const int place = place_of_ ? place_of_(node) : 0;
        found[place < placement_.cpu() ? placement_.devices[place] : nullptr][describe(node)]++;
    }
    return found;
}

int TrainingGraph::n_custom_nodes() const {
    int n = 0;
    for (int i = 0; i < ggml_graph_n_nodes(gf_); i++) {
        switch (ggml_graph_node(gf_, i)->op) {
            case GGML_OP_CUSTOM:
            case GGML_OP_MAP_CUSTOM1:
            case GGML_OP_MAP_CUSTOM2:
            case GGML_OP_MAP_CUSTOM3:
                n++;
                break;
            default:
                break;
        }
    }
    return n;
}

// The nodes that the logits depend on, split at the final hidden state. llama.cpp lists others too (inputs it does not
// use). False where there is no such split.
bool TrainingGraph::collect_forward_nodes() {
    std::unordered_set<const ggml_tensor *> needed = {logits_};
    std::vector<ggml_tensor *> nodes;
    for (auto node = forward_->nodes().rbegin(); node != forward_->nodes().rend(); ++node) {
        if (needed.count(*node) != 0) {
            nodes.push_back(*node);
            needed.insert(std::begin((*node)->src), std::end((*node)->src));
        }
    }
    std::reverse(nodes.begin(), nodes.end());
    const auto end_of_body = std::find(nodes.begin(), nodes.end(), hidden_);
    if (end_of_body == nodes.end() || hidden_ == logits_) {
        return false;
    }
    body_.assign(nodes.begin(), end_of_body + 1);
    head_.assign(end_of_body + 1, nodes.end());
    return true;
}

const ggml_tensor * TrainingGraph::cache_that_is_read() const {
    for (const std::vector<ggml_tensor *> * stretch : {&body_, &head_}) {
        for (const ggml_tensor * node : *stretch) {
            for (const ggml_tensor * src : node->src) {
                if (src != nullptr && forward_->is_cache_without_memory(src)) {
                    return src;
                }
            }
        }
    }
    return nullptr;
}

// Between the token embeddings and all that reads them.
void TrainingGraph::add_noise(const EmbeddingNoise & options, const MicroBatch & batch) {
    const auto looked_up = std::find_if(body_.begin(), body_.end(), [](const ggml_tensor * node) {
        return node->op == GGML_OP_GET_ROWS && std::strcmp(node->src[0]->name, "token_embd.weight") == 0;
    });
    if (looked_up == body_.end()) {
        throw Error("this model's graph does not look its tokens up: there is nothing to put NEFTune's noise on");
    }
    ggml_tensor * embeddings = *looked_up;
    noise_ = ggml_new_tensor_2d(ctx_.get(), GGML_TYPE_F32, embeddings->ne[0], embeddings->ne[1]);
    ggml_set_input(noise_);
    noise_values_ = ggtune::noise_values(options, embeddings->ne[0], embeddings->ne[1], batch.sequences);
    ggml_tensor * sum = ggml_add(ctx_.get(), embeddings, noise_);
    ggml_format_name(sum, "%s (with noise)", embeddings->name);
    implementations_->assign(sum, implementations_->of(embeddings), implementations_->layer_of(embeddings));
    for (auto later = looked_up + 1; later != body_.end(); ++later) {
        for (ggml_tensor *& src : (*later)->src) {
            src = src == embeddings ? sum : src;
        }
        if ((*later)->view_src == embeddings) {
            (*later)->view_src = sum;
        }
    }
    body_.insert(looked_up + 1, sum);
}

// A second computation of a node from substituted operands; n_rows >= 0 cuts it to so many rows.
ggml_tensor * TrainingGraph::clone(const ggml_tensor * node,
                                   const std::unordered_map<const ggml_tensor *, ggml_tensor *> & substitutes,
                                   int64_t n_rows) {
    int64_t ne[GGML_MAX_DIMS];
    std::copy(std::begin(node->ne), std::end(node->ne), ne);
    if (n_rows >= 0) {
        ne[1] = cut_rows(node, n_rows);
    }
    ggml_tensor * copy = ggml_new_tensor(ctx_.get(), node->type, GGML_MAX_DIMS, ne);
    copy->op = node->op;
    std::memcpy(copy->op_params, node->op_params, sizeof(copy->op_params));
    const auto substitute = [&](ggml_tensor * t) {
        const auto it = substitutes.find(t);
        return it != substitutes.end() ? it->second : t;
    };
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        // ggml's casts are operands of themselves
        copy->src[i] = node->src[i] == node ? copy : node->src[i] != nullptr ? substitute(node->src[i]) : nullptr;
    }
    if (is_view_op(node)) {
        std::copy(std::begin(node->nb), std::end(node->nb), copy->nb);
        copy->view_src = substitute(node->view_src);
        copy->view_offs = node->view_offs;
    }
    ggml_format_name(copy, "%s (again)", node->name);
    implementations_->assign(copy, implementations_->of(node), implementations_->layer_of(node));
    return copy;
}

// The node that the implementation has in the place of this one, whose operands are the same.
ggml_tensor * TrainingGraph::in_place_of(ggml_tensor * node, Ops & ops) {
    ggml_tensor * own = node->op == GGML_OP_MUL_MAT ? ops.replacement(node) : nullptr;
    return own != nullptr ? own : node;
}

void TrainingGraph::expand(ggml_tensor * node, bool forward_pass) {
    ggml_build_forward_expand(gf_, node);
    const int end = ggml_graph_n_nodes(gf_);
    if (!phases_.empty() && phases_.back().forward == forward_pass) {
        phases_.back().end = end;
    } else {
        phases_.push_back({end, forward_pass});
    }
}

// Of rows from `first_row` on, from what the head makes of the teacher's hidden states.
ggml_tensor * TrainingGraph::divergences(ggml_tensor * logits, int64_t first_row, ggml_tensor *& teacher_logits) {
    const int64_t n = logits->ne[1];
    ggml_tensor * rows =
        ggml_view_2d(ctx_.get(), teacher_, teacher_->ne[0], n, teacher_->nb[1], first_row * teacher_->nb[1]);
    std::unordered_map<const ggml_tensor *, ggml_tensor *> substitutes = {{hidden_, rows}};
    for (const ggml_tensor * node : head_) {
        teacher_logits = clone(node, substitutes, n == hidden_->ne[1] ? -1 : n);
        substitutes[node] = teacher_logits;
    }
    return implementations_->otherwise.divergences(logits, teacher_logits);
}

// From the hidden state to the loss, a chunk of rows at a time, and back to the gradient of the hidden state.
void TrainingGraph::build_head(Autodiff * ad) {
    if (!placement_.is_cpu_alone()) {
        // what is looked up in main memory comes before all that devices do
        for (ggml_tensor * node : body_) {
            const bool of_inputs = std::all_of(std::begin(node->src), std::end(node->src), [](const ggml_tensor * src) {
                return src == nullptr || src->op == GGML_OP_NONE;
            });
            if (node->op == GGML_OP_GET_ROWS && of_inputs && place_of_(node) == placement_.cpu()) {
                expand(node, true);
            }
        }
    }
    expand(hidden_, true);
    Ops & ops = implementations_->otherwise;
    const int64_t n_rows = hidden_->ne[1];
    int64_t chunk_rows = n_rows;
    const auto can_be_cut = [&](const ggml_tensor * node) {
        const bool of_hidden_alone = std::none_of(std::begin(node->src), std::end(node->src), [&](ggml_tensor * src) {
            return src != hidden_ && std::find(body_.begin(), body_.end(), src) != body_.end();
        });
        return of_hidden_alone && is_row_wise(node);
    };
    if (std::all_of(head_.begin(), head_.end(), can_be_cut)) {
        chunk_rows =
            std::clamp<int64_t>(kMaxChunkLogits / logits_->ne[0], kMinChunkRows, std::max(n_rows, kMinChunkRows));
    }
    const bool on_device = !placement_.is_cpu_alone() && places_.at(&ops) != placement_.cpu();
    ggml_tensor * d_hidden = nullptr;
    for (int64_t row = 0; row < n_rows; row += chunk_rows) {
        const int64_t n = std::min(chunk_rows, n_rows - row);
        const bool whole = n == n_rows;
        ggml_tensor * rows = hidden_;
        ggml_tensor * chunk_targets = targets_;
        ggml_tensor * chunk_weights = weights_;
        std::vector<ggml_tensor *> nodes = head_;
        if (!whole || on_device) {
            rows = ggml_view_2d(ctx_.get(), hidden_, hidden_->ne[0], n, hidden_->nb[1], row * hidden_->nb[1]);
            chunk_targets = ggml_view_1d(ctx_.get(), targets_, n, row * targets_->nb[0]);
            chunk_weights = ggml_view_1d(ctx_.get(), weights_, n, row * weights_->nb[0]);
            std::unordered_map<const ggml_tensor *, ggml_tensor *> substitutes = {{hidden_, rows}};
            nodes.clear();
            for (const ggml_tensor * node : head_) {
                ggml_tensor * copy = clone(node, substitutes, n);
                nodes.push_back(on_device ? in_place_of(copy, ops) : copy);
                substitutes[node] = nodes.back();
            }
        }
        ggml_tensor * chunk_logits = nodes.back();
        ggml_tensor * teacher_logits = nullptr;
        ggml_tensor * log_probs = teacher_ != nullptr ? divergences(chunk_logits, row, teacher_logits)
                                                      : ops.log_probabilities(chunk_logits, chunk_targets);
        ggml_set_output(log_probs);
        log_probabilities_.push_back(log_probs);
        expand(log_probs, true);
        if (ad == nullptr) {
            if (with_predictions_) {
                predictions_.push_back(ggml_argmax(ctx_.get(), chunk_logits));
                ggml_set_output(predictions_.back());
                expand(predictions_.back(), true);
            }
            continue;
        }
        // the rows of this chunk are an end of their own: their gradient is picked up and put in its place
        std::vector<ggml_tensor *> trace = nodes;
        if (!whole || on_device) {
            trace.insert(trace.begin(), rows);
        }
        ad->trace(trace);
        ad->add(chunk_logits, teacher_ != nullptr
                                  ? ops.divergence_dx(chunk_logits, teacher_logits, chunk_weights, log_probs)
                                  : ops.cross_entropy_dx(chunk_logits, chunk_targets, chunk_weights, log_probs));
        ad->backward(nodes);
        ggml_tensor * d_rows = ad->gradient(rows);
        if (d_rows == nullptr) {
            throw Error("the loss of this model does not depend on its last hidden state");
        }
        if (whole) {
            expand(d_rows, false);
            if (rows != hidden_) {
                ad->add(hidden_, d_rows);
            }
            return;
        }
        if (d_hidden == nullptr) {
            d_hidden = ops.zeros_like(hidden_);
        }
        d_hidden =
            ggml_set_2d_inplace(ctx_.get(), d_hidden, ops.contiguous(d_rows), hidden_->nb[1], row * hidden_->nb[1]);
        expand(d_hidden, false);
    }
    if (ad != nullptr) {
        ad->add(hidden_, d_hidden);
    }
}

// Layers end at llama.cpp's "l_out-<layer>" tensors, which cut the body into segments; where it calls one of them
// something else, behind the last tensor that bears a layer's number. The last segment, what follows the last layer
// (the final norm), is not worth recomputing.
std::vector<size_t> TrainingGraph::marked_layer_ends() const {
    std::vector<size_t> ends;
    std::vector<size_t> numbered(n_layers_, 0);
    for (size_t i = 0; i < body_.size(); i++) {
        const int layer = layer_of_name(body_[i]);
        if (layer >= 0 && std::strncmp(body_[i]->name, "l_out-", 6) == 0) {
            ends.push_back(i + 1);
        }
        if (layer >= 0 && layer < n_layers_) {
            numbered[layer] = i + 1;
        }
    }
    if (static_cast<int>(ends.size()) < n_layers_ && !numbered.empty() && numbered.front() > 0 &&
        std::adjacent_find(numbered.begin(), numbered.end(), std::greater_equal<>()) == numbered.end()) {
        ends = numbered;
    }
    return ends;
}

// The same where each layer can be computed again.
std::vector<size_t> TrainingGraph::layer_ends() const {
    const std::vector<size_t> ends = marked_layer_ends();
    return can_be_computed_again(ends) ? ends : std::vector<size_t>();
}

// Where something is written over values of another layer, what is computed again would start from others than the
// first time.
bool TrainingGraph::can_be_computed_again(const std::vector<size_t> & ends) const {
    size_t begin = 0;
    for (const size_t end : ends) {
        const std::unordered_set<const ggml_tensor *> of_layer(body_.begin() + begin, body_.begin() + end);
        const bool leaves = std::any_of(body_.begin() + begin, body_.begin() + end, [&](const ggml_tensor * node) {
            return computes_in_place(node) && of_layer.count(node->view_src) == 0;
        });
        if (leaves) {
            return false;
        }
        begin = end;
    }
    return true;
}

// What each segment reads of those before it: mostly the output of the one before.
std::vector<std::vector<ggml_tensor *>> TrainingGraph::segment_inputs(const std::vector<size_t> & ends) const {
    std::vector<std::vector<ggml_tensor *>> inputs;
    std::unordered_set<const ggml_tensor *> earlier;
    auto begin = body_.begin();
    for (size_t segment = 0; segment <= ends.size(); segment++) {
        const auto end = segment < ends.size() ? body_.begin() + ends[segment] : body_.end();
        inputs.emplace_back();
        for (auto node = begin; node != end; ++node) {
            std::copy_if(std::begin((*node)->src), std::end((*node)->src), std::back_inserter(inputs.back()),
                         [&](const ggml_tensor * src) { return earlier.count(src) != 0; });
        }
        earlier.insert(begin, end);
        begin = end;
    }
    return inputs;
}

void TrainingGraph::build_backward(Autodiff & ad, int recompute_layers) {
    std::vector<size_t> ends;
    if (recompute_layers > 0) {
        ends = layer_ends();
    } else if (!placement_.is_cpu_alone()) {
        ends = marked_layer_ends();  // one layer after the other, so that there is no going to and fro between devices
    }
    if (recompute_layers > 0 && ends.empty()) {
        throw Error(
            "recomputation can't be used: this architecture's graph does not mark the ends of its layers, or writes "
            "over values of its own");
    }
    const size_t n_again = std::min<size_t>(recompute_layers, ends.size());
    const std::vector<std::vector<ggml_tensor *>> inputs = segment_inputs(ends);
    std::unordered_set<const ggml_tensor *> crossing;
    for (const std::vector<ggml_tensor *> & of_segment : inputs) {
        crossing.insert(of_segment.begin(), of_segment.end());
    }
    for (size_t i = 0; i < (n_again > 0 ? ends[n_again - 1] : 0); i++) {
        if (crossing.count(body_[i]) != 0 && ad.needs_gradient(body_[i]) && !is_view_op(body_[i])) {
            kept_.push_back(body_[i]);
        }
    }
    size_t end = body_.size();
    for (size_t segment = ends.size() + 1; segment-- > 0;) {
        const size_t begin = segment > 0 ? ends[segment - 1] : 0;
        std::vector<ggml_tensor *> nodes(body_.begin() + begin, body_.begin() + end);
        end = begin;
        if (segment < n_again) {
            std::unordered_map<const ggml_tensor *, ggml_tensor *> copies;
            for (ggml_tensor *& node : nodes) {
                ggml_tensor * copy = clone(node, copies, -1);
                copies[node] = copy;
                node = copy;
            }
            ad.trace(nodes);
            // Later segments have left their gradients with the first computation's nodes.
            for (size_t i = 0; i < nodes.size(); i++) {
                ad.hand_over(body_[begin + i], nodes[i]);
            }
        }
        ad.backward(nodes);
        for (ggml_tensor * result : ad.take_results()) {
            expand(result, false);
        }
        // What this segment adds to the gradients of its inputs is computed now, so that the segment's memory is free.
        for (const ggml_tensor * input : inputs[segment]) {
            if (ggml_tensor * d_input = ad.gradient(input)) {
                expand(d_input, false);
            }
        }
    }
}

double TrainingGraph::measure_seconds(Executor & executor) const {
    if (!placement_.is_cpu_alone()) {
        throw Error("the time of a step on devices is not predicted");
    }
    InputValues inputs;
    for (const KeyRanges & ranges : key_ranges_) {
        inputs[ranges.first] = &ranges.first_values;
        inputs[ranges.end] = &ranges.end_values;
    }
    return ggtune::measure_seconds(executor, gf_, inputs);
}

TrainingGraph::Times TrainingGraph::run(Executor & executor, std::vector<float> & log_probs,
                                        std::vector<int32_t> & predictions) {
    allocate(executor);
    forward_->set_inputs();
    set_if_read(targets_, target_values_.data());
    std::vector<float> weights = weight_values_;
    if (loss_scale_ != 1.0) {
        std::transform(weights.begin(), weights.end(), weights.begin(),
                       [&](float w) { return static_cast<float>(w * loss_scale_); });
    }
    set_if_read(weights_, weights.data());
    if (teacher_ != nullptr) {
        ggml_backend_tensor_set(teacher_, teacher_values_->data(), 0, ggml_nbytes(teacher_));
    }
    if (noise_ != nullptr) {
        ggml_backend_tensor_set(noise_, noise_values_.data(), 0, ggml_nbytes(noise_));
    }
    for (const KeyRanges & ranges : key_ranges_) {
        set_if_read(ranges.first, ranges.first_values.data());
        set_if_read(ranges.end, ranges.end_values.data());
    }
    for (const Ops * implementation : implementations_->all()) {
        for (const Ops::HostInput & input : implementation->host_inputs()) {
            set_if_read(input.tensor, input.bytes.data());
        }
    }
    Times times;
    int begin = 0;
    for (const Phase & phase : phases_) {
        const auto start = std::chrono::steady_clock::now();
        executor.compute(gf_, begin, phase.end);
        const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
        (phase.forward ? times.forward_s : times.backward_s) += elapsed.count();
        begin = phase.end;
    }
    if (log_probabilities_.empty()) {
        return times;
    }
    const std::vector<float> of_rows = of_chunks<float>(log_probabilities_, weight_values_.size());
    const std::vector<int32_t> found = of_chunks<int32_t>(predictions_, weight_values_.size());
    log_probs.clear();
    predictions.clear();
    for (size_t i = 0; i < of_rows.size(); i++) {
        if (weight_values_[i] != 0) {
            log_probs.push_back(of_rows[i]);
            if (with_predictions_) {
                predictions.push_back(found[i]);
            }
        }
    }
    return times;
}

std::vector<float> TrainingGraph::hidden_states() const {
    std::vector<float> values(ggml_nelements(hidden_));
    ggml_backend_tensor_get(hidden_, values.data(), 0, ggml_nbytes(hidden_));
    return values;
}

}  // namespace ggtune
