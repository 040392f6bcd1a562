#include "files/quantize_model.h"

#include <llama.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <cstring>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "files/gguf_check.h"
#include "files/gguf_file.h"
#include "files/lora_product.h"
#include "files/output_file.h"
#include "kernels/dequantize.h"

namespace ggtune {

namespace {

struct FileType {
    const char * name;
    llama_ftype value;
};

// All that llama-quantize knows; its three aliases last.
constexpr FileType known_file_types[] = {
    {"F32", LLAMA_FTYPE_ALL_F32},
    {"F16", LLAMA_FTYPE_MOSTLY_F16},
    {"BF16", LLAMA_FTYPE_MOSTLY_BF16},
    {"Q8_0", LLAMA_FTYPE_MOSTLY_Q8_0},
    {"Q6_K", LLAMA_FTYPE_MOSTLY_Q6_K},
    {"Q5_K_M", LLAMA_FTYPE_MOSTLY_Q5_K_M},
    {"Q5_K_S", LLAMA_FTYPE_MOSTLY_Q5_K_S},
    {"Q5_1", LLAMA_FTYPE_MOSTLY_Q5_1},
    {"Q5_0", LLAMA_FTYPE_MOSTLY_Q5_0},
    {"Q4_K_M", LLAMA_FTYPE_MOSTLY_Q4_K_M},
    {"Q4_K_S", LLAMA_FTYPE_MOSTLY_Q4_K_S},
    {"Q4_1", LLAMA_FTYPE_MOSTLY_Q4_1},
    {"Q4_0", LLAMA_FTYPE_MOSTLY_Q4_0},
    {"MXFP4_MOE", LLAMA_FTYPE_MOSTLY_MXFP4_MOE},
    {"IQ4_NL", LLAMA_FTYPE_MOSTLY_IQ4_NL},
    {"IQ4_XS", LLAMA_FTYPE_MOSTLY_IQ4_XS},
    {"Q3_K_L", LLAMA_FTYPE_MOSTLY_Q3_K_L},
    {"Q3_K_M", LLAMA_FTYPE_MOSTLY_Q3_K_M},
    {"Q3_K_S", LLAMA_FTYPE_MOSTLY_Q3_K_S},
    {"IQ3_M", LLAMA_FTYPE_MOSTLY_IQ3_M},
    {"IQ3_S", LLAMA_FTYPE_MOSTLY_IQ3_S},
    {"IQ3_XS", LLAMA_FTYPE_MOSTLY_IQ3_XS},
    {"IQ3_XXS", LLAMA_FTYPE_MOSTLY_IQ3_XXS},
    {"Q2_K", LLAMA_FTYPE_MOSTLY_Q2_K},
    {"Q2_K_S", LLAMA_FTYPE_MOSTLY_Q2_K_S},
    {"IQ2_M", LLAMA_FTYPE_MOSTLY_IQ2_M},
    {"IQ2_S", LLAMA_FTYPE_MOSTLY_IQ2_S},
    {"IQ2_XS", LLAMA_FTYPE_MOSTLY_IQ2_XS},
    {"IQ2_XXS", LLAMA_FTYPE_MOSTLY_IQ2_XXS},
    {"IQ1_M", LLAMA_FTYPE_MOSTLY_IQ1_M},
    {"IQ1_S", LLAMA_FTYPE_MOSTLY_IQ1_S},
    {"TQ2_0", LLAMA_FTYPE_MOSTLY_TQ2_0},
    {"TQ1_0", LLAMA_FTYPE_MOSTLY_TQ1_0},
    {"Q2_0", LLAMA_FTYPE_MOSTLY_Q2_0},
    {"Q1_0", LLAMA_FTYPE_MOSTLY_Q1_0},
    {"Q5_K", LLAMA_FTYPE_MOSTLY_Q5_K_M},
    {"Q4_K", LLAMA_FTYPE_MOSTLY_Q4_K_M},
    {"Q3_K", LLAMA_FTYPE_MOSTLY_Q3_K_M},
};

std::string upper(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::toupper(c); });
    return text;
}

