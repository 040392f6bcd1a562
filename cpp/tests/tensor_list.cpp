// Prints the tensors that llama.cpp makes for a model of which there is only the metadata, a GGUF file without tensors:
// a line "name n0 n1 n2 n3" for each. scripts/trainability.py makes the tests' table of architectures with it.
#include <ggml.h>
#include <gguf.h>
#include <llama.h>

#include <cinttypes>
#include <cstdio>
#include <set>
#include <string>

namespace {

void print_tensor(ggml_tensor * tensor, void * userdata) {
    auto & printed = *static_cast<std::set<std::string> *>(userdata);
    if (printed.insert(tensor->name).second) {  // some are there once per layer under the same name
        std::printf("%s %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 "\n", tensor->name, tensor->ne[0], tensor->ne[1],
                    tensor->ne[2], tensor->ne[3]);
    }
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: %s METADATA.gguf\n", argv[0]);
        return 2;
    }
    llama_log_set(
        [](ggml_log_level level, const char * text, void *) {
            if (level == GGML_LOG_LEVEL_ERROR) {
                std::fputs(text, stderr);
            }
        },
        nullptr);
    gguf_context * metadata = gguf_init_from_file(argv[1], {true, nullptr});
    if (metadata == nullptr) {
        std::fprintf(stderr, "%s is no GGUF file\n", argv[1]);
        return 1;
    }
    llama_backend_init();
    ggml_backend_dev_t no_devices[] = {nullptr};
    llama_model_params params = llama_model_default_params();
    params.devices = no_devices;
    params.n_gpu_layers = 0;
    std::set<std::string> printed;
    llama_model * model = llama_model_init_from_user(metadata, print_tensor, &printed, params);
    const bool made = model != nullptr;
    llama_model_free(model);
    gguf_free(metadata);
    return made ? 0 : 1;
}
