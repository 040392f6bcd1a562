#include "files/merge.h"

#include <ggml-cpu.h>
#include <llama.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "base/error.h"
#include "files/gguf_check.h"
#include "files/gguf_file.h"
#include "files/gguf_writer.h"
#include "files/grid_merge.h"
#include "files/lora_product.h"
#include "files/merge_rows.h"
#include "files/output_file.h"
#include "files/parallel.h"
#include "kernels/dequantize.h"
#include "kernels/scale_fit.h"

namespace ggtune {

namespace {

constexpr uint64_t kCopyChunkBytes = 4u << 20;
// Fewer rows of an input say too little about it.
constexpr int64_t kLeastSampleRows = 64;

// Elements per thread and between two looks for Ctrl-C, for less than a tenth of a second: most quantizers do millions
// of them in a second, those that search a grid of patterns a hundred thousand.
int64_t chunk_elements(ggml_type type) {
    switch (type) {
        case GGML_TYPE_IQ1_M:
        case GGML_TYPE_IQ2_S:
        case GGML_TYPE_IQ3_XXS:
        case GGML_TYPE_IQ3_S:
            return 1 << 12;
        default:
            return 1 << 16;
    }
}

// Whether a tensor takes another type only because its own has no grid: it is quantized to that, and then moved on it.
bool lacks_grid(ggml_type from, ggml_type to) {
    return from != to && ggml_is_quantized(from) && !kernels::has_grid(from) && kernels::has_grid(to);
}

// The file type of a model most of whose weights are of one type.
std::optional<llama_ftype> file_type_of(ggml_type type) {
    static const std::map<ggml_type, llama_ftype> types = {
        {GGML_TYPE_F32, LLAMA_FTYPE_ALL_F32},          {GGML_TYPE_F16, LLAMA_FTYPE_MOSTLY_F16},
        {GGML_TYPE_BF16, LLAMA_FTYPE_MOSTLY_BF16},     {GGML_TYPE_Q4_0, LLAMA_FTYPE_MOSTLY_Q4_0},
        {GGML_TYPE_Q4_1, LLAMA_FTYPE_MOSTLY_Q4_1},     {GGML_TYPE_Q5_0, LLAMA_FTYPE_MOSTLY_Q5_0},
        {GGML_TYPE_Q5_1, LLAMA_FTYPE_MOSTLY_Q5_1},     {GGML_TYPE_Q8_0, LLAMA_FTYPE_MOSTLY_Q8_0},
        {GGML_TYPE_Q2_K, LLAMA_FTYPE_MOSTLY_Q2_K},     {GGML_TYPE_Q3_K, LLAMA_FTYPE_MOSTLY_Q3_K_M},
        {GGML_TYPE_Q4_K, LLAMA_FTYPE_MOSTLY_Q4_K_M},   {GGML_TYPE_Q5_K, LLAMA_FTYPE_MOSTLY_Q5_K_M},
        {GGML_TYPE_Q6_K, LLAMA_FTYPE_MOSTLY_Q6_K},     {GGML_TYPE_IQ2_S, LLAMA_FTYPE_MOSTLY_IQ2_S},
        {GGML_TYPE_IQ3_S, LLAMA_FTYPE_MOSTLY_IQ3_S},   {GGML_TYPE_IQ3_XXS, LLAMA_FTYPE_MOSTLY_IQ3_XXS},
        {GGML_TYPE_IQ1_M, LLAMA_FTYPE_MOSTLY_IQ1_M},   {GGML_TYPE_IQ4_NL, LLAMA_FTYPE_MOSTLY_IQ4_NL},
        {GGML_TYPE_IQ4_XS, LLAMA_FTYPE_MOSTLY_IQ4_XS}, {GGML_TYPE_TQ1_0, LLAMA_FTYPE_MOSTLY_TQ1_0},
        {GGML_TYPE_TQ2_0, LLAMA_FTYPE_MOSTLY_TQ2_0},
    };
    const auto it = types.find(type);
    return it == types.end() ? std::nullopt : std::optional<llama_ftype>(it->second);
}

ggml_type prevailing_type(const std::vector<GgufTensor> & tensors) {
    std::array<int64_t, GGML_TYPE_COUNT> n_elements{};
    for (const GgufTensor & tensor : tensors) {
        if (tensor.n_dims > 1) {
            n_elements[tensor.type] += tensor.ne[0] * tensor.n_rows();
        }
    }
    return static_cast<ggml_type>(std::max_element(n_elements.begin(), n_elements.end()) - n_elements.begin());
}

// Names and origin, as the GGUF standard's general.* keys have them: the base becomes the merged model's base model.
void set_names(HeaderEditor & editor, const GgufFile & base, const std::vector<AdapterSource> & adapters,
               const std::map<std::string, std::string> & metadata) {
    const auto name_of = [](const GgufFile & file) {
        return file.string("general.name").value_or(std::filesystem::path(file.path).stem().string());
    };
    std::string finetune;
    for (const AdapterSource & adapter : adapters) {
        finetune += (finetune.empty() ? "" : " + ") + name_of(adapter.file);
    }
    // What the file said of the base's own base models is not true of the merged one.
    for (const GgufValue & value : base.values) {
        if (value.key.rfind("general.base_model.", 0) == 0) {
            editor.remove(value.key);
        }
    }
    editor.set_string("general.name", name_of(base) + " " + finetune);
    editor.set_string("general.finetune", finetune);
    editor.set_u32("general.base_model.count", 1);
    editor.set_string("general.base_model.0.name", name_of(base));
    for (const char * part : {"version", "organization", "repo_url"}) {
        if (const auto value = base.string(std::string("general.") + part)) {
            editor.set_string(std::string("general.base_model.0.") + part, *value);
        }
    }
    int64_t n_datasets = base.integer("general.dataset.count").value_or(0);
    const int64_t n_datasets_before = n_datasets;
    for (const auto & [key, value] : metadata) {
        editor.set_string(key, value);
        const std::string prefix = "general.dataset.";
        uint16_t number = 0;  // more than that are none of ours
        if (key.rfind(prefix, 0) == 0 &&
            std::from_chars(key.data() + prefix.size(), key.data() + key.size(), number).ec == std::errc()) {
            n_datasets = std::max<int64_t>(n_datasets, number + 1);
        }
    }
    if (n_datasets != n_datasets_before) {
        editor.set_u32("general.dataset.count", static_cast<uint32_t>(n_datasets));
    }
}

void check_metadata(const GgufFile & base, const std::map<std::string, std::string> & metadata) {
    for (const auto & [key, value] : metadata) {
        const GgufValue * there = base.find(key);
        const bool own =
            key == "general.base_model.count" || key == "general.dataset.count" || key == "general.file_type";
        if (key.empty() || own || key == "general.architecture" || key == GGUF_KEY_GENERAL_ALIGNMENT ||
            (there != nullptr && there->type != GGUF_TYPE_STRING)) {
            throw Error("the key '" + key + "' of the output can't be set to a text");
        }
    }
}

class Merger {
  public:
    Merger(const std::string & base, const MergeOptions & options, const CheckInterrupt & check_interrupt)
        : options_(options), check_interrupt_(check_interrupt), base_(open_checked(base)), data_(base), editor_(base_) {
        if (base_.architecture().empty()) {
            throw ModelFileError(base + ": the key general.architecture is missing: this is no model file");
        }
        check_not_split(base_);
        check_metadata(base_, options.metadata);
        if (options.adapters.empty()) {
            throw Error("there is no adapter to merge");
        }
        for (const auto & [path, scale] : options.adapters) {
            if (!std::isfinite(scale)) {
                throw Error(path + ": the scale has to be a finite number");
            }
            GgufFile file = open_checked(path);
            std::vector<LoraPair> pairs = check_adapter(file, base_);
            adapters_.push_back({std::move(file), DataReader(path), scale, std::move(pairs)});
        }
        choose_types();
        set_file_type();
        set_names(editor_, base_, adapters_, options.metadata);
    }

