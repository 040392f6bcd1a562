#include "engine/quantize.h"

#include <llama.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <limits>

#include "engine/error.h"
#include "engine/gguf_check.h"
#include "engine/gguf_file.h"
#include "engine/output_file.h"
#include "kernels/dequantize.h"

namespace ggtune {

namespace {

struct FileType {
    const char * name;
    llama_ftype value;
};

// The file types that llama.cpp makes without an importance matrix.
constexpr FileType file_types[] = {
    {"F32", LLAMA_FTYPE_ALL_F32},          {"F16", LLAMA_FTYPE_MOSTLY_F16},       {"BF16", LLAMA_FTYPE_MOSTLY_BF16},
    {"Q8_0", LLAMA_FTYPE_MOSTLY_Q8_0},     {"Q6_K", LLAMA_FTYPE_MOSTLY_Q6_K},     {"Q5_K_M", LLAMA_FTYPE_MOSTLY_Q5_K_M},
    {"Q5_K_S", LLAMA_FTYPE_MOSTLY_Q5_K_S}, {"Q5_1", LLAMA_FTYPE_MOSTLY_Q5_1},     {"Q5_0", LLAMA_FTYPE_MOSTLY_Q5_0},
    {"Q4_K_M", LLAMA_FTYPE_MOSTLY_Q4_K_M}, {"Q4_K_S", LLAMA_FTYPE_MOSTLY_Q4_K_S}, {"Q4_1", LLAMA_FTYPE_MOSTLY_Q4_1},
    {"Q4_0", LLAMA_FTYPE_MOSTLY_Q4_0},     {"IQ4_NL", LLAMA_FTYPE_MOSTLY_IQ4_NL}, {"IQ4_XS", LLAMA_FTYPE_MOSTLY_IQ4_XS},
    {"Q3_K_L", LLAMA_FTYPE_MOSTLY_Q3_K_L}, {"Q3_K_M", LLAMA_FTYPE_MOSTLY_Q3_K_M}, {"Q3_K_S", LLAMA_FTYPE_MOSTLY_Q3_K_S},
    {"IQ3_M", LLAMA_FTYPE_MOSTLY_IQ3_M},   {"IQ3_S", LLAMA_FTYPE_MOSTLY_IQ3_S},   {"Q2_K", LLAMA_FTYPE_MOSTLY_Q2_K},
    {"TQ2_0", LLAMA_FTYPE_MOSTLY_TQ2_0},   {"TQ1_0", LLAMA_FTYPE_MOSTLY_TQ1_0},
};

std::string upper(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::toupper(c); });
    return text;
}

llama_ftype file_type_from_name(const std::string & name) {
    std::string known;
    for (const FileType & type : file_types) {
        if (upper(name) == type.name) {
            return type.value;
        }
        known += std::string(known.empty() ? "" : ", ") + type.name;
    }
    throw Error("unknown file type '" + name + "'; known are " + known +
                " (other types of llama.cpp need an importance matrix: make those with llama-quantize)");
}

// ggml_quantize_chunk asserts for every other type.
bool has_quantizer(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q1_0:
        case GGML_TYPE_Q2_0:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_MXFP4:
        case GGML_TYPE_NVFP4:
        case GGML_TYPE_Q2_K:
        case GGML_TYPE_Q3_K:
        case GGML_TYPE_Q4_K:
        case GGML_TYPE_Q5_K:
        case GGML_TYPE_Q6_K:
        case GGML_TYPE_TQ1_0:
        case GGML_TYPE_TQ2_0:
        case GGML_TYPE_IQ2_XXS:
        case GGML_TYPE_IQ2_XS:
        case GGML_TYPE_IQ3_XXS:
        case GGML_TYPE_IQ3_S:
        case GGML_TYPE_IQ2_S:
        case GGML_TYPE_IQ1_S:
        case GGML_TYPE_IQ1_M:
        case GGML_TYPE_IQ4_NL:
        case GGML_TYPE_IQ4_XS:
            return true;
        default:
            return false;
    }
}

// While it lives, llama.cpp's log goes nowhere but its last error line into `error`.
class LogCapture {
  public:
    explicit LogCapture(const CheckInterrupt & check_interrupt) : check_interrupt_(check_interrupt) {
        llama_log_get(&previous_, &previous_data_);
        llama_log_set(receive, this);
    }
    ~LogCapture() { llama_log_set(previous_, previous_data_); }
    LogCapture(const LogCapture &) = delete;
    LogCapture & operator=(const LogCapture &) = delete;

