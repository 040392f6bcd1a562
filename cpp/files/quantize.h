// ggml's quantizers behind checks.
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

// ggml_quantize_chunk asserts for every other type.
bool has_quantizer(ggml_type type);

// The largest absolute value that a tensor of the type, or one to be quantized to it, may have.
float largest_value(ggml_type type);

// Empty where ggml can quantize to the type from the values alone, else the reason why not, for a message.
std::string why_not_quantizable(ggml_type type);

// Raises Error where a value is not finite or too large for the type; `what` names the tensor in its message.
void check_finite(ggml_type type, const float * values, int64_t n, const std::string & what);

// Quantizes whole rows as llama.cpp does (ggml_quantize_chunk without an importance matrix). Raises Error for a type
// that ggml can't quantize to so, and where a value is not finite or too large for the type; `what` names the tensor in
// its message.
void quantize_rows(ggml_type type, const float * values, void * data, int64_t n_rows, int64_t n_per_row,
                   const std::string & what);

}  // namespace ggtune