    MergeResult run(const std::string & output) {
        for (const AdapterSource & adapter : adapters_) {
            if (same_file(adapter.file.path, output)) {
                throw Error(output + ": the output can't be the adapter itself");
            }
        }
        if (same_file(base_.path, output)) {
            throw Error(output + ": the output can't be the base model itself");
        }
        const std::vector<uint8_t> header = editor_.bytes();
        OutputFile out(output, editor_.file_size());
        out.write_at(0, header.data(), header.size());
        MergeResult result;
        result.n_tensors = static_cast<int64_t>(base_.tensors.size());
        result.n_bytes = static_cast<int64_t>(editor_.file_size());
        std::vector<std::optional<MergedTensor>> merged(base_.tensors.size());
        bool any_fit = false;
        for (size_t i = 0; i < base_.tensors.size(); ++i) {
            any_fit = any_fit || has_fit(i);
        }
        if (options_.visit_inputs && any_fit) {
            result.not_fitted = merge_with_inputs(out, merged, result.n_changed_rows);
        }
        for (size_t i = 0; i < base_.tensors.size(); ++i) {
            const std::vector<LoraProduct> products = merged[i] ? std::vector<LoraProduct>() : load_products(i);
            if (!products.empty()) {
                merged[i] = merge_tensor(i, products, nullptr, out, result.n_changed_rows);
            } else if (!merged[i]) {
                copy_tensor(i, out);
            }
            if (merged[i]) {
                result.tensors.push_back(*merged[i]);
                ++result.n_merged_tensors;
            }
            const GgufTensor & to = editor_.tensors()[i];
            const std::vector<uint8_t> zeros(padding(to.n_bytes), 0);
            out.write_at(to.offset + to.n_bytes, zeros.data(), zeros.size());
        }
        out.commit();
        return result;
    }

