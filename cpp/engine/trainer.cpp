#include "engine/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/abort_guard.h"
#include "base/error.h"
#include "engine/devices.h"
#include "kernels/adamw.h"
#include "kernels/partition.h"
#include "ops/ggml/backend_traits.h"

namespace ggtune {

namespace {

constexpr int64_t kRowPadding = 64;
constexpr int64_t kPieceSize = 16384;  // parameters that a thread updates at a time

// Loss scales. The largest gradient of a logit is the weight of its row: so much of it leaves room below the largest
// number of half precision, 65504, for the sums that it goes into.
constexpr double kFirstLossScale = 32768.0;
constexpr double kSmallestLossScale = 1.0 / 65536.0, kLargestLossScale = 1099511627776.0;
constexpr double kLessAfterOverflow = 1.0 / 4.0;
constexpr int64_t kStepsBeforeMore = 500;  // without overflow, before the scale is doubled

// Filled up with sequences of their own, which nothing sees. llama_decode pads its keys in the same way: sums over the
// keys of a first sequence then run in the same order, and the results are the same bits.
BatchRows padded(const MicroBatch & from, int64_t context) {
    BatchRows batch = copy_of(from);
    int32_t sequence = *std::max_element(from.sequences, from.sequences + from.n_tokens);
    for (int64_t i = 0; batch.n_tokens() % kRowPadding != 0; i++) {
        sequence += i % context == 0;
        if (sequence >= kMaxSequences) {
            break;
        }
        batch.add(from.tokens[0], i % context, sequence, 0, 0.0f);
    }
    return batch;
}

bool is_b(const std::string & tensor) {
    static const std::string suffix = ".lora_b";
    return tensor.size() > suffix.size() && tensor.compare(tensor.size() - suffix.size(), suffix.size(), suffix) == 0;
}

// Those that have layers of it, in their order.
std::vector<ggml_backend_dev_t> devices_of(const Model & model) {
    std::vector<ggml_backend_dev_t> devices;
    for (const std::string & name : model.places.devices) {
        devices.push_back(device_by_name(name));
    }
    return devices;
}

// In main memory: of a gradient on a device what has been fetched.
float * host_gradient(Trainer::State & state) {
    return state.fetched.empty() ? static_cast<float *>(state.gradient->data) : state.fetched.data();
}

// What keeps a model from being trained, with the name of its file before it.
template <typename Make>
auto naming_model(const Model & model, const Make & make) {
    try {
        return make();
    } catch (const Error & e) {
        throw ModelFileError(model.path + ": " + e.what());
    } catch (const std::runtime_error & e) {
        throw ModelFileError(model.path + ": " + untrainable(model.architecture(), reason(e)).what());
    }
}

}  // namespace

Trainer::Trainer(std::shared_ptr<Adapter> shared_adapter, const Options & options)
    : adapter(std::move(shared_adapter)),
      options_(options),
      gradients_(adapter->tensors().size()),
      builder_(naming_model(adapter->model(),
                            [&] {
                                return ForwardGraphBuilder(
                                    adapter->model().llama(),
                                    static_cast<uint32_t>(std::max<int64_t>(options_.context, 1)), adapter->lora());
                            })),
      executor_(std::max(options_.threads, 1), devices_of(adapter->model())) {
    if (options_.context < 1) {
        throw Error("the context must be at least 1 token");
    }
    adapter->model().check_positions(options_.context);
    if (!(options_.neftune_alpha >= 0 && std::isfinite(options_.neftune_alpha))) {
        throw Error("neftune_alpha must be a number of at least 0");
    }
    if (!(options_.dropout >= 0 && options_.dropout < 1)) {
        throw Error("dropout must be at least 0 and below 1");
    }
    check_ops();
    if (options_.threads < 1) {
        throw Error("there must be at least 1 thread");
    }
    probe();
    loss_scale_ = scales_loss() ? 0.0 : 1.0;
    for (const auto & [name, tensor] : adapter->tensors()) {
        ggml_tensor * gradient = ggml_dup_tensor(gradients_.beside(tensor), tensor);
        const size_t n = adapter->model().has_weights() ? ggml_nelements(tensor) : 0;
        list_.push_back({name, tensor, gradient, n > 0 ? adapter->values(tensor) : nullptr,
                         std::vector<float>(device_of(tensor) != nullptr ? n : 0), std::vector<float>(n),
                         std::vector<float>(n)});
        accumulators_[tensor] = gradient;
        n_pieces_ += (n + kPieceSize - 1) / kPieceSize;
    }
    gradients_.allocate(adapter->model().has_weights(),
                        "the gradients of " + std::to_string(adapter->n_params()) + " parameters");
    zero_gradients();
}

Placement Trainer::placement() const {
    const Model & model = adapter->model();
    Placement placement;
    placement.devices = devices_of(model);
    placement.exact = options_.precision == Precision::f32;
    for (ggml_backend_dev_t device : model.layer_devices()) {
        const auto found = std::find(placement.devices.begin(), placement.devices.end(), device);
        placement.layer_places.push_back(static_cast<int>(found - placement.devices.begin()));
    }
    return placement;
}

bool Trainer::scales_loss() const {
    const Model & model = adapter->model();
    const std::vector<ggml_backend_dev_t> devices = devices_of(model);
    return std::any_of(devices.begin(), devices.end(),
                       [&](ggml_backend_dev_t device) { return traits_of(device, model.places.exact).half_products; });
}

void Trainer::set_loss_scale(double scale) {
    int exponent = 0;
    if (scale != 0.0 && !(scale > 0 && std::frexp(scale, &exponent) == 0.5 && std::isfinite(scale))) {
        throw Error("a loss scale is a power of two, or 0 where it is not chosen yet; not " + std::to_string(scale));
    }
    loss_scale_ = scales_loss() ? scale : 1.0;
}

// For the largest weight of the first micro-batch.
void Trainer::choose_loss_scale(const MicroBatch & batch) {
    float largest = 0.0f;
    for (int64_t i = 0; i < batch.n_tokens; i++) {
        largest = std::max(largest, std::abs(batch.weights[i]));
    }
    if (loss_scale_ == 0.0 && largest > 0.0f) {
        int exponent = 0;
        std::frexp(largest, &exponent);
        loss_scale_ = std::clamp(std::ldexp(kFirstLossScale, -exponent), kSmallestLossScale, kLargestLossScale);
    }
}

// Builds the graph of one sequence, whose gradients go nowhere, to learn what the architecture allows. Pairs on which
// the loss does not depend are left out.
void Trainer::probe() {
    const auto & tensors = adapter->tensors();
    PlacedTensors without_memory(tensors.size());
    std::unordered_map<ggml_tensor *, ggml_tensor *> nowhere;
    for (const auto & [name, tensor] : tensors) {
        nowhere[tensor] = ggml_dup_tensor(without_memory.beside(tensor), tensor);
    }
    without_memory.allocate(false, "");
    const BatchRows rows = batch_of_shape(options_.context, 1, 1, false);
    const AbortAsException guard;
    naming_model(adapter->model(), [&] {
        GraphOptions options = graph_options(true);
        options.placement.falls_back = true;
        const TrainingGraph graph(builder_, *adapter, nowhere, rows.view(), options);
        n_recomputable_ = graph.n_recomputable_layers();
        unsupported_ = graph.unsupported();
        if (graph.unreached().size() == adapter->pairs().size()) {
            throw Error("the loss does not depend on any of the chosen linears (" + graph.unreached().front() +
                        (graph.unreached().size() > 1 ? ", ..." : "") + "): choose others");
        }
        if (!graph.unreached().empty()) {
            adapter->drop(graph.unreached());
        }
    });
}

// part: of the micro-batch, where it takes several graphs: each has masks of its own
GraphOptions Trainer::graph_options(bool gradients, uint64_t part) const {
    GraphOptions graph;
    graph.gradients = gradients;
    if (gradients) {
        const uint64_t counter = static_cast<uint64_t>(n_micro_batches) ^ part << 32;
        graph.recompute_layers = recompute_layers;
        graph.dropout = {options_.dropout, options_.seed, counter};
        graph.noise = {options_.neftune_alpha, options_.seed, counter};
    }
    graph.precision = options_.precision;
    graph.ops = options_.ops;
    graph.ops_layers = options_.ops_layers;
    graph.placement = placement();
    graph.placement.falls_back = !unsupported_.empty();  // then for planning alone (check_weights())
    graph.loss_scale = loss_scale_ == 0.0 ? 1.0 : loss_scale_;
    return graph;
}

void Trainer::check_ops() const {
    if (!adapter->model().places.devices.empty()) {
        if (options_.ops != OpsKind::cpu || options_.precision == Precision::llama_cpp) {
            throw Error("on devices ops and precision are their own: give precision auto or f32");
        }
        const bool exact = options_.precision == Precision::f32;
        if (exact != adapter->model().places.exact) {
            throw Error(std::string("the devices of the model have ") + (exact ? "not " : "") +
                        "been opened as exact, which goes with precision f32 alone");
        }
    }
    if (!options_.ops_layers) {
        return;
    }
    if (options_.ops == OpsKind::cpu) {
        throw Error("ggml_layers is a number of layers for ops=\"ggml\"");
    }
    const int n = *options_.ops_layers, n_layer = adapter->model().n_layer();
    if (n < 0 || n > n_layer) {
        throw Error("ggml_layers must be 0 to the model's " + std::to_string(n_layer) + ", not " + std::to_string(n));
    }
}

void Trainer::check_weights() const {
    if (!adapter->model().has_weights()) {
        throw Error(adapter->model().path + " was loaded without its weights");
    }
    if (!unsupported_.empty()) {
        const Unsupported & first = unsupported_.front();
        throw Error("the device of layer " + std::to_string(first.layer) + " can't compute " + first.op + " (tensor " +
                    first.tensor + "): load the model with this layer on the CPU");
    }
}

void Trainer::check(const MicroBatch & batch) const {
    check_rows(batch, options_.context, adapter->model().n_vocab());
}

BatchResult Trainer::run(const MicroBatch & batch, bool gradients, bool predictions) {
    check_weights();
    check(batch);
    BatchResult result;
    result.n_tokens = batch.n_tokens;
    result.log_probs.assign(batch.n_tokens, std::numeric_limits<float>::quiet_NaN());
    if (predictions) {
        result.predictions.assign(batch.n_tokens, -1);
    }
    result.n_targets = batch.n_tokens - std::count(batch.weights, batch.weights + batch.n_tokens, 0.0f);
    if (result.n_targets == 0) {
        return result;
    }
    const auto options = [&](uint64_t part) {
        GraphOptions graph = graph_options(gradients, part);
        graph.predictions = predictions;
        return graph;
    };
    if (builder_.needs_equal_lengths()) {
        const std::vector<EqualLengths> parts = split_to_equal_lengths(batch, builder_.most_sequences());
        for (size_t i = 0; i < parts.size(); i++) {
            run_graph(parts[i].rows.view(), parts[i].origin, options(i), result);
        }
    } else {
        std::vector<int64_t> origin(batch.n_tokens);
        std::iota(origin.begin(), origin.end(), 0);
        run_graph(batch, origin, options(0), result);
    }
    for (int64_t i = 0; i < batch.n_tokens; i++) {
        if (batch.weights[i] != 0) {
            result.loss_sum -= static_cast<double>(batch.weights[i]) * result.log_probs[i];
            result.weight_sum += batch.weights[i];
        }
    }
    return result;
}

// origin: the place of each row in the result
void Trainer::run_graph(const MicroBatch & batch, const std::vector<int64_t> & origin,
                        const GraphOptions & graph_options, BatchResult & result) {
    TrainingGraph graph(builder_, *adapter, accumulators_, batch, graph_options);
    std::vector<float> log_probs;
    std::vector<int32_t> predictions;
    const TrainingGraph::Times times = graph.run(executor_, log_probs, predictions);
    result.forward_s += times.forward_s;
    result.backward_s += times.backward_s;
    size_t next = 0;
    for (int64_t i = 0; i < batch.n_tokens; i++) {
        if (batch.weights[i] != 0) {
            if (!predictions.empty()) {
                result.predictions[origin[i]] = predictions[next];
            }
            result.log_probs[origin[i]] = log_probs[next++];
        }
    }
}

BatchResult Trainer::accumulate(const MicroBatch & batch) {
    if (scales_loss()) {
        check(batch);
        choose_loss_scale(batch);
    }
    BatchResult result = run(batch, true);
    if (scales_loss()) {  // for the case that the step's gradients turn out to have overflown
        accumulated_.push_back(copy_of(batch));
    }
    weight_sum_ += result.weight_sum;
    n_accumulated_ += result.n_targets;
    n_micro_batches++;
    return result;
}

// All micro-batches since the last step, with the same dropout masks.
void Trainer::accumulate_again() {
    gradients_.clear();
    n_micro_batches -= static_cast<int64_t>(accumulated_.size());
    for (const BatchRows & rows : accumulated_) {
        run(rows.view(), true);
        n_micro_batches++;
    }
}

// To main memory; false where one of them is not finite.
bool Trainer::fetch_gradients() {
    const bool checks = scales_loss();
    bool finite = true;
    for (State & state : list_) {
        if (!state.fetched.empty()) {
            ggml_backend_tensor_get(state.gradient, state.fetched.data(), 0, ggml_nbytes(state.gradient));
        }
        const int64_t n = ggml_nelements(state.gradient);
        finite = finite && (!checks || std::isfinite(kernels::square_sum(n, host_gradient(state))));
    }
    return finite;
}

// Gradients in main memory, computed again with a smaller scale as long as they have overflown.
void Trainer::make_finite() {
    bool finite = fetch_gradients();
    while (!finite && scales_loss() && loss_scale_ > kSmallestLossScale) {
        loss_scale_ *= kLessAfterOverflow;
        n_steps_without_overflow_ = 0;
        accumulate_again();
        finite = fetch_gradients();
    }
}

std::vector<std::vector<float>> Trainer::gradients() {
    check_weights();
    make_finite();
    std::vector<std::vector<float>> gradients;
    for (State & state : list_) {
        const float * from = host_gradient(state);
        std::vector<float> & values = gradients.emplace_back(from, from + ggml_nelements(state.gradient));
        if (loss_scale_ != 1.0 && loss_scale_ != 0.0) {
            std::transform(values.begin(), values.end(), values.begin(),
                           [&](float g) { return static_cast<float>(g / loss_scale_); });
        }
    }
    return gradients;
}

BatchResult Trainer::evaluate(const MicroBatch & batch, bool predictions) {
    if (options_.precision != Precision::llama_cpp || batch.n_tokens < 1 || builder_.needs_equal_lengths()) {
        return run(batch, false, predictions);
    }
    check(batch);
    BatchResult result = run(padded(batch, options_.context).view(), false, predictions);
    result.n_tokens = batch.n_tokens;
    result.log_probs.resize(batch.n_tokens);
    if (predictions) {
        result.predictions.resize(batch.n_tokens);
    }
    return result;
}

BatchResult Trainer::accumulate_profiled(const MicroBatch & batch, Executor::Profile & seconds) {
    const struct ProfileGuard {
        Executor & executor;
        ~ProfileGuard() { executor.set_profile(nullptr); }
    } guard{executor_};
    executor_.set_profile(&seconds);
    return accumulate(batch);
}

double Trainer::predict_seconds(const MicroBatch & batch, bool gradients) {
    check(batch);
    if (std::count(batch.weights, batch.weights + batch.n_tokens, 0.0f) == batch.n_tokens) {
        return 0;
    }
    const auto seconds_of = [&](const MicroBatch & rows) {
        const auto start = std::chrono::steady_clock::now();
        const TrainingGraph graph(builder_, *adapter, accumulators_, rows, graph_options(gradients));
        const std::chrono::duration<double> building = std::chrono::steady_clock::now() - start;
        return building.count() + graph.measure_seconds(executor_);
    };
    if (!builder_.needs_equal_lengths()) {
        return seconds_of(batch);
    }
    double seconds = 0;
    for (const EqualLengths & part : split_to_equal_lengths(batch, builder_.most_sequences())) {
        seconds += seconds_of(part.rows.view());
    }
    return seconds;
}

std::vector<Trainer::State> & Trainer::states() {
    check_weights();
    return list_;
}

void Trainer::zero_gradients() {
    gradients_.clear();
    accumulated_.clear();
    weight_sum_ = 0;
    n_accumulated_ = 0;
}

// Calls work(state, begin, end, index) for each piece of the parameters, on all threads. The pieces are the same for
// any number of threads.
template <typename Work>
void Trainer::for_each_piece(const Work & work) {
    executor_.in_parallel([&](int ith, int nth) {
        const kernels::Range own = kernels::split_range(n_pieces_, ith, nth);
        int64_t index = 0;
        for (State & state : list_) {
            const int64_t n = state.first_moment.size();
            for (int64_t begin = 0; begin < n; begin += kPieceSize, index++) {
                if (index >= own.begin && index < own.end) {
                    work(state, begin, std::min(begin + kPieceSize, n), index);
                }
            }
        }
    });
}

double Trainer::step(const AdamW & o, std::optional<double> divisor) {
    check_weights();
    if (n_accumulated_ == 0) {
        throw Error("there is nothing to step on: no target with a weight has been accumulated");
    }
    double scale = divisor.value_or(weight_sum_);
    if (!(scale > 0) || !std::isfinite(scale)) {
        throw Error(divisor ? "the divisor of a step must be a number above 0, not " + std::to_string(scale)
                            : "the weights of the accumulated targets sum to " + std::to_string(scale) +
                                  ", by which no gradient can be divided: give a divisor");
    }
    make_finite();
    std::vector<double> square_sums(n_pieces_);
    for_each_piece([&](State & state, int64_t begin, int64_t end, int64_t index) {
        square_sums[index] = kernels::square_sum(end - begin, host_gradient(state) + begin);
    });
    scale *= loss_scale_;
    const double norm = std::sqrt(std::accumulate(square_sums.begin(), square_sums.end(), 0.0)) / scale;
    if (!std::isfinite(norm)) {
        throw NotFiniteError("the gradient is not finite");
    }
    // the small constant is PyTorch's (torch.nn.utils.clip_grad_norm_)
    const double clip_factor = o.clip > 0 ? std::min(1.0, o.clip / (norm + 1e-6)) : 1.0;
    const auto t = static_cast<double>(n_steps + 1);
    const kernels::AdamWFactors of_a = {
        clip_factor / scale,        o.lr,      o.beta1,        o.beta2, 1.0 - std::pow(o.beta1, t),
        1.0 - std::pow(o.beta2, t), o.epsilon, o.weight_decay,
    };
    kernels::AdamWFactors of_b = of_a;
    of_b.lr = o.lr * o.lora_plus_ratio;
    for_each_piece([&](State & state, int64_t begin, int64_t end, int64_t) {
        float * gradient = host_gradient(state) + begin;
        kernels::adamw_update(end - begin, state.values + begin, gradient, state.first_moment.data() + begin,
                              state.second_moment.data() + begin, is_b(state.name) ? of_b : of_a);
        std::fill_n(gradient, end - begin, 0.0f);
    });
    for (const State & state : list_) {
        adapter->push(state.parameter);
    }
    if (gradients_.has_devices()) {
        gradients_.clear();
    }
    if (scales_loss() && ++n_steps_without_overflow_ >= kStepsBeforeMore && loss_scale_ < kLargestLossScale) {
        loss_scale_ *= 2.0;
        n_steps_without_overflow_ = 0;
    }
    accumulated_.clear();
    weight_sum_ = 0;
    n_accumulated_ = 0;
    n_steps++;
    return norm;
}

TrainingGraph Trainer::graph_of_shape(int64_t n_tokens, int64_t n_targets, int64_t n_sequences) const {
    if (n_tokens < 1 || n_targets < 1 || n_targets > n_tokens || n_sequences < 1 ||
        n_sequences > std::min(n_tokens, kMaxSequences)) {
        throw Error(
            "a micro-batch has at least one token, target and sequence, at most 256 sequences, and no more targets "
            "than tokens");
    }
    const BatchRows shape = batch_of_shape(n_tokens, n_targets, n_sequences, builder_.needs_equal_lengths());
    return TrainingGraph(builder_, *adapter, accumulators_, shape.view(), graph_options(true));
}

std::vector<std::vector<size_t>> Trainer::graphs(const std::vector<int64_t> & n_rows) const {
    if (std::any_of(n_rows.begin(), n_rows.end(), [](int64_t n) { return n < 1; })) {
        throw Error("a sequence has at least one row");
    }
    if (builder_.needs_equal_lengths()) {
        const int64_t most_rows = std::accumulate(n_rows.begin(), n_rows.end(), int64_t{0});
        return graphs_of_equal_lengths(n_rows, most_rows, builder_.most_sequences());
    }
    std::vector<size_t> all(n_rows.size());
    std::iota(all.begin(), all.end(), 0);
    return {all};
}

std::map<ggml_backend_dev_t, MemoryParts> Trainer::memory(int64_t n_tokens, int64_t n_targets,
                                                          int64_t n_sequences) const {
    const TrainingGraph graph = graph_of_shape(n_tokens, n_targets, n_sequences);
    const Model & model = adapter->model();
    std::map<ggml_backend_dev_t, MemoryParts> parts;
    for (const auto & [device, n_bytes] : graph.measure(executor_)) {
        parts[device].compute = n_bytes;
    }
    for (const auto & [device, n_bytes] : builder_.n_context_bytes()) {
        if (device != nullptr) {
            parts[device].compute += n_bytes;
        }
    }
    for (const auto & [device, n_bytes] : adapter->n_bytes()) {
        parts[device].adapter = n_bytes;
        parts[device].optimizer = n_bytes;
    }
    for (auto & [device, of_device] : parts) {
        of_device.weights = model.n_bytes_on(device);
    }
    const uint64_t n_all = adapter->n_params() * sizeof(float);
    MemoryParts & host = parts[nullptr];
    host.adapter = n_all;  // those of devices have a copy here, their gradients come here
    host.optimizer = 3 * n_all;
    return parts;
}

void Trainer::reserve(int64_t n_tokens, int64_t n_targets, int64_t n_sequences) {
    check_weights();
    graph_of_shape(n_tokens, n_targets, n_sequences).allocate(executor_);
}

int Trainer::runs(int64_t n_tokens, int64_t n_targets, int64_t n_sequences) {
    graph_of_shape(n_tokens, n_targets, n_sequences).allocate(executor_);
    return executor_.n_runs();
}

std::map<ggml_backend_dev_t, std::map<std::string, int>> Trainer::nodes(int64_t n_tokens, int64_t n_targets,
                                                                        int64_t n_sequences) const {
    return graph_of_shape(n_tokens, n_targets, n_sequences).nodes_by_device();
}

int Trainer::n_custom_nodes(int64_t n_tokens, int64_t n_targets, int64_t n_sequences) const {
    return graph_of_shape(n_tokens, n_targets, n_sequences).n_custom_nodes();
}

}  // namespace ggtune
