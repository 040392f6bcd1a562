#include "engine/model.h"

#include <ggml-backend.h>
#include <llama.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>

#include "base/abort_guard.h"
#include "base/error.h"
#include "engine/devices.h"
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

std::string layer_text(const std::vector<int> & counts) {
    const int n = std::accumulate(counts.begin(), counts.end(), 0);
    return std::to_string(n) + (n == 1 ? " layer" : " layers");
}

// llama.cpp's parameters that say where layers lie; they point into this object.
class PlaceParams {
  public:
    PlaceParams(const GgufFile & file, const Places & places) : split_(llama_max_devices(), 0.0f) {
        const std::string prefix = file.architecture() + ".";
        const auto n_all = static_cast<int>(file.integer(prefix + "block_count").value_or(0));
        // layers that predict further tokens, behind the others
        const auto n_further = static_cast<int>(file.integer(prefix + "nextn_predict_layers").value_or(0));
        check(places, n_all - n_further);
        for (const std::string & name : places.devices) {
            devices_.push_back(device_by_name(name));
        }
        open_devices(devices_, places.exact);
        devices_.push_back(nullptr);
        for (size_t i = 0; i < places.device_layers.size(); i++) {
            split_[i] = static_cast<float>(places.device_layers[i]);
            n_layers_ += places.device_layers[i];
        }
        if (n_layers_ > 0) {
            split_[places.device_layers.size() - 1] += static_cast<float>(n_further);
            n_layers_ += n_further;
        }
        for (const int layer : places.cpu_layers) {
            patterns_.push_back(layer == n_all - n_further ? "^output" : "^blk\\." + std::to_string(layer) + "\\.");
        }
        for (int layer = 0; layer < places.cpu_experts; layer++) {
            patterns_.push_back("^blk\\." + std::to_string(layer) + "\\.ffn_(up|down|gate|gate_up)_(ch|)exps");
        }
        for (const std::string & pattern : patterns_) {
            overrides_.push_back({pattern.c_str(), ggml_backend_cpu_buffer_type()});
        }
        overrides_.push_back({nullptr, nullptr});
    }
    PlaceParams(const PlaceParams &) = delete;
    PlaceParams & operator=(const PlaceParams &) = delete;

    void fill(llama_model_params & params) const {
        params.devices = const_cast<ggml_backend_dev_t *>(devices_.data());
        params.n_gpu_layers = n_layers_;
        params.split_mode = LLAMA_SPLIT_MODE_LAYER;
        params.tensor_split = split_.data();
        params.tensor_buft_overrides = overrides_.size() > 1 ? overrides_.data() : nullptr;
    }

  private:
    static void check(const Places & places, int n_layer) {
        if (places.devices.size() != places.device_layers.size() || places.devices.size() > llama_max_devices()) {
            throw Error("there are " + std::to_string(places.devices.size()) + " devices and numbers of layers for " +
                        std::to_string(places.device_layers.size()) + "; at most " +
                        std::to_string(llama_max_devices()) + " devices");
        }
        int64_t n = 0;
        for (const int layers : places.device_layers) {
            if (layers < 1) {
                throw Error("a device has at least 1 layer, not " + std::to_string(layers));
            }
            n += layers;
        }
        if (n > n_layer + 1) {
            throw Error("the model has " + std::to_string(n_layer) +
                        " layers and an output head: " + std::to_string(n) + " can't lie on devices");
        }
        const auto is_none = [&](int layer) { return layer < 0 || layer > n_layer; };
        if (std::any_of(places.cpu_layers.begin(), places.cpu_layers.end(), is_none) || is_none(places.cpu_experts)) {
            throw Error("the model has layers 0 to " + std::to_string(n_layer - 1) + " and an output head");
        }
    }

    std::vector<ggml_backend_dev_t> devices_;
    std::vector<float> split_;
    int n_layers_ = 0;
    std::vector<std::string> patterns_;
    std::vector<llama_model_tensor_buft_override> overrides_;
};

// "blk.12.attn_q.weight" is of layer 12, the output matrix and its norm of the head; -1: no layer's
int layer_of_weight(const std::string & name, int n_layer) {
    if (name.rfind("output", 0) == 0) {
        return n_layer;
    }
    if (name.rfind("blk.", 0) != 0) {
        return -1;
    }
    const auto layer = static_cast<int>(std::strtol(name.c_str() + 4, nullptr, 10));
    return layer < n_layer ? layer : -1;
}

}  // namespace

Model::Model(const std::string & path, Contents contents, const Places & places)
    : path(path), contents(contents), places(places) {
    const GgufFile file = open_checked(path);
    check_model(file, contents == Contents::vocabulary);
    initialize_backend();
    const PlaceParams where(file, places);
    take_llama_log();
    llama_model_params params = llama_model_default_params();
    where.fill(params);
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
        const std::string said = take_llama_log();
        if (!places.devices.empty() && said.find("unable to allocate") != std::string::npos) {
            throw DeviceMemoryError(path + ": not enough memory for the weights of " +
                                    layer_text(places.device_layers) + " (" + said +
                                    "): fewer layers on devices need less (--gpu-layers)");
        }
        fail_to_load(path, said);
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

std::vector<ggml_backend_dev_t> Model::layer_devices() const {
    std::vector<ggml_backend_dev_t> devices(n_layer() + 1, nullptr);
    int layer = n_layer() + 1 - std::accumulate(places.device_layers.begin(), places.device_layers.end(), 0);
    for (size_t i = 0; i < places.devices.size(); i++) {
        for (int n = 0; n < places.device_layers[i]; n++, layer++) {
            devices[layer] = device_by_name(places.devices[i]);
        }
    }
    for (const int on_cpu : places.cpu_layers) {
        devices[on_cpu] = nullptr;
    }
    return devices;
}

std::vector<uint64_t> Model::layer_bytes() const {
    std::vector<uint64_t> n_bytes(n_layer() + 1, 0);
    const ggml_tensor * embeddings = nullptr;
    for (const auto & [name, tensor] : tensors()) {
        const int layer = layer_of_weight(name, n_layer());
        if (layer >= 0) {
            n_bytes[layer] += ggml_nbytes(tensor);
        }
        embeddings = name == "token_embd.weight" ? tensor : embeddings;
    }
    const ggml_tensor * head = model_output(*handle_);
    if (head != nullptr && embeddings != nullptr && std::strcmp(head->name, embeddings->name) == 0) {
        n_bytes[n_layer()] += ggml_nbytes(head);  // a second copy where it lies on a device
    }
    return n_bytes;
}

uint64_t Model::n_bytes_on(ggml_backend_dev_t device) const {
    uint64_t n_bytes = 0;
    for (const auto & [name, tensor] : tensors()) {
        n_bytes += device_of(tensor) == device ? ggml_nbytes(tensor) : 0;
    }
    return n_bytes;
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
