#include "engine/scale_tuner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/abort_guard.h"
#include "base/error.h"
#include "kernels/adamw.h"
#include "kernels/block_factors.h"
#include "kernels/dropout.h"
#include "kernels/grid.h"
#include "kernels/partition.h"

namespace ggtune {

namespace {

constexpr double kBeta1 = 0.9, kBeta2 = 0.95;
constexpr double kEpsilon = 1e-12;  // gradients of single scales are tiny

int64_t n_blocks(const ggml_tensor * weight) {
    return weight->ne[0] / ggml_blck_size(weight->type);
}

// Calls work(row) for the rows of a weight that are this thread's.
template <typename Work>
void for_own_rows(const ggml_tensor * weight, int ith, int nth, const Work & work) {
    const kernels::Range own = kernels::split_range(weight->ne[1], ith, nth);
    for (int64_t row = own.begin; row < own.end; row++) {
        work(row);
    }
}

// Always the same one for a factor, so that it does not go to and fro while its value stays.
float threshold(size_t weight, size_t factor) {
    const uint64_t hash = kernels::detail::mix64(kernels::detail::mix64(weight) ^ factor);
    return (static_cast<float>(hash >> 40) + 0.5f) / static_cast<float>(1 << 24);
}

}  // namespace

ScaleTuner::ScaleTuner(Model & model, const std::string & adapter_file, std::vector<Weight> merged,
                       const Options & options)
    : model_(model),
      options_(options),
      merged_(std::move(merged)),
      none_(model),
      lora_(load_lora(model, adapter_file)),
      student_(model.llama(), static_cast<uint32_t>(std::max<int64_t>(options.context, 1)), nullptr),
      teacher_(model.llama(), static_cast<uint32_t>(std::max<int64_t>(options.context, 1)), lora_.get()),
      executor_(std::max(options.threads, 1)) {
    if (options_.context < 1 || options_.threads < 1) {
        throw Error("a context of at least 1 token and at least 1 thread are needed");
    }
    if (!model.places.devices.empty()) {
        throw Error("scales are tuned on the CPU alone: load the model without devices");
    }
    const ggml_init_params params = {(2 * merged_.size() + 1) * ggml_tensor_overhead(), nullptr, true};
    ctx_.reset(ggml_init(params));
    std::unordered_map<std::string, const ggml_tensor *> of_base;
    for (const auto & [name, tensor] : model.tensors()) {
        of_base[name] = tensor;
    }
    for (size_t i = 0; i < merged_.size(); i++) {
        const auto found = of_base.find(merged_[i].name);
        if (found == of_base.end()) {
            throw Error(model.path + " has no tensor " + merged_[i].name);
        }
        replace(found->second, i);
    }
    find_tunable();
    gradient_buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx_.get(), ggml_backend_cpu_buffer_type()));
    if (!tuned_.empty() && !gradient_buffer_) {
        throw Error("not enough memory for the gradients of " + std::to_string(n_factors_) + " scales");
    }
    if (gradient_buffer_) {
        ggml_backend_buffer_clear(gradient_buffer_.get(), 0);
    }
    for (Tuned & tuned : tuned_) {
        start(tuned);
    }
}

void ScaleTuner::replace(const ggml_tensor * base, size_t index) {
    Weight & weight = merged_[index];
    ggml_tensor * own = ggml_new_tensor(ctx_.get(), weight.type, GGML_MAX_DIMS, base->ne);
    if (ggml_nbytes(own) != weight.data.size()) {
        throw Error(weight.name + " of the merged model has " + std::to_string(weight.data.size()) + " bytes, not " +
                    std::to_string(ggml_nbytes(own)));
    }
    own->data = weight.data.data();
    ggml_set_name(own, weight.name.c_str());
    in_place_of_[base] = own;
    index_[own] = index;
}

