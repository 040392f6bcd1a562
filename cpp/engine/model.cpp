#include "engine/model.h"

#include <ggml-backend.h>
#include <llama.h>

#include <algorithm>
#include <mutex>

#include "base/abort_guard.h"
#include "base/error.h"
#include "engine/linears.h"
#include "engine/llama_access.h"
#include "files/gguf_check.h"
#include "files/gguf_file.h"
#include "files/llama_log.h"

namespace ggtune {

namespace {

void initialize_backend() {
    static std::once_flag once;
    std::call_once(once, [] {
        install_llama_log();
        llama_backend_init();
    });
}

[[noreturn]] void fail_to_load(const std::string & path, const std::string & said) {
    std::string why = said;
    const std::string before = "error loading model: ";
    const size_t begin = why.find(before);
    why.erase(0, begin == std::string::npos ? 0 : begin + before.size());
    why.erase(std::min(why.size(), why.find(";llama_model_load_from_file_impl")));
    throw ModelFileError(path + ": llama.cpp can't load this model" + (why.empty() ? "" : ": " + why) +
                         ". Convert the model again, or get another file of it; where it is newer than this ggtune, a "
                         "newer one is needed");
}

}  // namespace

Model::Model(const std::string & path, int gpu_layers, Contents contents) : path(path), contents(contents) {
    const GgufFile file = open_checked(path);
    check_model(file, contents == Contents::vocabulary);
    initialize_backend();
    take_llama_log();
    llama_model_params params = llama_model_default_params();
    ggml_backend_dev_t no_devices[] = {nullptr};
    if (gpu_layers == 0) {
        params.devices = no_devices;
    }
    params.n_gpu_layers = gpu_layers;
    params.vocab_only = contents == Contents::vocabulary;
    params.no_alloc = contents == Contents::header;
    params.load_mode = contents == Contents::header ? LLAMA_LOAD_MODE_NONE : LLAMA_LOAD_MODE_MMAP;
    params.use_extra_bufts = false;  // repacked weights could not be read by the gradient kernels
    try {
        const AbortAsException guard;  // what check_model does not know of
        handle_ = llama_model_load_from_file(path.c_str(), params);
    } catch (const std::exception & e) {
        fail_to_load(path, reason(e));
    }
    if (handle_ == nullptr) {
        fail_to_load(path, take_llama_log());
    }
    const llama_rope_type rope = llama_model_rope_type(handle_);
    if (contents != Contents::vocabulary && (rope == LLAMA_ROPE_TYPE_MROPE || rope == LLAMA_ROPE_TYPE_IMROPE)) {
        try {
            check_rope_sections(file);
        } catch (...) {
            llama_model_free(handle_);
            throw;
        }
    }
    arch_ = model_architecture(*handle_);
}

Model::~Model() {
    llama_model_free(handle_);
}

const llama_vocab & Model::vocab() const {
    return *llama_model_get_vocab(handle_);
}

std::optional<std::string> Model::chat_template() const {
    const char * text = llama_model_chat_template(handle_, nullptr);
    return text != nullptr ? std::optional<std::string>(valid_utf8(text)) : std::nullopt;
}

uint64_t Model::n_params() const {
    return llama_model_n_params(handle_);
}
uint64_t Model::n_bytes() const {
    return llama_model_size(handle_);
}
int32_t Model::n_layer() const {
    return llama_model_n_layer(handle_);
}
int32_t Model::n_embd() const {
    return llama_model_n_embd(handle_);
}
int32_t Model::n_vocab() const {
    return llama_vocab_n_tokens(&vocab());
}
int32_t Model::n_ctx_train() const {
    return llama_model_n_ctx_train(handle_);
}

std::map<std::string, std::string> Model::metadata() const {
    std::map<std::string, std::string> result;
    const auto read = [](auto get) {
        std::string text(256, '\0');
        int32_t length = get(text.data(), text.size());
        if (length >= static_cast<int32_t>(text.size())) {
            text.resize(length + 1);
            length = get(text.data(), text.size());
        }
        text.resize(length > 0 ? length : 0);
        return text;
    };
    for (int32_t i = 0; i < llama_model_meta_count(handle_); i++) {
        const std::string key =
            read([&](char * buf, size_t n) { return llama_model_meta_key_by_index(handle_, i, buf, n); });
        result[key] = valid_utf8(
            read([&](char * buf, size_t n) { return llama_model_meta_val_str_by_index(handle_, i, buf, n); }));
    }
    return result;
}

std::vector<std::pair<std::string, ggml_tensor *>> Model::tensors() const {
    return model_tensors(*handle_);
}

const std::vector<Linear> & Model::linears() {
    if (!linears_) {
        linears_ = find_linears(*this);
    }
    return *linears_;
}

void Model::check_tokens(const std::vector<int32_t> & tokens) const {
    for (const int32_t token : tokens) {
        if (token < 0 || token >= n_vocab()) {
            throw Error("token " + std::to_string(token) + " is not in the vocabulary of " + std::to_string(n_vocab()));
        }
    }
}

void Model::check_positions(int64_t n_positions) const {
    for (const auto & [name, tensor] : tensors()) {
        if (name == "position_embd.weight" && n_positions > tensor->ne[1]) {
            throw Error(path + " knows " + std::to_string(tensor->ne[1]) + " positions: a context of " +
                        std::to_string(n_positions) + " tokens is too long for it");
        }
    }
}

namespace {

// Runs a part of llama.cpp's tokenizer. A damaged vocabulary shows here only, in exceptions and assertions of all
// kinds.
template <typename Work>
auto with_vocabulary(const std::string & path, const Work & work) {
    const AbortAsException guard;
    try {
        return work();
    } catch (const std::exception & e) {
        throw ModelFileError(path + ": the vocabulary is damaged or incomplete: " + reason(e) +
                             ". Convert the model again, or get another file of it");
    }
}

}  // namespace

std::vector<int32_t> Model::tokenize(const std::string & text, bool add_special, bool parse_special) const {
    const auto tokenize_into = [&](std::vector<int32_t> & tokens) {
        return with_vocabulary(path, [&] {
            return llama_tokenize(&vocab(), text.data(), text.size(), tokens.data(), tokens.size(), add_special,
                                  parse_special);
        });
    };
    std::vector<int32_t> tokens(text.size() + 8);
    int32_t n = tokenize_into(tokens);
    if (n < 0) {
        tokens.resize(-static_cast<int64_t>(n));
        n = tokenize_into(tokens);
    }
    if (n < 0) {
        throw Error("the tokenizer of " + path + " failed on a text of " + std::to_string(text.size()) + " bytes");
    }
    tokens.resize(n);
    return tokens;
}

std::string Model::detokenize(const std::vector<int32_t> & tokens, bool special) const {
    const auto piece_into = [&](int32_t token, char * piece, size_t size) {
        return with_vocabulary(path, [&] { return llama_token_to_piece(&vocab(), token, piece, size, 0, special); });
    };
    std::string text;
    char piece[512];
    for (const int32_t token : tokens) {
        if (token < 0 || token >= n_vocab()) {
            throw Error("token " + std::to_string(token) + " is not in the vocabulary of " + std::to_string(n_vocab()));
        }
        int32_t n = piece_into(token, piece, sizeof(piece));
        if (n >= 0) {
            text.append(piece, n);
        } else {
            std::string longer(-n, '\0');
            n = piece_into(token, longer.data(), longer.size());
            text.append(longer.data(), n > 0 ? n : 0);
        }
    }
    return text;
}

}  // namespace ggtune