  private:
    uint64_t padding(uint64_t n_bytes) const { return (base_.alignment - n_bytes % base_.alignment) % base_.alignment; }

    // The adapted tensors' types in the output.
    void choose_types() {
        const std::optional<ggml_type> wanted =
            options_.outtype ? std::optional<ggml_type>(type_from_name(*options_.outtype)) : std::nullopt;
        for (const auto & [name, type] : options_.types) {
            if (base_.find_tensor(name) == nullptr) {
                throw Error("there is no tensor " + name + " to write as " + type);
            }
        }
        for (size_t i = 0; i < base_.tensors.size(); ++i) {
            const GgufTensor & tensor = base_.tensors[i];
            if (!is_adapted(i)) {
                continue;
            }
            const auto own = options_.types.find(tensor.name);
            ggml_type type = own != options_.types.end() ? type_from_name(own->second) : wanted.value_or(tensor.type);
            if (type == tensor.type && ggml_is_quantized(type) && !kernels::has_grid(type)) {
                type = next_type_with_grid(type, tensor.ne[0]);
            }
            const std::string reason = why_not_quantizable(type);
            if (!reason.empty()) {
                throw Error("tensor " + tensor.name + " can't be written as " + ggml_type_name(type) + ": " + reason +
                            "; choose another type for the merged tensors (--outtype q4_K, for one), or use the "
                            "adapter beside the model");
            }
            if (tensor.ne[0] % ggml_blck_size(type) != 0) {
                throw Error("tensor " + tensor.name + " can't be written as " + ggml_type_name(type) +
                            ": its rows of " + std::to_string(tensor.ne[0]) + " are no multiple of " +
                            std::to_string(ggml_blck_size(type)) + "; choose another type for the merged tensors");
            }
            editor_.set_type(i, type);
        }
    }

    void set_file_type() {
        const ggml_type prevailing = prevailing_type(editor_.tensors());
        const auto file_type = file_type_of(prevailing);
        if (prevailing != prevailing_type(base_.tensors) && file_type) {
            editor_.set_u32("general.file_type", *file_type);
        }
        if (ggml_is_quantized(prevailing) && base_.find("general.quantization_version") == nullptr) {
            editor_.set_u32("general.quantization_version", GGML_QNT_VERSION);
        }
    }

    std::vector<LoraProduct> load_products(size_t tensor) {
        std::vector<LoraProduct> products;
        for (AdapterSource & adapter : adapters_) {
            if (const LoraPair * pair = adapter.find(tensor)) {
                products.push_back(load_product(adapter, *pair, base_.tensors[tensor]));
            }
        }
        if (!products.empty()) {
            divide_by_scales(tensor, products);
        }
        return products;
    }

