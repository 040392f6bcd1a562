// A loaded GGUF model: weights (memory-mapped), tokenizer, metadata. Public llama.cpp API, but for the tensor list.
#pragma once

#include <ggml-backend.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

struct llama_model;
struct llama_vocab;

namespace ggtune {

// A linear layer that can carry a LoRA adapter: a matrix of a block, or a stack of them, by the exact part of its name.
struct Linear {
    std::string name;  // "blk.0.attn_q.weight"
    std::string kind;  // "attn_q", "ffn_up_exps", "shortconv.in_proj"
    int layer;
    int64_t n_in;
    int64_t n_out;
    int64_t n_mat;         // matrices of the stack, each with a pair of its own: experts, or heads; 1 of a plain linear
    bool routed;           // each token takes some of the matrices alone: experts (MUL_MAT_ID)
    std::string scale;     // tensor of factors for the products of the matrices, ne = [n_mat]; an adapter's are added
                           // behind them. "" where there is none
    ggml_tensor * weight;  // ne = [n_in, n_out, n_mat]
};

// Where the layers of a model lie; the output head counts as one more, behind the last. Layers that no device has are
// the CPU's, and always the first ones.
struct Places {
    std::vector<std::string> devices;  // by name, in the order of their layers
    std::vector<int> device_layers;    // how many of the last layers each of them has
    std::vector<int> cpu_layers;       // layers among them that stay the CPU's all the same
    int cpu_experts = 0;               // of so many of the first layers the experts' matrices stay in main memory
    bool exact = false;                // devices compute in float32 where they have a choice (open_devices())
};

class Model {
  public:
    // What is read of the file: all of it; the tokenizer; or the header alone, which is enough to plan memory.
    enum class Contents { all, vocabulary, header };

    // Raises ModelFileError, DeviceMemoryError where a device has not enough of it, Error for wrong places.
    Model(const std::string & path, Contents contents, const Places & places = {});
    ~Model();
    Model(const Model &) = delete;
    Model & operator=(const Model &) = delete;

    const std::string path;
    const Contents contents;
    const Places places;
    bool has_weights() const { return contents == Contents::all; }

    llama_model & llama() const { return *handle_; }
    const llama_vocab & vocab() const;

    std::string architecture() const { return arch_; }
    std::optional<std::string> chat_template() const;
    uint64_t n_params() const;
    uint64_t n_bytes() const;  // of the weights
    int32_t n_layer() const;
    int32_t n_embd() const;
    int32_t n_vocab() const;
    int32_t n_ctx_train() const;

    std::map<std::string, std::string> metadata() const;
    std::vector<std::pair<std::string, ggml_tensor *>> tensors() const;
    // Found once (engine/linears.h); none of a vocabulary alone.
    const std::vector<Linear> & linears();
    // The device of each layer, nullptr of the CPU's; [n_layer] is the head's.
    std::vector<ggml_backend_dev_t> layer_devices() const;
    // Bytes of the weights of each layer; [n_layer] are the head's. Others (token embeddings) are no layer's.
    std::vector<uint64_t> layer_bytes() const;
    // Bytes of the weights in the memory of a device, or in main memory (nullptr).
    uint64_t n_bytes_on(ggml_backend_dev_t device) const;

    // Raises Error for an id that is not in the vocabulary.
    void check_tokens(const std::vector<int32_t> & tokens) const;
    // Raises Error where positions have embeddings of their own and there are fewer of them.
    void check_positions(int64_t n_positions) const;

    std::vector<int32_t> tokenize(const std::string & text, bool add_special, bool parse_special) const;
    std::string detokenize(const std::vector<int32_t> & tokens, bool special) const;  // bytes

  private:
    llama_model * handle_ = nullptr;
    std::string arch_;
    std::optional<std::vector<Linear>> linears_;
};

}  // namespace ggtune
