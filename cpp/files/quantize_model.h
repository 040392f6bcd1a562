// llama.cpp's quantization of a whole file, behind checks; interruptible, and several at a time.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "files/quantize.h"

namespace ggtune {

struct QuantizeOptions {
    int threads = 1;
    bool allow_requantize = false;     // take a source that is quantized already
    bool pure = false;                 // every matrix of the type's own tensor type, no mixture
    bool leave_output_tensor = false;  // output.weight keeps its type
    std::optional<std::string> output_tensor_type;
    std::optional<std::string> token_embedding_type;
    // Mean square of each input by the weight's name, ne = [n_in, n_mat]; empty: none.
    std::map<std::string, std::vector<float>> imatrix;
    // Where the importance matrix is from; written into the file as llama-quantize does.
    std::string imatrix_file;
    std::string imatrix_dataset;
    int64_t imatrix_chunks = 0;
};

// The file types that llama.cpp makes, as in file names: "Q4_K_M", ...
std::vector<std::string> file_types();

// The bytes that llama_model_quantize would write: its types, ggml's quantizers. `type` is one of file_types() in any
// case. Written beside `output` and renamed; interrupted within a second or so.
// Raises ModelFileError for a source that can't be quantized, Error otherwise; the message names the tensor that needs
// an importance matrix or holds values that its type can't.
void quantize_model(const std::string & source, const std::string & output, const std::string & type,
                    const QuantizeOptions & options, const CheckInterrupt & check_interrupt);

}  // namespace ggtune