llama_ftype file_type_from_name(const std::string & name) {
    std::string known;
    for (const FileType & type : known_file_types) {
        if (upper(name) == type.name) {
            return type.value;
        }
        known += std::string(known.empty() ? "" : ", ") + type.name;
    }
    throw Error("unknown file type '" + name + "'; known are " + known);
}

// llama.cpp's own rule, and that of ggml's quantizers, which assert.
bool needs_imatrix(const std::string & tensor, ggml_type type, llama_ftype file_type) {
    if (ggml_quantize_requires_imatrix(type)) {
        return true;
    }
    if (tensor == "token_embd.weight" || tensor == "per_layer_token_embd.weight" || tensor == "output.weight") {
        return false;
    }
    return type == GGML_TYPE_IQ3_XXS || type == GGML_TYPE_IQ2_S || type == GGML_TYPE_IQ1_M ||
           (type == GGML_TYPE_Q2_K && file_type == LLAMA_FTYPE_MOSTLY_Q2_K_S);
}

// While it lives, llama.cpp's log of this thread goes nowhere but its last error line into `error`, and the lines that
// name a tensor's new type into `types`. llama.cpp has one log function for all threads, so one such capture lives at
// a time, and what other threads log goes on to the function that was there before.
class LogCapture {
  public:
    explicit LogCapture(const CheckInterrupt & check_interrupt) : check_interrupt_(check_interrupt) {
        static std::timed_mutex only_one;
        lock_ = std::unique_lock<std::timed_mutex>(only_one, std::defer_lock);
        while (!lock_.try_lock_for(std::chrono::milliseconds(100))) {
            check_interrupt_();
        }
        llama_log_get(&previous_, &previous_data_);
        llama_log_set(receive, this);
    }
    ~LogCapture() { llama_log_set(previous_, previous_data_); }
    LogCapture(const LogCapture &) = delete;
    LogCapture & operator=(const LogCapture &) = delete;

    std::string error;
    std::string tensor;                        // the one that llama.cpp is at
    std::map<std::string, std::string> types;  // "q4_K" by tensor name, of those that change
    bool interrupted = false;

  private:
    static void receive(ggml_log_level level, const char * text, void * data) {
        auto & self = *static_cast<LogCapture *>(data);
        if (std::this_thread::get_id() != self.owner_) {
            if (self.previous_ != nullptr) {
                self.previous_(level, text, self.previous_data_);
            }
            return;
        }
        if (level == GGML_LOG_LEVEL_ERROR && !self.interrupted) {
            self.error = text;
            self.error.erase(self.error.find_last_not_of(" \n=") + 1);
        }
        if (level != GGML_LOG_LEVEL_INFO) {
            return;
        }
        if (text[0] == '[') {
            self.tensor = tensor_of(text);
            // The progress line "[   1/  99] ..." is logged by llama_model_quantize itself between two tensors. It has
            // no other way to be stopped: the exception passes C++ frames of llama.cpp alone, and is caught by it as
            // any other error of its loop.
            try {
                self.check_interrupt_();
            } catch (const Interrupted &) {
                self.interrupted = true;
                throw;
            }
        } else if (std::strncmp(text, "size = ", 7) == 0) {
            const std::string line = text;
            const size_t open = line.rfind('(');
            const size_t close = line.rfind(')');
            if (open != std::string::npos && close != std::string::npos && open < close) {
                self.types[self.tensor] = line.substr(open + 1, close - open - 1);
            }
        }
    }

    // "blk.0.attn_q.weight" of "[   1/  99] blk.0.attn_q.weight       - [256, 256, 1, 1], type = f32, "
    static std::string tensor_of(const std::string & line) {
        const size_t begin = line.find("] ");
        const size_t end = line.rfind(" - [");
        if (begin == std::string::npos || end == std::string::npos || end < begin + 2) {
            return "";
        }
        const std::string name = line.substr(begin + 2, end - begin - 2);
        return name.substr(0, name.find_last_not_of(' ') + 1);
    }

