#include "files/gguf_writer.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace ggtune {

namespace {

template <typename T>
void put(std::vector<uint8_t> & out, T value) {
    const size_t at = out.size();
    out.resize(at + sizeof(T));
    std::memcpy(out.data() + at, &value, sizeof(T));
}

void put_string(std::vector<uint8_t> & out, const std::string & text) {
    put<uint64_t>(out, text.size());
    out.insert(out.end(), text.begin(), text.end());
}

uint64_t padded(uint64_t n, uint64_t alignment) {
    return (n + alignment - 1) & ~(alignment - 1);
}

}  // namespace

HeaderEditor::HeaderEditor(const GgufFile & file)
    : file_(file),
      tensors_(file.tensors),
      order_(file.tensors.size()),
      alignment_(file.alignment),
      version_(file.version) {
    std::iota(order_.begin(), order_.end(), 0);
    entries_.reserve(file.values.size());
    for (const GgufValue & value : file.values) {
        const uint8_t * header = file.header.data();
        entries_.push_back({value.key, std::vector<uint8_t>(header + value.begin, header + value.end)});
    }
}

void HeaderEditor::set(const std::string & key, std::vector<uint8_t> entry) {
    const auto it = std::find_if(entries_.begin(), entries_.end(), [&](const Entry & e) { return e.key == key; });
    if (it == entries_.end()) {
        entries_.push_back({key, std::move(entry)});
    } else {
        it->bytes = std::move(entry);
    }
}

void HeaderEditor::set_string(const std::string & key, const std::string & value) {
    std::vector<uint8_t> entry;
    put_string(entry, key);
    put<uint32_t>(entry, GGUF_TYPE_STRING);
    put_string(entry, value);
    set(key, std::move(entry));
}

void HeaderEditor::set_u32(const std::string & key, uint32_t value) {
    std::vector<uint8_t> entry;
    put_string(entry, key);
    put<uint32_t>(entry, GGUF_TYPE_UINT32);
    put<uint32_t>(entry, value);
    set(key, std::move(entry));
}

void HeaderEditor::remove(const std::string & key) {
    entries_.erase(std::remove_if(entries_.begin(), entries_.end(), [&](const Entry & e) { return e.key == key; }),
                   entries_.end());
}

void HeaderEditor::set_type(size_t tensor, ggml_type type) {
    GgufTensor & t = tensors_[tensor];
    t.type = type;
    t.n_bytes = ggml_row_size(type, t.ne[0]) * static_cast<uint64_t>(t.n_rows());
}

std::vector<uint8_t> HeaderEditor::bytes() {
    std::vector<uint8_t> out(file_.header.begin(), file_.header.begin() + 4);  // the magic
    put<uint32_t>(out, version_);
    put<uint64_t>(out, tensors_.size());
    put<uint64_t>(out, entries_.size());
    for (const Entry & entry : entries_) {
        out.insert(out.end(), entry.bytes.begin(), entry.bytes.end());
    }
    uint64_t offset = 0;
    for (const size_t index : order_) {
        GgufTensor & tensor = tensors_[index];
        put_string(out, tensor.name);
        put<uint32_t>(out, tensor.n_dims);
        for (uint32_t i = 0; i < tensor.n_dims; ++i) {
            put<int64_t>(out, tensor.ne[i]);
        }
        put<uint32_t>(out, tensor.type);
        put<uint64_t>(out, offset);
        tensor.offset = offset;
        offset += padded(tensor.n_bytes, alignment_);
    }
    out.resize(padded(out.size(), alignment_), 0);
    for (GgufTensor & tensor : tensors_) {
        tensor.offset += out.size();
    }
    file_size_ = out.size() + offset;
    return out;
}

}  // namespace ggtune
