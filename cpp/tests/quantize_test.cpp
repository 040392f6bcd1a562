// quantize_model against llama_model_quantize, byte for byte. Arguments: model files in f32.
#include <llama.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "check.h"
#include "files/gguf_file.h"
#include "files/llama_log.h"
#include "files/quantize_model.h"

using namespace ggtune;
using ggtune::test::check;
using ggtune::test::finish;

namespace {

std::string content(const std::filesystem::path & path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

std::map<std::string, std::vector<float>> made_up_imatrix(const GgufFile & file) {
    std::map<std::string, std::vector<float>> imatrix;
    for (const GgufTensor & tensor : file.tensors) {
        if (tensor.n_dims > 1) {
            std::vector<float> & values = imatrix[tensor.name];
            for (int64_t i = 0; i < tensor.ne[0] * tensor.ne[2]; ++i) {
                values.push_back(1.0f + std::sin(static_cast<float>(i)));
            }
        }
    }
    return imatrix;
}

void compare(const std::string & source, llama_ftype ftype, const std::string & type, bool with_imatrix, int threads,
             const std::filesystem::path & folder) {
    QuantizeOptions options;
    options.threads = threads;
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = ftype;
    params.nthread = threads;
    std::vector<llama_model_imatrix_data> imatrix;
    std::vector<llama_model_kv_override> overrides;
    if (with_imatrix) {
        options.imatrix = made_up_imatrix(open_checked(source));
        for (const auto & [name, values] : options.imatrix) {
            imatrix.push_back({name.c_str(), values.data(), values.size()});
        }
        imatrix.push_back({nullptr, nullptr, 0});
        params.imatrix = imatrix.data();
        llama_model_kv_override count{};
        count.tag = LLAMA_KV_OVERRIDE_TYPE_INT;
        std::snprintf(count.key, sizeof(count.key), "quantize.imatrix.entries_count");
        count.val_i64 = static_cast<int64_t>(options.imatrix.size());
        overrides = {count, llama_model_kv_override{}};
        params.kv_overrides = overrides.data();
    }
    const std::string expected = (folder / "expected.gguf").string();
    const std::string made = (folder / "made.gguf").string();
    const bool quantized = llama_model_quantize(source.c_str(), expected.c_str(), &params) == 0;
    quantize_model(source, made, type, options, [] {});
    const std::string what = std::filesystem::path(source).stem().string() + " " + type +
                             (with_imatrix ? " with imatrix" : "") + ", threads " + std::to_string(threads);
    check(what, quantized && content(made) == content(expected) ? 0 : 1, 0);
}

}  // namespace

int main(int argc, char ** argv) {
    install_llama_log();
    const std::filesystem::path folder =
        std::filesystem::temp_directory_path() / ("ggtune-quantize-test-" + std::to_string(getpid()));
    std::filesystem::create_directories(folder);
    for (int i = 1; i < argc; ++i) {
        for (const bool with_imatrix : {false, true}) {
            for (const int threads : {1, 3}) {
                compare(argv[i], LLAMA_FTYPE_MOSTLY_Q4_K_M, "Q4_K_M", with_imatrix, threads, folder);
                compare(argv[i], LLAMA_FTYPE_MOSTLY_Q5_1, "Q5_1", with_imatrix, threads, folder);
                compare(argv[i], LLAMA_FTYPE_MOSTLY_IQ4_NL, "IQ4_NL", with_imatrix, threads, folder);
                compare(argv[i], LLAMA_FTYPE_MOSTLY_F16, "F16", with_imatrix, threads, folder);
            }
        }
    }
    std::filesystem::remove_all(folder);
    return finish();
}