    const CheckInterrupt & check_interrupt_;
    const std::thread::id owner_ = std::this_thread::get_id();
    std::unique_lock<std::timed_mutex> lock_;
    ggml_log_callback previous_ = nullptr;
    void * previous_data_ = nullptr;
};

class Quantization {
  public:
    Quantization(const std::string & source, const std::string & type, const QuantizeOptions & options,
                 const CheckInterrupt & check_interrupt)
        : source_(source),
          type_name_(upper(type)),
          options_(options),
          check_interrupt_(check_interrupt),
          file_(open_checked(source)) {
        params_.ftype = file_type_from_name(type);
        params_.nthread = std::max(1, options.threads);
        params_.allow_requantize = options.allow_requantize;
        params_.pure = options.pure;
        params_.quantize_output_tensor = !options.leave_output_tensor;
        check_model(file_);
        check_source();
        if (options.output_tensor_type) {
            params_.output_tensor_type = given_type(*options.output_tensor_type, "output.weight");
        }
        if (options.token_embedding_type) {
            params_.token_embedding_type = given_type(*options.token_embedding_type, "token_embd.weight");
        }
        set_imatrix();
        set_metadata();
    }

    void run(const std::string & output) {
        if (same_file(source_, output)) {
            throw Error(output + ": the output can't be the source itself");
        }
        const std::map<std::string, ggml_type> types = planned_types();
        uint64_t n_bytes = file_.data_offset;
        for (const GgufTensor & tensor : file_.tensors) {
            const auto planned = types.find(tensor.name);
            if (planned != types.end()) {
                check_tensor(tensor, planned->second);
            }
            const ggml_type type = planned == types.end() ? tensor.type : planned->second;
            n_bytes += GGML_PAD(ggml_row_size(type, tensor.ne[0]) * static_cast<uint64_t>(tensor.n_rows()),
                                GGUF_DEFAULT_ALIGNMENT);
        }
        OutputFile out(output, n_bytes);
        call(out.temporary_path());
        check_written(out.temporary_path(), output);
        out.commit();
    }

  private:
    void check_source() const {
        for (const GgufTensor & tensor : file_.tensors) {
            if (ggml_is_quantized(tensor.type) && !options_.allow_requantize) {
                throw ModelFileError(source_ + ": is quantized already (" + tensor.name + " is " +
                                     ggml_type_name(tensor.type) +
                                     "): quantize its F16 or F32 original, or allow a second loss "
                                     "(--allow-requantize)");
            }
        }
    }

    // A type that the user wants for one tensor; llama.cpp takes it as it is, and ggml asserts where it can't be.
    ggml_type given_type(const std::string & name, const char * tensor_name) const {
        const ggml_type type = type_from_name(name);
        if (!has_quantizer(type)) {
            throw Error(std::string(tensor_name) + " can't be written as " + ggml_type_name(type) +
                        ": ggml has no quantizer for it");
        }
        for (const GgufTensor & tensor : file_.tensors) {
            const bool concerned = tensor.name == tensor_name || (tensor.name == "per_layer_token_embd.weight" &&
                                                                  std::strcmp(tensor_name, "token_embd.weight") == 0);
            if (concerned && tensor.ne[0] % ggml_blck_size(type) != 0) {
                throw Error(source_ + ": " + tensor.name + " can't be written as " + ggml_type_name(type) +
                            ": its rows of " + std::to_string(tensor.ne[0]) + " are no multiple of " +
                            std::to_string(ggml_blck_size(type)));
            }
        }
        return type;
    }