// Matrices that the graph multiplies by and nothing else, of types with scales.
void ScaleTuner::find_tunable() {
    const int32_t zero = 0;
    const uint8_t one = 1;
    const AbortAsException guard;
    const std::unique_ptr<ForwardGraph> forward = student_.build({1, &zero, &zero, &zero, &one});
    std::unordered_map<const ggml_tensor *, bool> only_multiplied;
    bool in_head = false;
    for (const ggml_tensor * node : forward->nodes()) {
        for (int i = 0; i < GGML_MAX_SRC; i++) {
            const auto weight = in_place_of_.find(node->src[i]);
            if (weight != in_place_of_.end() && in_head) {
                throw Error(std::string("scales can't be tuned beside an adapter of ") + weight->first->name +
                            ": the teacher's logits come from the same matrix");
            }
            if (weight != in_place_of_.end()) {
                const bool multiplies = node->op == GGML_OP_MUL_MAT && i == 0;
                const auto [use, is_first] = only_multiplied.emplace(weight->second, multiplies);
                use->second = use->second && multiplies;
            }
        }
        in_head = in_head || node == forward->hidden();
    }
    for (const auto & [base, own] : in_place_of_) {
        const auto use = only_multiplied.find(own);
        if (use == only_multiplied.end() || !use->second || !ggml_is_matrix(own) ||
            kernels::block_factors(own->type) == nullptr) {
            continue;
        }
        tuned_.emplace_back();
        tuned_.back().tensor = own;
    }
    // in the order given, which is always the same
    std::sort(tuned_.begin(), tuned_.end(),
              [&](const Tuned & a, const Tuned & b) { return index_.at(a.tensor) < index_.at(b.tensor); });
    for (Tuned & tuned : tuned_) {
        const int64_t of_row = kernels::block_factors(tuned.tensor->type)->n * n_blocks(tuned.tensor);
        tuned.gradient = ggml_new_tensor_2d(ctx_.get(), GGML_TYPE_F32, of_row, tuned.tensor->ne[1]);
        accumulators_[tuned.tensor] = tuned.gradient;
        n_factors_ += ggml_nelements(tuned.gradient);
    }
}

void ScaleTuner::start(Tuned & tuned) {
    const ggml_tensor * w = tuned.tensor;
    const kernels::BlockFactors & factors = *kernels::block_factors(w->type);
    const int64_t blocks = n_blocks(w), block = ggml_blck_size(w->type);
    const auto n = static_cast<size_t>(ggml_nelements(tuned.gradient));
    for (std::vector<float> * values : {&tuned.units, &tuned.values, &tuned.first_moment, &tuned.second_moment}) {
        values->assign(n, 0.0f);
    }
    executor_.in_parallel([&](int ith, int nth) {
        std::vector<float> squares(blocks), directions(w->ne[0]);
        std::vector<uint8_t> row_of_one;
        for_own_rows(w, ith, nth, [&](int64_t row) {
            const auto * data = static_cast<const uint8_t *>(w->data) + row * w->nb[1];
            kernels::mean_square_steps(w->type, data, w->ne[0], squares.data());
            for (int kind = 0; kind < factors.n; kind++) {
                kernels::factor_directions(factors, kind, data, w->ne[0], row_of_one, directions.data());
                for (int64_t i = 0; i < blocks; i++) {
                    const double square = kernels::square_sum(block, directions.data() + i * block) / block;
                    const size_t at = (row * factors.n + kind) * blocks + i;
                    if (square > 0) {
                        tuned.units[at] = static_cast<float>(std::sqrt(squares[i] / square));
                    }
                    if (tuned.units[at] > 0) {
                        const float value = kernels::factor_of(factors, kind, data + i * ggml_type_size(w->type));
                        tuned.values[at] = value / tuned.units[at];
                    }
                }
            }
        });
    });
}

// Thread ith of nth writes its rows' factors into the merged weights.
void ScaleTuner::write_factors(Tuned & tuned, int ith, int nth) {
    const ggml_tensor * w = tuned.tensor;
    const kernels::BlockFactors & factors = *kernels::block_factors(w->type);
    const int64_t blocks = n_blocks(w);
    const size_t index = index_.at(w);
    for_own_rows(w, ith, nth, [&](int64_t row) {
        auto * data = static_cast<uint8_t *>(w->data) + row * w->nb[1];
        for (int kind = 0; kind < factors.n; kind++) {
            for (int64_t i = 0; i < blocks; i++) {
                const size_t at = (row * factors.n + kind) * blocks + i;
                if (tuned.units[at] > 0) {
                    kernels::set_factor(factors, kind, tuned.values[at] * tuned.units[at], threshold(index, at),
                                        data + i * ggml_type_size(w->type));
                }
            }
        }
    });
}

GraphOptions ScaleTuner::options_of(bool student) const {
    GraphOptions options;
    options.precision = options_.precision;
    options.gradients = student;
    options.hidden_alone = !student;
    if (student) {
        options.recompute_layers = recompute_layers;
        options.in_place_of = in_place_of_;
    }
    return options;
}