    // The factors stand between the matrix and the sum with the adapter's product, and behind both in the merged file.
    void divide_by_scales(size_t tensor, std::vector<LoraProduct> & products) {
        const GgufTensor & weight = base_.tensors[tensor];
        const auto name = options_.scales.find(weight.name);
        if (name == options_.scales.end()) {
            return;
        }
        const GgufTensor * scale = base_.find_tensor(name->second);
        std::vector<float> factors(static_cast<size_t>(weight.ne[2]));
        if (scale == nullptr || scale->type != GGML_TYPE_F32 || scale->n_bytes != factors.size() * sizeof(float)) {
            throw ModelFileError(base_.path + ": tensor " + name->second + " does not hold the factors of " +
                                 weight.name);
        }
        data_.read(scale->offset, factors.data(), scale->n_bytes);
        if (std::any_of(factors.begin(), factors.end(), [](float f) { return f == 0.0f || !std::isfinite(f); })) {
            throw ModelFileError(base_.path + ": tensor " + scale->name +
                                 " has a factor that is 0 or not finite: no adapter can be merged into " + weight.name);
        }
        for (LoraProduct & product : products) {
            const auto n = static_cast<size_t>(product.n_out * product.rank);
            for (size_t i = 0; i < product.left.size(); ++i) {
                product.left[i] /= factors[i / n];
            }
        }
    }

    void copy_tensor(size_t index, OutputFile & out) {
        const GgufTensor & tensor = base_.tensors[index];
        std::vector<uint8_t> buffer(std::min(tensor.n_bytes, kCopyChunkBytes));
        for (uint64_t done = 0; done < tensor.n_bytes; done += buffer.size()) {
            check_interrupt_();
            buffer.resize(std::min(tensor.n_bytes - done, kCopyChunkBytes));
            data_.read(tensor.offset + done, buffer.data(), buffer.size());
            out.write_at(editor_.tensors()[index].offset + done, buffer.data(), buffer.size());
        }
    }

    // Whether scales of the tensor can be fitted to its inputs.
    bool has_fit(size_t index) const {
        const GgufTensor & tensor = base_.tensors[index];
        return kernels::has_half_scales(editor_.tensors()[index].type) && tensor.n_rows() == tensor.ne[1] &&
               options_.rounding == kernels::Rounding::unbiased && is_adapted(index);
    }

    bool is_adapted(size_t index) const {
        return std::any_of(adapters_.begin(), adapters_.end(),
                           [&](const AdapterSource & a) { return a.find(index) != nullptr; });
    }

    // The adapted tensors whose inputs are there, in the order of the graph. Returns why others are not, if so.
    std::string merge_with_inputs(OutputFile & out, std::vector<std::optional<MergedTensor>> & merged,
                                  int64_t & n_changed_rows) {
        const auto can_fit = [&](const char * name) {
            const auto found = base_.tensor_index.find(name);
            return found != base_.tensor_index.end() && !merged[found->second] && has_fit(found->second);
        };
        return options_.visit_inputs(can_fit, [&](const char * name, const LayerInput & input) {
            check_interrupt_();
            if (input.n_tokens < kLeastSampleRows) {
                return;
            }
            const size_t index = base_.tensor_index.at(name);
            merged[index] = merge_tensor(index, load_products(index), &input, out, n_changed_rows);
        });
    }