    void set_imatrix() {
        for (const auto & [name, values] : options_.imatrix) {
            const GgufTensor * tensor = file_.find_tensor(name);
            const bool fits = tensor != nullptr && values.size() == static_cast<uint64_t>(tensor->ne[0]) *
                                                                        static_cast<uint64_t>(tensor->ne[2]);
            if (tensor != nullptr && !fits && name != "token_embd.weight") {
                throw Error("the importance matrix is of another model: " + name + " has " +
                            std::to_string(values.size()) + " values in it, and is " + tensor->shape() + " in " +
                            source_);
            }
            if (!fits) {
                continue;  // older tools write one of another size for the embedding, which llama.cpp ignores
            }
            imatrix_values_[name] = scaled(name, values);
        }
        if (imatrix_values_.empty()) {
            if (!options_.imatrix.empty()) {
                throw Error("the importance matrix is of another model: it has none of the tensors of " + source_);
            }
            return;
        }
        for (const auto & [name, values] : imatrix_values_) {
            imatrix_.push_back({name.c_str(), values.data(), values.size()});
        }
        imatrix_.push_back({nullptr, nullptr, 0});
        params_.imatrix = imatrix_.data();
    }

    // Only the proportions of the values count, and the quantizers of codebook types assert where products with them
    // leave the range of a float: a power of two brings extreme ones back.
    static std::vector<float> scaled(const std::string & name, std::vector<float> values) {
        double sum = 0;
        for (const float value : values) {
            if (!(value >= 0.0f && std::isfinite(value))) {
                throw Error("the importance matrix has the value " + std::to_string(value) + " for " + name +
                            "; it has to be a mean of squares");
            }
            sum += value;
        }
        const int exponent = sum > 0 ? std::ilogb(sum / static_cast<double>(values.size())) : 0;
        if (std::abs(exponent) > max_importance_exponent) {
            for (float & value : values) {
                value = std::ldexp(value, -exponent);
            }
        }
        return values;
    }

    void set_metadata() {
        // The quantizer copies every key, but aligns by the default.
        if (file_.alignment != GGUF_DEFAULT_ALIGNMENT) {
            set_number(GGUF_KEY_GENERAL_ALIGNMENT, GGUF_DEFAULT_ALIGNMENT);
        }
        if (params_.imatrix != nullptr) {
            set_text("quantize.imatrix.file", options_.imatrix_file);
            set_text("quantize.imatrix.dataset", options_.imatrix_dataset);
            set_number("quantize.imatrix.entries_count", static_cast<int64_t>(imatrix_values_.size()));
            if (options_.imatrix_chunks > 0) {
                set_number("quantize.imatrix.chunks_count", options_.imatrix_chunks);
            }
        }
        overrides_.push_back(llama_model_kv_override{});  // an empty key ends the list
        params_.kv_overrides = overrides_.data();
    }

    void set_number(const char * key, int64_t value) {
        llama_model_kv_override entry{};
        entry.tag = LLAMA_KV_OVERRIDE_TYPE_INT;
        std::strncpy(entry.key, key, sizeof(entry.key) - 1);
        entry.val_i64 = value;
        overrides_.push_back(entry);
    }

    void set_text(const char * key, const std::string & text) {
        if (text.empty()) {
            return;
        }
        llama_model_kv_override entry{};
        entry.tag = LLAMA_KV_OVERRIDE_TYPE_STR;
        std::strncpy(entry.key, key, sizeof(entry.key) - 1);
        size_t n = std::min(text.size(), sizeof(entry.val_str) - 1);
        while (n > 0 && n < text.size() && (static_cast<unsigned char>(text[n]) & 0xC0) == 0x80) {
            --n;  // not inside a character
        }
        std::memcpy(entry.val_str, text.data(), n);
        overrides_.push_back(entry);
    }

    // The types that llama.cpp will give to the tensors that change, from a dry run of its own.
    std::map<std::string, ggml_type> planned_types() {
        LogCapture log(check_interrupt_);
        params_.dry_run = true;
        const uint32_t status = llama_model_quantize(source_.c_str(), "", &params_);
        params_.dry_run = false;
        check(log, status);
        std::map<std::string, ggml_type> types;
        for (const auto & [name, type] : log.types) {
            types[name] = type_from_name(type);
        }
        return types;
    }

