#include "files/quantize_model.h"

#include <ggml-cpu.h>
#include <llama.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>

#include "base/abort_guard.h"
#include "base/error.h"
#include "files/gguf_check.h"
#include "files/gguf_file.h"
#include "files/gguf_writer.h"
#include "files/llama_log.h"
#include "files/lora_product.h"
#include "files/output_file.h"
#include "files/parallel.h"

namespace ggtune {

namespace {

struct FileType {
    const char * name;
    llama_ftype value;
};

// All that llama-quantize knows; its three aliases last.
constexpr FileType kNownFileTypes[] = {
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
    for (const FileType & type : kNownFileTypes) {
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

// "blk.0.attn_q.weight" of "[   1/  99] blk.0.attn_q.weight       - [256, 256, 1, 1], type = f32, "
std::string tensor_of(const std::string & line) {
    const size_t begin = line.find("] ");
    const size_t end = line.rfind(" - [");
    if (begin == std::string::npos || end == std::string::npos || end < begin + 2) {
        return "";
    }
    const std::string name = line.substr(begin + 2, end - begin - 2);
    return name.substr(0, name.find_last_not_of(' ') + 1);
}

// What llama_model_quantize logs of the tensors.
struct QuantizerLog {
    std::vector<std::string> tensors;          // in the order of the new file
    std::map<std::string, std::string> types;  // "q4_K" by tensor name, of those that change
    std::string error;                         // the last one

    void read(ggml_log_level level, const std::string & text) {
        if (level == GGML_LOG_LEVEL_ERROR) {
            error = text.substr(0, text.find_last_not_of(" \n=") + 1);
        } else if (level == GGML_LOG_LEVEL_INFO && text[0] == '[') {
            tensors.push_back(tensor_of(text));
        } else if (level == GGML_LOG_LEVEL_INFO && text.compare(0, 7, "size = ") == 0 && !tensors.empty()) {
            const size_t open = text.rfind('(');
            const size_t close = text.rfind(')');
            if (open != std::string::npos && close != std::string::npos && open < close) {
                types[tensors.back()] = text.substr(open + 1, close - open - 1);
            }
        }
    }
};

// llama.cpp chooses the types, and ggml's quantizers, which are the same, do the work: here and not in
// llama_model_quantize, which can be neither interrupted nor trusted to notice a full disk.
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
    }

    void run(const std::string & output) {
        if (same_file(source_, output)) {
            throw Error(output + ": the output can't be the source itself");
        }
        HeaderEditor editor(file_);
        plan(editor);
        set_metadata(editor);
        const std::vector<uint8_t> header = editor.bytes();
        for (size_t i = 0; i < file_.tensors.size(); ++i) {
            if (editor.tensors()[i].type != file_.tensors[i].type) {
                check_tensor(file_.tensors[i], editor.tensors()[i].type);
            }
        }
        OutputFile out(output, editor.file_size());
        out.write_at(0, header.data(), header.size());
        ggml_cpu_init();  // the F16 tables of dequantizers on CPUs without such instructions
        DataReader data(source_);
        for (size_t i = 0; i < file_.tensors.size(); ++i) {
            const GgufTensor & to = editor.tensors()[i];
            write_tensor(file_.tensors[i], to, data, out);
            const std::vector<uint8_t> zeros(GGML_PAD(to.n_bytes, GGUF_DEFAULT_ALIGNMENT) - to.n_bytes, 0);
            out.write_at(to.offset + to.n_bytes, zeros.data(), zeros.size());
        }
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
        if (std::abs(exponent) > kMaxImportanceExponent) {
            for (float & value : values) {
                value = std::ldexp(value, -exponent);
            }
        }
        return values;
    }

    // Keys as llama_model_quantize leaves them: those that it sets come last.
    void set_metadata(HeaderEditor & editor) const {
        const auto set_number = [&](const char * key, int64_t value) {
            editor.remove(key);
            editor.set_u32(key, static_cast<uint32_t>(value));
        };
        const auto set_text = [&](const char * key, const std::string & text) {
            if (!text.empty()) {
                editor.remove(key);
                editor.set_string(key, shortened(text));
            }
        };
        set_number("general.quantization_version", GGML_QNT_VERSION);
        set_number("general.file_type", params_.ftype);
        for (const char * key : {"split.no", "split.count", "split.tensors.count"}) {
            editor.remove(key);
        }
        editor.set_version(GGUF_VERSION);
        editor.set_alignment(GGUF_DEFAULT_ALIGNMENT);
        if (file_.alignment != GGUF_DEFAULT_ALIGNMENT) {
            set_number(GGUF_KEY_GENERAL_ALIGNMENT, GGUF_DEFAULT_ALIGNMENT);
        }
        if (!imatrix_values_.empty()) {
            set_text("quantize.imatrix.file", options_.imatrix_file);
            set_text("quantize.imatrix.dataset", options_.imatrix_dataset);
            set_number("quantize.imatrix.entries_count", static_cast<int64_t>(imatrix_values_.size()));
            if (options_.imatrix_chunks > 0) {
                set_number("quantize.imatrix.chunks_count", options_.imatrix_chunks);
            }
        }
    }

    // Cut to what llama_model_kv_override holds, not inside a character.
    static std::string shortened(const std::string & text) {
        size_t n = std::min(text.size(), sizeof(llama_model_kv_override::val_str) - 1);
        while (n > 0 && n < text.size() && (static_cast<unsigned char>(text[n]) & 0xC0) == 0x80) {
            --n;
        }
        return text.substr(0, n);
    }

    // Types and order of the tensors, from a dry run of llama_model_quantize.
    void plan(HeaderEditor & editor) {
        QuantizerLog log;
        uint32_t status = 1;
        {
            const LlamaLogCapture capture([&](ggml_log_level level, const char * text) { log.read(level, text); });
            const AbortAsException guard;
            params_.dry_run = true;
            try {
                status = llama_model_quantize(source_.c_str(), "", &params_);
            } catch (const std::exception & e) {
                log.error = reason(e);
            }
        }
        if (status != 0 || log.tensors.size() != file_.tensors.size()) {
            throw Error(source_ + ": can't be quantized to " + type_name_ + ": " + log.error);
        }
        std::vector<size_t> order;
        for (const std::string & name : log.tensors) {
            order.push_back(file_.tensor_index.at(name));
            const auto type = log.types.find(name);
            if (type != log.types.end()) {
                editor.set_type(order.back(), type_from_name(type->second));
            }
        }
        editor.set_order(std::move(order));
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
    }

    [[noreturn]] void fail(const GgufTensor & tensor, const std::string & what) const {
        throw Error(source_ + ": can't be quantized to " + type_name_ + ": " + tensor.name + " " + what);
    }

    void check_values(const GgufTensor & tensor, ggml_type type, const float * values, int64_t n) const {
        for (int64_t i = 0; i < n; ++i) {
            if (!std::isfinite(values[i])) {
                fail(tensor, "holds values that are not finite");
            }
            if (std::fabs(values[i]) > largest_value(type)) {
                throw Error(source_ + ": " + tensor.name + " has the value " + std::to_string(values[i]) + ", which " +
                            ggml_type_name(type) + " can't hold");
            }
        }
    }

    void write_tensor(const GgufTensor & from, const GgufTensor & to, DataReader & data, OutputFile & out) const {
        const int threads = params_.nthread;
        const int64_t slab_rows = std::max<int64_t>(1, kSlabElements / from.ne[0]) * threads;
        std::vector<uint8_t> before;
        std::vector<uint8_t> after;
        for (int64_t first = 0; first < from.n_rows(); first += slab_rows) {
            check_interrupt_();
            const int64_t n_rows = std::min(slab_rows, from.n_rows() - first);
            before.resize(static_cast<uint64_t>(n_rows) * from.row_bytes());
            after.resize(static_cast<uint64_t>(n_rows) * to.row_bytes());
            data.read(from.offset + static_cast<uint64_t>(first) * from.row_bytes(), before.data(), before.size());
            parallel(threads, n_rows, [&](int64_t begin, int64_t end) {
                const uint64_t n_bytes = static_cast<uint64_t>(end - begin) * to.row_bytes();
                uint8_t * rows = after.data() + static_cast<uint64_t>(begin) * to.row_bytes();
                const uint8_t * source = before.data() + static_cast<uint64_t>(begin) * from.row_bytes();
                if (from.type == to.type) {
                    std::copy_n(source, n_bytes, rows);
                } else {
                    quantize(from, to.type, first + begin, end - begin, source, rows);
                }
                if (!ggml_validate_row_data(to.type, rows, n_bytes)) {
                    fail(from, from.type == to.type ? "holds values that are not finite"
                                                    : "holds values that the scale of a block can't reach");
                }
            });
            out.write_at(to.offset + static_cast<uint64_t>(first) * to.row_bytes(), after.data(), after.size());
        }
    }

    // Rows [first, first + n_rows) of a tensor.
    void quantize(const GgufTensor & from, ggml_type type, int64_t first, int64_t n_rows, const uint8_t * source,
                  uint8_t * rows) const {
        const int64_t n_per_row = from.ne[0];
        std::vector<float> values(static_cast<size_t>(n_rows * n_per_row));
        if (from.type == GGML_TYPE_F32) {
            std::memcpy(values.data(), source, values.size() * sizeof(float));
        } else {
            ggml_get_type_traits(from.type)->to_float(source, values.data(), n_rows * n_per_row);
        }
        check_values(from, type, values.data(), n_rows * n_per_row);
        const auto imatrix = imatrix_values_.find(from.name);
        for (int64_t row = 0; row < n_rows;) {  // each matrix of a stack has its own importance
            const int64_t matrix = (first + row) / from.ne[1];
            const int64_t n = std::min(n_rows - row, (matrix + 1) * from.ne[1] - first - row);
            ggml_quantize_chunk(
                type, values.data() + row * n_per_row, rows, 0, n, n_per_row,
                imatrix == imatrix_values_.end() ? nullptr : imatrix->second.data() + matrix * n_per_row);
            rows += static_cast<uint64_t>(n) * ggml_row_size(type, n_per_row);
            row += n;
        }
    }

    static constexpr int64_t kSlabElements = 1 << 19;  // of a thread at a time, between two looks for a signal
    static constexpr int kMaxImportanceExponent = 30;

    const std::string source_;
    const std::string type_name_;
    const QuantizeOptions & options_;
    const CheckInterrupt & check_interrupt_;
    const GgufFile file_;
    llama_model_quantize_params params_ = llama_model_quantize_default_params();
    std::map<std::string, std::vector<float>> imatrix_values_;
    std::vector<llama_model_imatrix_data> imatrix_;
};

}  // namespace

std::vector<std::string> file_types() {
    std::vector<std::string> names;
    for (const FileType & type : kNownFileTypes) {
        names.emplace_back(type.name);
    }
    return names;
}

void quantize_model(const std::string & source, const std::string & output, const std::string & type,
                    const QuantizeOptions & options, const CheckInterrupt & check_interrupt) {
    Quantization(source, type, options, check_interrupt).run(output);
}

}  // namespace ggtune
