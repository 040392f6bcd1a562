// Look-ups in a header that open_checked() has accepted: every offset and length is known to be inside it.
#include <algorithm>
#include <cstring>
#include <limits>

#include "files/gguf_file.h"

namespace ggtune {

std::string printable(const std::string & text) {
    std::string out = "'";
    for (const char c : text.substr(0, 80)) {
        out += (c >= 0x20 && c < 0x7f) ? c : '?';
    }
    return out + (text.size() > 80 ? "...'" : "'");
}

namespace {

// Bytes of the UTF-8 character at `at` (RFC 3629), 0 where there is none.
size_t utf8_length(const std::string & text, size_t at) {
    const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0}; };
    const uint8_t first = byte(at);
    const size_t n = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
    for (size_t i = 1; i < n; ++i) {
        if ((byte(at + i) & 0xc0) != 0x80) {
            return 0;
        }
    }
    const uint8_t second = byte(at + 1);
    const bool overlong = (first == 0xe0 && second < 0xa0) || (first == 0xf0 && second < 0x90);
    const bool surrogate = first == 0xed && second > 0x9f;
    const bool beyond = first == 0xf4 && second > 0x8f;
    return overlong || surrogate || beyond ? 0 : n;
}

}  // namespace

std::string valid_utf8(const std::string & text) {
    std::string out;
    for (size_t at = 0; at < text.size();) {
        const size_t n = utf8_length(text, at);
        out += n > 0 ? text.substr(at, n) : "\xef\xbf\xbd";
        at += std::max<size_t>(n, 1);
    }
    return out;
}

std::string GgufTensor::shape() const {
    std::string text = "[";
    for (uint32_t i = 0; i < n_dims; ++i) {
        text += (i > 0 ? ", " : "") + std::to_string(ne[i]);
    }
    return text + "]";
}

const GgufValue * GgufFile::find(const std::string & key) const {
    const auto it = value_index.find(key);
    return it == value_index.end() ? nullptr : &values[it->second];
}

const GgufTensor * GgufFile::find_tensor(const std::string & name) const {
    const auto it = tensor_index.find(name);
    return it == tensor_index.end() ? nullptr : &tensors[it->second];
}

namespace {

template <typename T>
T load(const uint8_t * from) {
    T value;
    std::memcpy(&value, from, sizeof(T));
    return value;
}

std::optional<int64_t> load_integer(gguf_type type, const uint8_t * from) {
    switch (type) {
        case GGUF_TYPE_UINT8:
            return load<uint8_t>(from);
        case GGUF_TYPE_INT8:
            return load<int8_t>(from);
        case GGUF_TYPE_UINT16:
            return load<uint16_t>(from);
        case GGUF_TYPE_INT16:
            return load<int16_t>(from);
        case GGUF_TYPE_UINT32:
            return load<uint32_t>(from);
        case GGUF_TYPE_INT32:
            return load<int32_t>(from);
        case GGUF_TYPE_INT64:
            return load<int64_t>(from);
        case GGUF_TYPE_UINT64: {
            const uint64_t value = load<uint64_t>(from);
            return value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())
                       ? std::optional<int64_t>(static_cast<int64_t>(value))
                       : std::nullopt;
        }
        default:
            return std::nullopt;
    }
}

}  // namespace

std::optional<std::string> GgufFile::string(const std::string & key) const {
    const GgufValue * value = find(key);
    if (value == nullptr || value->type != GGUF_TYPE_STRING) {
        return std::nullopt;
    }
    const size_t n = load<uint64_t>(header.data() + value->data);
    return std::string(reinterpret_cast<const char *>(header.data() + value->data + sizeof(uint64_t)), n);
}

std::optional<int64_t> GgufFile::integer(const std::string & key) const {
    const GgufValue * value = find(key);
    return value == nullptr ? std::nullopt : load_integer(value->type, header.data() + value->data);
}

std::optional<double> GgufFile::number(const std::string & key) const {
    const GgufValue * value = find(key);
    if (value != nullptr && value->type == GGUF_TYPE_FLOAT32) {
        return load<float>(header.data() + value->data);
    }
    if (value != nullptr && value->type == GGUF_TYPE_FLOAT64) {
        return load<double>(header.data() + value->data);
    }
    return integer(key);
}

std::optional<bool> GgufFile::boolean(const std::string & key) const {
    const GgufValue * value = find(key);
    if (value == nullptr || value->type != GGUF_TYPE_BOOL) {
        return std::nullopt;
    }
    return header[value->data] != 0;
}

std::vector<std::string> GgufFile::strings(const std::string & key) const {
    const GgufValue * value = find(key);
    if (value == nullptr || value->type != GGUF_TYPE_ARRAY || value->element_type != GGUF_TYPE_STRING) {
        return {};
    }
    std::vector<std::string> out;
    out.reserve(value->count);
    const uint8_t * at = header.data() + value->data;
    for (uint64_t i = 0; i < value->count; ++i) {
        const size_t n = load<uint64_t>(at);
        out.emplace_back(reinterpret_cast<const char *>(at + sizeof(uint64_t)), n);
        at += sizeof(uint64_t) + n;
    }
    return out;
}

std::vector<int64_t> GgufFile::integers(const std::string & key) const {
    const GgufValue * value = find(key);
    if (value == nullptr) {
        return {};
    }
    if (value->type != GGUF_TYPE_ARRAY) {
        const auto one = integer(key);
        return one ? std::vector<int64_t>{*one} : std::vector<int64_t>{};
    }
    if (value->element_type != GGUF_TYPE_UINT32 && value->element_type != GGUF_TYPE_INT32) {
        return {};
    }
    std::vector<int64_t> out;
    for (uint64_t i = 0; i < value->count; ++i) {
        out.push_back(*load_integer(value->element_type, header.data() + value->data + 4 * i));
    }
    return out;
}

}  // namespace ggtune