size_t ScaleTuner::add(const MicroBatch & batch) {
    check_rows(batch, options_.context, model_.n_vocab());
    std::vector<Rows> parts;
    if (student_.needs_equal_lengths()) {
        for (EqualLengths & part : split_to_equal_lengths(batch, student_.most_sequences())) {
            parts.push_back({std::move(part.rows), {}});
        }
    } else {
        parts.push_back({copy_of(batch), {}});
    }
    for (Rows & part : parts) {
        TrainingGraph graph(teacher_, none_, {}, part.rows.view(), options_of(false));
        std::vector<float> nothing;
        std::vector<int32_t> no_predictions;
        graph.run(executor_, nothing, no_predictions);
        part.teacher = graph.hidden_states();
    }
    batches_.push_back(std::move(parts));
    return batches_.size() - 1;
}

double ScaleTuner::accumulate(size_t number) {
    if (number >= batches_.size()) {
        throw Error("there is no micro-batch " + std::to_string(number));
    }
    double sum = 0;
    for (const Rows & part : batches_[number]) {
        GraphOptions options = options_of(true);
        options.teacher = &part.teacher;
        TrainingGraph graph(student_, none_, accumulators_, part.rows.view(), options);
        std::vector<float> divergences;
        std::vector<int32_t> no_predictions;
        graph.run(executor_, divergences, no_predictions);
        size_t next = 0;
        for (const float weight : part.rows.weights) {
            if (weight != 0) {
                sum += static_cast<double>(weight) * divergences[next++];
                weight_sum_ += weight;
            }
        }
    }
    return sum;
}

void ScaleTuner::step(double lr) {
    if (!(weight_sum_ > 0)) {
        throw Error("there is nothing to step on: no row with a weight has been accumulated");
    }
    for (const Tuned & tuned : tuned_) {
        if (!std::isfinite(kernels::square_sum(ggml_nelements(tuned.gradient),
                                               static_cast<const float *>(tuned.gradient->data)))) {
            throw NotFiniteError("the gradient of the scales of " + merged_[index_.at(tuned.tensor)].name +
                                 " is not finite");
        }
    }
    const auto t = static_cast<double>(++n_steps_);
    const kernels::AdamWFactors factors = {
        1.0 / weight_sum_, lr, kBeta1, kBeta2, 1.0 - std::pow(kBeta1, t), 1.0 - std::pow(kBeta2, t), kEpsilon, 0.0,
    };
    executor_.in_parallel([&](int ith, int nth) {
        for (Tuned & tuned : tuned_) {
            const int64_t of_row = tuned.gradient->ne[0];
            auto * gradient = static_cast<float *>(tuned.gradient->data);
            for_own_rows(tuned.tensor, ith, nth, [&](int64_t row) {
                const int64_t at = row * of_row;
                for (int64_t i = at; i < at + of_row; i++) {
                    gradient[i] *= tuned.units[i];
                }
                kernels::adamw_update(of_row, tuned.values.data() + at, gradient + at, tuned.first_moment.data() + at,
                                      tuned.second_moment.data() + at, factors);
                std::fill_n(gradient + at, of_row, 0.0f);
            });
            write_factors(tuned, ith, nth);
        }
    });
    weight_sum_ = 0;
}

std::vector<std::string> ScaleTuner::tuned() const {
    std::vector<std::string> names;
    for (const Tuned & tuned : tuned_) {
        names.push_back(merged_[index_.at(tuned.tensor)].name);
    }
    return names;
}

std::vector<std::vector<float>> ScaleTuner::gradients() const {
    std::vector<std::vector<float>> gradients;
    for (const Tuned & tuned : tuned_) {
        const auto * values = static_cast<const float *>(tuned.gradient->data);
        gradients.emplace_back(values, values + ggml_nelements(tuned.gradient));
    }
    return gradients;
}

uint64_t ScaleTuner::n_bytes(int64_t n_tokens, int64_t n_sequences) const {
    // with a target in each row, those that are filled in counted
    n_tokens = student_.needs_equal_lengths() ? (n_tokens + n_sequences - 1) / n_sequences * n_sequences : n_tokens;
    const BatchRows rows = batch_of_shape(n_tokens, n_tokens, n_sequences, false);
    const std::vector<float> teacher(static_cast<size_t>(rows.n_tokens() * model_.n_embd()));
    GraphOptions options = options_of(true);
    options.teacher = &teacher;
    const TrainingGraph graph(student_, none_, accumulators_, rows.view(), options);
    uint64_t n = graph.measure(executor_).at(nullptr);
    for (const Weight & weight : merged_) {
        n += weight.data.size();
    }
    constexpr uint64_t kPerFactor = 5;  // gradient, unit, value, two moments
    return n + kPerFactor * sizeof(float) * static_cast<uint64_t>(n_factors_);
}

}  // namespace ggtune
