// A GGUF header made from another one's bytes with some keys set and some tensor types changed.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "files/gguf_file.h"

namespace ggtune {

class HeaderEditor {
  public:
    // The file has to outlive the editor.
    explicit HeaderEditor(const GgufFile & file);

    // A key that is there is replaced in its place, another is appended.
    void set_string(const std::string & key, const std::string & value);
    void set_u32(const std::string & key, uint32_t value);
    void remove(const std::string & key);
    // Index of the tensor in the file; n_bytes follows from the type.
    void set_type(size_t tensor, ggml_type type);
    // Indices of all tensors in the order that they are to have in the new file.
    void set_order(std::vector<size_t> order) { order_ = std::move(order); }
    // The file's own by default. The key general.alignment is the caller's to set.
    void set_alignment(uint64_t alignment) { alignment_ = alignment; }
    void set_version(uint32_t version) { version_ = version; }

    // Tensors in the old file's order, as they will be in the new one, offsets from its start; valid after bytes().
    const std::vector<GgufTensor> & tensors() const { return tensors_; }

    // The header, padded up to where the tensor data starts.
    std::vector<uint8_t> bytes();

    // Of the whole new file, with every tensor padded; valid after bytes().
    uint64_t file_size() const { return file_size_; }

  private:
    struct Entry {
        std::string key;
        std::vector<uint8_t> bytes;  // the whole entry, key included
    };
    void set(const std::string & key, std::vector<uint8_t> entry);

    const GgufFile & file_;
    std::vector<Entry> entries_;
    std::vector<GgufTensor> tensors_;
    std::vector<size_t> order_;
    uint64_t alignment_;
    uint32_t version_;
    uint64_t file_size_ = 0;
};

}  // namespace ggtune
