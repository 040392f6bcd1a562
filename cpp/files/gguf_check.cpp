#include "files/gguf_check.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_set>

#include "base/error.h"
#include "kernels/dequantize.h"

namespace ggtune {

namespace {

// Compile-time limits of llama.cpp (src/llama-hparams.h).
constexpr int64_t kMaxLayers = 512;
constexpr int64_t kMaxExperts = 1024;
// Tokens in a sliding window: far beyond any model; llama.cpp multiplies it by 256 sequences in 32 bits.
constexpr int64_t kMaxWindow = 1 << 23;
// Tensor data is mapped in place, and ggml wants its buffers aligned to this (ggml/src/ggml-impl.h).
constexpr uint64_t kMinAlignment = 32;

[[noreturn]] void fail(const GgufFile & file, const std::string & what) {
    throw ModelFileError(file.path + ": " + what);
}

// What llama.cpp can't load or would abort on.
[[noreturn]] void fail_damaged(const GgufFile & file, const std::string & what) {
    fail(file, what + ". The file is damaged, or no text model: convert the model again, or get another file of it");
}

bool ends_with(const std::string & text, const std::string & suffix) {
    return text.size() >= suffix.size() && text.compare(text.size() - suffix.size(), suffix.size(), suffix) == 0;
}

// Where the tokenizer adds a BOS or EOS there has to be one. `standard` is the one that llama.cpp's vocabulary type
// has.
void check_added_token(const GgufFile & file, const std::string & name, int64_t n_tokens, int64_t standard,
                       bool added_by_default) {
    const std::string key = "tokenizer.ggml." + name + "_token_id";
    const auto given = file.integer(key);
    const bool there = (given && *given >= 0 && *given < n_tokens) || (standard >= 0 && standard < n_tokens);
    if (!there && file.boolean("tokenizer.ggml.add_" + name + "_token").value_or(added_by_default)) {
        fail_damaged(file, "the tokenizer adds a BOS or EOS token, but " + key + " names none of the vocabulary");
    }
}

void check_vocabulary(const GgufFile & file) {
    const auto model = file.string("tokenizer.ggml.model");
    const std::vector<std::string> tokens = file.strings("tokenizer.ggml.tokens");
    if (!model || *model == "no_vocab" || *model == "none" || tokens.empty()) {
        fail(file,
             "has no tokenizer (tokenizer.ggml.model and tokenizer.ggml.tokens): convert the model again with its "
             "vocabulary");
    }
    // llama.cpp asserts in others (word pieces, RWKV's), which no decoder with attention uses.
    const bool is_spm = *model == "llama";
    if (!is_spm && *model != "gpt2" && *model != "gemma4") {
        fail(file, "has the tokenizer " + printable(*model) +
                       "; ggtune works with 'llama' (SentencePiece) and 'gpt2' (byte-pair) ones");
    }
    std::unordered_set<std::string> seen;
    for (size_t i = 0; i < tokens.size(); ++i) {
        // To llama.cpp a token ends at a zero byte, and empty ones have such a name.
        std::string text = tokens[i].c_str();
        text = text.empty() ? "[EMPTY_" + std::to_string(i) + "]" : text;
        if (!seen.insert(text).second) {
            fail_damaged(file, "the vocabulary is damaged: token " + std::to_string(i) + " is there twice");
        }
    }

    const auto n_tokens = static_cast<int64_t>(tokens.size());
    const bool is_gpt2 = *model == "gpt2";
    const int64_t standard_bos = is_spm ? 1 : is_gpt2 ? 11 : -1;
    check_added_token(file, "bos", n_tokens, standard_bos, is_spm || n_tokens <= standard_bos);
    check_added_token(file, "eos", n_tokens, is_spm ? 2 : is_gpt2 ? 11 : -1, false);
}

// A required key with a positive integer.
int64_t positive(const GgufFile & file, const std::string & key) {
    const auto value = file.integer(key);
    if (!value || *value <= 0) {
        fail_damaged(file, value ? "the key " + key + " is " + std::to_string(*value) + "; it has to be positive"
                                 : "the key " + key + " is missing");
    }
    return *value;
}

void check_experts(const GgufFile & file, const std::string & arch) {
    const int64_t n_expert = file.integer(arch + ".expert_count").value_or(0);
    const int64_t n_groups = file.integer(arch + ".expert_group_count").value_or(0);
    const int64_t n_groups_used = file.integer(arch + ".expert_group_used_count").value_or(0);
    int64_t n_used = 0;
    for (const int64_t each : file.integers(arch + ".expert_used_count")) {
        n_used = std::max(n_used, each);
    }
    const bool dense = n_expert == 0 && n_used == 0 && n_groups == 0;
    const bool grouped = n_groups <= 1 || (n_expert % n_groups == 0 && n_groups_used > 0 && n_groups_used < n_groups);
    const bool routed = n_expert > 0 && n_expert <= kMaxExperts && n_used > 0 && n_used <= n_expert && n_groups >= 0 &&
                        n_groups < n_expert && grouped;
    if (!dense && !routed) {
        fail_damaged(file, "the keys " + arch + ".expert_* contradict each other");
    }
}

// Of a key that has one value for all layers or one for each.
int64_t of_layer(const std::vector<int64_t> & values, int64_t layer) {
    const size_t i = values.size() == 1 ? 0 : static_cast<size_t>(layer);
    return i < values.size() ? values[i] : 0;
}

void check_heads(const GgufFile & file, const std::string & arch, int64_t n_embd, const std::vector<int64_t> & heads,
                 const std::vector<int64_t> & kv_heads) {
    for (const int64_t each : heads) {
        if (each < 0 || each > n_embd) {
            fail_damaged(file, "the key " + arch + ".attention.head_count is " + std::to_string(each));
        }
    }
    for (int64_t layer = 0; layer < positive(file, arch + ".block_count"); ++layer) {
        const std::string block = "blk." + std::to_string(layer) + ".";
        const int64_t n_head = of_layer(heads, layer);
        const int64_t n_head_kv = kv_heads.empty() ? n_head : of_layer(kv_heads, layer);
        const bool attends = file.find_tensor(block + "attn_q.weight") != nullptr ||
                             file.find_tensor(block + "attn_qkv.weight") != nullptr;
        if (attends && n_head == 0) {
            fail_damaged(file, "layer " + std::to_string(layer) + " has attention, but by " + arch +
                                   ".attention.head_count no heads");
        }
        if (n_head_kv < 0 || (n_head_kv > 0 && n_head % n_head_kv != 0)) {
            fail_damaged(file, "the key " + arch + ".attention.head_count_kv is " + std::to_string(n_head_kv) +
                                   "; it has to divide the " + std::to_string(n_head) + " heads");
        }
        // Optional to llama.cpp's loader, not to its graph.
        const bool separate = file.find_tensor(block + "attn_q.weight") != nullptr &&
                              file.find_tensor(block + "attn_k.weight") != nullptr &&
                              file.find_tensor(block + "attn_v.weight") != nullptr;
        if (arch == "phi3" && !separate && file.find_tensor(block + "attn_qkv.weight") == nullptr) {
            fail_damaged(file, "tensor " + block + "attn_qkv.weight is missing");
        }
    }
}

// ggml asserts that the rotated dimensions are pairs inside the head. None of them is what models without RoPE say.
void check_rope(const GgufFile & file, const std::string & key, int64_t n_head_embd, int64_t n_rot) {
    if (n_head_embd <= 0 || n_rot < 0 || n_rot > n_head_embd || n_rot % 2 != 0) {
        fail_damaged(file, "RoPE can't rotate " + std::to_string(n_rot) + " of the " + std::to_string(n_head_embd) +
                               " dimensions of a head (" + key + ")");
    }
}

void check_attention(const GgufFile & file, const std::string & arch, int64_t n_embd) {
    const std::vector<int64_t> heads = file.integers(arch + ".attention.head_count");
    const std::vector<int64_t> kv_heads = file.integers(arch + ".attention.head_count_kv");
    check_heads(file, arch, n_embd, heads, kv_heads);
    if (heads.empty() || heads[0] == 0) {
        return;  // no attention (in the first layer); llama.cpp checks the tensors' shapes
    }
    if (kv_heads.size() == 1 && heads.size() == 1 && kv_heads[0] == 0) {
        fail_damaged(file, "the key " + arch + ".attention.head_count_kv is 0; it has to divide the " +
                               std::to_string(heads[0]) + " heads");
    }
    const auto key_length = file.integer(arch + ".attention.key_length");
    if (!key_length && n_embd % heads[0] != 0) {
        fail_damaged(file, "the embedding length " + std::to_string(n_embd) + " is no multiple of the " +
                               std::to_string(heads[0]) + " heads");
    }
    const int64_t n_head_embd = key_length.value_or(n_embd / heads[0]);
    const int64_t n_rot = file.integer(arch + ".rope.dimension_count").value_or(n_head_embd);
    check_rope(file, arch + ".rope.dimension_count", n_head_embd, n_rot);
    // Layers with a sliding window may have heads of their own.
    check_rope(file, arch + ".rope.dimension_count_swa",
               file.integer(arch + ".attention.key_length_swa").value_or(n_head_embd),
               file.integer(arch + ".rope.dimension_count_swa").value_or(n_rot));
    const int64_t n_window = file.integer(arch + ".attention.sliding_window").value_or(0);
    if (n_window < 0 || n_window > kMaxWindow) {
        fail_damaged(file, "the key " + arch + ".attention.sliding_window is out of range");
    }
}

void check_hyperparameters(const GgufFile & file) {
    const std::string arch = file.architecture();
    if (positive(file, arch + ".block_count") > kMaxLayers) {
        fail_damaged(file, "has more than the " + std::to_string(kMaxLayers) + " layers that llama.cpp takes");
    }
    if (positive(file, arch + ".context_length") > std::numeric_limits<int32_t>::max()) {
        fail_damaged(file, "the key " + arch + ".context_length is out of range");
    }
    const int64_t n_embd = positive(file, arch + ".embedding_length");
    const int64_t n_nextn = file.integer(arch + ".nextn_predict_layers").value_or(0);
    if (n_nextn < 0 || n_nextn >= positive(file, arch + ".block_count")) {
        fail_damaged(file, "the key " + arch + ".nextn_predict_layers is " + std::to_string(n_nextn));
    }
    check_experts(file, arch);
    check_attention(file, arch, n_embd);
    const std::string scaling = file.string(arch + ".rope.scaling.type").value_or("linear");
    if (scaling != "none" && scaling != "linear" && scaling != "yarn" && scaling != "longrope") {
        fail_damaged(file, "has the unknown RoPE scaling " + printable(scaling));
    }
    for (const char * name : {".attention.layer_norm_epsilon", ".attention.layer_norm_rms_epsilon"}) {
        const double epsilon = file.number(arch + name).value_or(0.0);
        if (!std::isfinite(epsilon) || epsilon < 0.0) {
            fail_damaged(file, "the key " + arch + name + " has to be a number that is not negative");
        }
    }
}

void check_tensor_types(const GgufFile & file) {
    if (file.tensors.empty()) {
        fail(file, "holds no tensors, only a vocabulary: get the whole model");
    }
    for (const GgufTensor & tensor : file.tensors) {
        // Element-wise ops take no other type beside f32 activations.
        const bool elementwise = tensor.n_dims == 1 || ends_with(tensor.name, "norm.weight") ||
                                 ends_with(tensor.name, ".bias") || tensor.name.find("rope_f") != std::string::npos;
        if (elementwise && tensor.type != GGML_TYPE_F32) {
            fail(file, "tensor " + tensor.name + " is of type " + ggml_type_name(tensor.type) +
                           "; llama.cpp computes with it in f32 only: convert the model again");
        }
        const bool matrix = tensor.n_dims > 1 && ends_with(tensor.name, ".weight");
        if (matrix && !kernels::can_dequantize(tensor.type)) {
            fail_damaged(file, "tensor " + tensor.name + " is of type " + ggml_type_name(tensor.type) +
                                   ", which is no type for weights");
        }
    }
}

// "blk.0.attn_q.weight" of "blk.0.attn_q.weight.lora_a"; empty where the name has another ending.
std::string base_name(const std::string & name, const char * suffix) {
    return ends_with(name, suffix) ? name.substr(0, name.size() - std::string(suffix).size()) : std::string();
}

void check_pair(const GgufFile & adapter, const GgufFile & base, LoraPair & pair) {
    const GgufTensor & w = base.tensors[pair.base];
    const GgufTensor & a = adapter.tensors[pair.a];
    const GgufTensor & b = adapter.tensors[pair.b];
    for (const GgufTensor * each : {&a, &b}) {
        if (!kernels::can_dequantize(each->type)) {
            fail(adapter, "tensor " + each->name + " is of type " + ggml_type_name(each->type) +
                              ", which is no type for weights");
        }
    }
    pair.flipped = ends_with(w.name, "token_embd.weight");
    pair.rank = pair.flipped ? a.ne[0] : a.ne[1];
    const int64_t n_in = pair.flipped ? b.ne[1] : a.ne[0];
    const int64_t n_out = pair.flipped ? a.ne[1] : b.ne[1];
    if (n_in != w.ne[0] || n_out != w.ne[1] || a.ne[2] != w.ne[2] || b.ne[2] != w.ne[2] || w.ne[3] != 1 ||
        a.ne[3] != 1 || b.ne[3] != 1 || b.ne[0] != pair.rank || w.n_dims < 2) {
        fail(adapter, "the adapter is of another model: tensor " + w.name + " is " + w.shape() + " in " + base.path +
                          ", lora_a is " + a.shape() + " and lora_b is " + b.shape());
    }
    if (!kernels::can_dequantize(w.type)) {
        fail(base, "tensor " + w.name + " is of type " + ggml_type_name(w.type) + ", which can't carry an adapter");
    }
}

void check_adapter_keys(const GgufFile & adapter, const GgufFile & base) {
    if (adapter.string("general.type").value_or("") != "adapter") {
        fail(adapter,
             "is not an adapter (general.type is " + printable(adapter.string("general.type").value_or("")) + ")");
    }
    const std::string type = adapter.string("adapter.type").value_or("");
    if (type != "lora") {
        fail(adapter, "is not a LoRA adapter (adapter.type is " + printable(type) + ")");
    }
    if (adapter.architecture() != base.architecture()) {
        fail(adapter, "the adapter is of another model: it is for the architecture " +
                          printable(adapter.architecture()) + ", " + base.path + " is " +
                          printable(base.architecture()));
    }
    const GgufValue * alpha = adapter.find("adapter.lora.alpha");
    if (alpha != nullptr && (alpha->type != GGUF_TYPE_FLOAT32 || !std::isfinite(*adapter.number(alpha->key)))) {
        fail(adapter, "adapter.lora.alpha has to be a finite 32-bit float");
    }
    if (adapter.find("adapter.alora.invocation_tokens") != nullptr) {
        fail(adapter,
             "is an activated LoRA (adapter.alora.invocation_tokens), which works from certain tokens on only; "
             "ggtune takes plain LoRA adapters");
    }
}

}  // namespace

void check_not_split(const GgufFile & file) {
    const int64_t n_parts = file.integer("split.count").value_or(0);
    if (n_parts > 1) {
        fail(file,
             "is one of the " + std::to_string(n_parts) +
                 " parts of a split model: join them with `llama-gguf-split --merge FIRST-PART OUTPUT` and use that");
    }
}

void check_model(const GgufFile & file, bool vocab_only) {
    if (file.architecture().empty()) {
        fail(file, "the key general.architecture is missing: this is no model file");
    }
    if (file.string("general.type").value_or("model") == "adapter") {
        fail(file, "is an adapter, not a model: give the base model here");
    }
    if (file.architecture().find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-_.") != std::string::npos) {
        fail_damaged(file, "has the unknown architecture " + printable(file.architecture()));
    }
    check_not_split(file);
    check_vocabulary(file);
    if (!vocab_only) {
        check_hyperparameters(file);
        check_tensor_types(file);
        if (file.alignment < kMinAlignment) {
            fail(file, "has an alignment of " + std::to_string(file.alignment) +
                           "; llama.cpp maps files with at least " + std::to_string(kMinAlignment));
        }
    }
}

void check_rope_sections(const GgufFile & file) {
    const std::string arch = file.architecture();
    const std::string key = arch + ".rope.dimension_sections";
    const std::vector<int64_t> sections = file.integers(key);
    const int64_t n_head = std::max<int64_t>(1, of_layer(file.integers(arch + ".attention.head_count"), 0));
    const int64_t n_head_embd =
        file.integer(arch + ".attention.key_length").value_or(positive(file, arch + ".embedding_length") / n_head);
    int64_t total = 0;
    bool rotates = false;
    for (size_t i = 0; i < sections.size(); ++i) {
        if (sections[i] < 0 || sections[i] > n_head_embd) {
            fail_damaged(file, "the key " + key + " has " + std::to_string(sections[i]));
        }
        total += sections[i];
        rotates = rotates || (i < 3 && sections[i] > 0);
    }
    if (!rotates || total > n_head_embd) {
        fail_damaged(file, "the key " + key + " is missing or does not fit the " + std::to_string(n_head_embd) +
                               " dimensions of a head");
    }
}

std::vector<LoraPair> check_adapter(const GgufFile & adapter, const GgufFile & base) {
    check_adapter_keys(adapter, base);
    std::vector<LoraPair> pairs;
    size_t n_used = 0;
    for (size_t i = 0; i < base.tensors.size(); ++i) {
        const std::string & name = base.tensors[i].name;
        const GgufTensor * a = adapter.find_tensor(name + ".lora_a");
        const GgufTensor * b = adapter.find_tensor(name + ".lora_b");
        if (a == nullptr && b == nullptr) {
            continue;
        }
        if (a == nullptr || b == nullptr) {
            fail(adapter,
                 "the adapter is damaged: tensor " + name + (a == nullptr ? ".lora_a" : ".lora_b") + " is missing");
        }
        LoraPair pair{i, adapter.tensor_index.at(a->name), adapter.tensor_index.at(b->name), 0, false};
        check_pair(adapter, base, pair);
        if (pair.flipped && name == "token_embd.weight" && base.find_tensor("output.weight") == nullptr) {
            // llama.cpp would take the flipped pair for the output layer too, and assert.
            fail(adapter, "adapts token_embd.weight, which is the output layer too in " + base.path +
                              ": llama.cpp can't apply that");
        }
        pairs.push_back(pair);
        n_used += 2;
    }
    if (n_used != adapter.tensors.size()) {
        for (const GgufTensor & tensor : adapter.tensors) {
            std::string name = base_name(tensor.name, ".lora_a");
            name = name.empty() ? base_name(tensor.name, ".lora_b") : name;
            if (name.empty()) {
                fail(adapter,
                     "tensor " + tensor.name + " is neither .lora_a nor .lora_b: only LoRA pairs can be applied");
            }
            if (base.find_tensor(name) == nullptr && name == "output.weight" &&
                base.find_tensor("token_embd.weight") != nullptr) {
                fail(adapter, "adapts output.weight, but in " + base.path +
                                  " token_embd.weight is the output layer too: llama.cpp can't apply that");
            }
            if (base.find_tensor(name) == nullptr) {
                fail(adapter, "the adapter is of another model: " + base.path + " has no tensor " + name);
            }
        }
    }
    if (pairs.empty()) {
        fail(adapter, "the adapter holds no tensors");
    }
    return pairs;
}

float lora_scale(const GgufFile & adapter, int64_t rank) {
    const auto alpha = static_cast<float>(adapter.number("adapter.lora.alpha").value_or(0.0));
    return alpha == 0.0f ? 1.0f : alpha / static_cast<float>(rank);
}

}  // namespace ggtune