    void check_tensor(const GgufTensor & tensor, ggml_type type) const {
        if (needs_imatrix(tensor.name, type, params_.ftype) && imatrix_values_.count(tensor.name) == 0) {
            const std::string what = source_ + ": " + tensor.name + " becomes " + ggml_type_name(type) +
                                     " in a file of type " + type_name_ + ", for which ";
            throw Error(what + (imatrix_values_.empty()
                                    ? "an importance matrix is needed (--imatrix or --imatrix-data)"
                                    : "the importance matrix has no entry: gather one from this model (of the output "
                                      "layer with --process-output), or give it another type "
                                      "(--token-embedding-type, --output-tensor-type)"));
        }
        if (largest_value(type) < largest_value(tensor.type)) {
            check_range(tensor, type);
        }
    }

    void check_range(const GgufTensor & tensor, ggml_type type) const {
        DataReader data(source_);
        const int64_t n_per_row = tensor.ne[0];
        const int64_t chunk_rows = std::max<int64_t>(1, (1 << 20) / n_per_row);
        std::vector<uint8_t> bytes;
        std::vector<float> values;
        for (int64_t row = 0; row < tensor.n_rows(); row += chunk_rows) {
            check_interrupt_();
            const auto n_rows = static_cast<uint64_t>(std::min(chunk_rows, tensor.n_rows() - row));
            bytes.resize(n_rows * tensor.row_bytes());
            values.resize(n_rows * static_cast<uint64_t>(n_per_row));
            data.read(tensor.offset + static_cast<uint64_t>(row) * tensor.row_bytes(), bytes.data(), bytes.size());
            kernels::dequantize_row(tensor.type, bytes.data(), values.data(), static_cast<int64_t>(values.size()));
            for (const float value : values) {
                if (!(std::fabs(value) <= largest_value(type))) {
                    throw Error(source_ + ": " + tensor.name + " has the value " + std::to_string(value) + ", which " +
                                ggml_type_name(type) + " can't hold");
                }
            }
        }
    }

    void call(const std::string & path) {
        LogCapture log(check_interrupt_);
        const uint32_t status = llama_model_quantize(source_.c_str(), path.c_str(), &params_);
        check(log, status);
    }

    void check(const LogCapture & log, uint32_t status) const {
        if (log.interrupted) {
            throw Interrupted();
        }
        if (status != 0) {
            const std::string & tensor = log.tensor;
            const bool named = tensor.empty() || log.error.find(tensor) != std::string::npos;
            throw Error(source_ + ": can't be quantized to " + type_name_ + ": " + (named ? "" : tensor + ": ") +
                        log.error);
        }
    }

    // The quantizer does not look whether its writes succeed.
    void check_written(const std::string & path, const std::string & output) const {
        try {
            if (open_checked(path).tensors.size() == file_.tensors.size()) {
                return;
            }
        } catch (const ModelFileError &) {
        }
        throw Error(output + ": can't be written whole: is the disk full?");
    }

    static constexpr int max_importance_exponent = 30;

    const std::string source_;
    const std::string type_name_;
    const QuantizeOptions & options_;
    const CheckInterrupt & check_interrupt_;
    const GgufFile file_;
    llama_model_quantize_params params_ = llama_model_quantize_default_params();
    std::map<std::string, std::vector<float>> imatrix_values_;
    std::vector<llama_model_imatrix_data> imatrix_;
    std::vector<llama_model_kv_override> overrides_;
};

}  // namespace

std::vector<std::string> file_types() {
    std::vector<std::string> names;
    for (const FileType & type : known_file_types) {
        names.emplace_back(type.name);
    }
    return names;
}

void quantize_model(const std::string & source, const std::string & output, const std::string & type,
                    const QuantizeOptions & options, const CheckInterrupt & check_interrupt) {
    Quantization(source, type, options, check_interrupt).run(output);
}

}  // namespace ggtune
