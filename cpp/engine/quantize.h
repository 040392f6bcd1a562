// ggml's quantizers behind checks, and llama.cpp's quantization of a whole file.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <functional>
#include <string>

namespace ggtune {

// Called now and then by everything long; throws Interrupted to stop it.
using CheckInterrupt = std::function<void()>;

// "q5_K", "Q5_K", "f16", ...: ggml's names in any case. Raises Error that lists the names.
ggml_type type_from_name(const std::string & name);

// Bytes of a row of n values. Raises Error where n is no positive multiple of the type's block.
int64_t row_bytes(ggml_type type, int64_t n);

// Empty where ggml can quantize to the type from the values alone, else the reason why not, for a message.
std::string why_not_quantizable(ggml_type type);

// Raises Error where a value is not finite or too large for the type; `what` names the tensor in its message.
void check_finite(ggml_type type, const float * values, int64_t n, const std::string & what);

// Quantizes whole rows as llama.cpp does (ggml_quantize_chunk without an importance matrix). Raises Error for a type
// that ggml can't quantize to so, and where a value is not finite or too large for the type; `what` names the tensor in
// its message.
void quantize_rows(ggml_type type, const float * values, void * data, int64_t n_rows, int64_t n_per_row,
                   const std::string & what);

// llama.cpp's own quantizer (llama_model_quantize). `type` as in file names: "Q4_K_M", "Q8_0", ... in any case.
// Written beside `output` and renamed. Interrupted between two tensors at the latest.
// Raises ModelFileError for a source that can't be quantized, Error otherwise.
void quantize_model(const std::string & source, const std::string & output, const std::string & type, int threads,
                    const CheckInterrupt & check_interrupt);

}  // namespace ggtune