    // input: what the tensor's scales are fitted to, or null.
    MergedTensor merge_tensor(size_t index, const std::vector<LoraProduct> & products, const LayerInput * input,
                              OutputFile & out, int64_t & n_changed_rows) {
        const GgufTensor & from = base_.tensors[index];
        const GgufTensor & to = editor_.tensors()[index];
        const int threads = std::max(1, options_.threads);
        std::optional<kernels::ScaleFit> fit;
        if (input != nullptr) {
            fit.emplace(to.type, input->x, input->n_tokens, input->n_in);
        }
        // whole batches, which are the same ones with any number of threads
        const int64_t batch_rows = fit ? fit->batch_rows() : 1;
        const int64_t chunk_rows =
            std::max<int64_t>(1, chunk_elements(to.type) / from.ne[0] / batch_rows) * batch_rows * threads;
        std::optional<CutOff> cut_off;
        if ((from.type == to.type && kernels::has_grid(from.type)) || lacks_grid(from.type, to.type)) {
            cut_off.emplace(products);
        }
        const RowMerge merge{products,
                             from,
                             to,
                             cut_off ? &*cut_off : nullptr,
                             options_.rounding,
                             rounding_key(options_.seed, from.name)};
        MergedTensor result{from.name, from.type, to.type, from.ne[0] * from.n_rows(), 0, 0, 0};
        std::vector<uint8_t> in;
        std::vector<uint8_t> merged;
        std::vector<uint8_t> unmoved;
        std::vector<RowCounts> counts;
        for (int64_t first = 0; first < from.n_rows(); first += chunk_rows) {
            check_interrupt_();
            const int64_t n_rows = std::min(chunk_rows, from.n_rows() - first);
            in.resize(static_cast<size_t>(n_rows) * from.row_bytes());
            merged.resize(static_cast<size_t>(n_rows) * to.row_bytes());
            unmoved.resize(fit ? merged.size() : 0);
            counts.assign(static_cast<size_t>(n_rows), {});
            data_.read(from.offset + static_cast<uint64_t>(first) * from.row_bytes(), in.data(), in.size());
            const auto for_rows = [&](int64_t begin, int64_t end, const auto & work) {
                std::vector<float> row(static_cast<size_t>(from.ne[0]));
                std::vector<float> delta(static_cast<size_t>(from.ne[0]));
                for (int64_t i = begin; i < end; ++i) {
                    work(i, in.data() + static_cast<uint64_t>(i) * from.row_bytes(),
                         merged.data() + static_cast<uint64_t>(i) * to.row_bytes(), row, delta);
                }
            };
            parallel(threads, n_rows, [&](int64_t begin, int64_t end) {
                for_rows(begin, end, [&](int64_t i, const uint8_t * before, uint8_t * after, auto & row, auto & delta) {
                    uint8_t * codes = fit ? unmoved.data() + static_cast<uint64_t>(i) * to.row_bytes() : nullptr;
                    counts[static_cast<size_t>(i)] = merge_row(merge, first + i, before, after, codes, row, delta);
                });
            });
            if (fit) {
                parallel(threads, (n_rows + batch_rows - 1) / batch_rows, [&](int64_t begin, int64_t end) {
                    std::vector<float> errors(static_cast<size_t>(batch_rows * from.ne[0]));
                    for (int64_t batch = begin; batch < end; ++batch) {
                        const int64_t begin_row = batch * batch_rows;
                        const int64_t end_row = std::min(n_rows, begin_row + batch_rows);
                        for_rows(
                            begin_row, end_row,
                            [&](int64_t i, const uint8_t * before, const uint8_t * after, auto & row, auto & delta) {
                                float * error = errors.data() + (i - begin_row) * from.ne[0];
                                error_of_row(merge, first + i, before, after, row, delta, error);
                            });
                        const uint64_t at = static_cast<uint64_t>(begin_row) * to.row_bytes();
                        fit->fit(end_row - begin_row, errors.data(), unmoved.data() + at, merged.data() + at);
                    }
                });
            }
            for (const RowCounts & row : counts) {
                result.n_moved += row.n_moved;
                n_changed_rows += row.changed || from.type != to.type ? 1 : 0;
                result.change += row.change;
                result.variance += row.variance;
            }
            out.write_at(to.offset + static_cast<uint64_t>(first) * to.row_bytes(), merged.data(), merged.size());
        }
        result.fitted = fit.has_value();
        return result;
    }

    const MergeOptions & options_;
    const CheckInterrupt & check_interrupt_;
    GgufFile base_;
    DataReader data_;
    HeaderEditor editor_;
    std::vector<AdapterSource> adapters_;
};

}  // namespace

MergeResult merge(const std::string & base, const std::string & output, const MergeOptions & options,
                  const CheckInterrupt & check_interrupt) {
    ggml_cpu_init();  // the F16 tables of dequantize_row on CPUs without such instructions
    return Merger(base, options, check_interrupt).run(output);
}

}  // namespace ggtune