    std::string error;
    bool interrupted = false;

  private:
    static void receive(ggml_log_level level, const char * text, void * data) {
        auto & self = *static_cast<LogCapture *>(data);
        if (level == GGML_LOG_LEVEL_ERROR && !self.interrupted) {
            self.error = text;
            self.error.erase(self.error.find_last_not_of(" \n=") + 1);
        }
        // The progress line "[   1/  99] ..." is logged by llama_model_quantize itself between two tensors. An
        // exception thrown there is caught by it, as any other error of its loop.
        if (level == GGML_LOG_LEVEL_INFO && text[0] == '[') {
            try {
                self.check_interrupt_();
            } catch (const Interrupted &) {
                self.interrupted = true;
                throw;
            }
        }
    }

    const CheckInterrupt & check_interrupt_;
    ggml_log_callback previous_ = nullptr;
    void * previous_data_ = nullptr;
};

}  // namespace

ggml_type type_from_name(const std::string & name) {
    std::string known;
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        if (!kernels::can_dequantize(type)) {
            continue;
        }
        if (upper(name) == upper(ggml_type_name(type))) {
            return type;
        }
        known += std::string(known.empty() ? "" : ", ") + ggml_type_name(type);
    }
    throw Error("unknown tensor type '" + name + "'; known are " + known);
}

int64_t row_bytes(ggml_type type, int64_t n) {
    if (n <= 0 || n % ggml_blck_size(type) != 0) {
        throw Error("rows of " + std::to_string(n) + " elements are no multiple of the " +
                    std::to_string(ggml_blck_size(type)) + " of a block of type " + ggml_type_name(type));
    }
    return static_cast<int64_t>(ggml_row_size(type, n));
}

std::string why_not_quantizable(ggml_type type) {
    if (!has_quantizer(type)) {
        return "ggml has no quantizer for it";
    }
    if (ggml_quantize_requires_imatrix(type)) {
        return "its quantizer needs an importance matrix";
    }
    return "";
}

// The quantizers of some types assert on values that are not finite.
void check_finite(ggml_type type, const float * values, int64_t n, const std::string & what) {
    const float largest = type == GGML_TYPE_F16 ? 65504.0f : std::numeric_limits<float>::max();
    for (int64_t i = 0; i < n; ++i) {
        if (!(std::fabs(values[i]) <= largest)) {
            throw Error(what + ": element " + std::to_string(i) + " of a row is " + std::to_string(values[i]) +
                        ", which " + ggml_type_name(type) + " can't hold");
        }
    }
}

void quantize_rows(ggml_type type, const float * values, void * data, int64_t n_rows, int64_t n_per_row,
                   const std::string & what) {
    const std::string reason = why_not_quantizable(type);
    if (!reason.empty()) {
        throw Error(what + " can't be written as " + ggml_type_name(type) + ": " + reason);
    }
    for (int64_t i = 0; i < n_rows; ++i) {
        check_finite(type, values + i * n_per_row, n_per_row, what);
    }
    ggml_quantize_chunk(type, values, data, 0, n_rows, n_per_row, nullptr);
}

void quantize_model(const std::string & source, const std::string & output, const std::string & type, int threads,
                    const CheckInterrupt & check_interrupt) {
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = file_type_from_name(type);
    params.nthread = std::max(1, threads);
    {
        const GgufFile file = open_checked(source);
        check_model(file);
        for (const GgufTensor & tensor : file.tensors) {
            if (ggml_is_quantized(tensor.type)) {
                throw ModelFileError(source + ": is quantized already (" + tensor.name + " is " +
                                     ggml_type_name(tensor.type) + "): quantize its F16 or F32 original");
            }
        }
    }
    if (same_file(source, output)) {
        throw Error(output + ": the output can't be the source itself");
    }
    OutputFile out(output);
    LogCapture log(check_interrupt);
    const uint32_t status = llama_model_quantize(source.c_str(), out.temporary_path().c_str(), &params);
    if (log.interrupted) {
        throw Interrupted();
    }
    if (status != 0) {
        throw Error(source + ": can't be quantized to " + upper(type) + ": " + log.error);
    }
    out.commit();
}

}  // namespace ggtune
