// A loaded GGUF model: weights (memory-mapped), tokenizer, metadata. Public llama.cpp API, but for the tensor list.
#pragma once

#include <ggml.h>

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

class Model {
  public:
    // What is read of the file: all of it; the tokenizer; or the header alone, which is enough to plan memory.
    enum class Contents { all, vocabulary, header };

    // Raises ModelFileError. gpu_layers: blocks kept in video memory, for generation only.
    Model(const std::string & path, int gpu_layers, Contents contents);
    ~Model();
    Model(const Model &) = delete;
    Model & operator=(const Model &) = delete;

    const std::string path;
    const Contents contents;
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
