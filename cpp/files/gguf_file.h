// Checked reading of a GGUF header (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
//
// ggml and llama.cpp trust much of what a file says and abort the process where it is wrong. So ggtune reads the header
// itself first, with every length checked against the file, and accepts only what ggml's own reader accepts. Nothing is
// mapped and no tensor data is read: a file that another process cuts short meanwhile can't raise SIGBUS here.
#pragma once

#include <ggml.h>
#include <gguf.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace ggtune {

// One key of the header. `begin`, `data` and `end` are offsets into GgufFile::header: of the whole entry (key
// included), of the value's payload, and past the entry.
struct GgufValue {
    std::string key;
    gguf_type type;          // GGUF_TYPE_ARRAY for an array
    gguf_type element_type;  // of an array's elements, else the same as `type`
    uint64_t count;          // elements of an array, else 1
    size_t begin;
    size_t data;
    size_t end;
};

struct GgufTensor {
    std::string name;
    ggml_type type;
    uint32_t n_dims;            // 1 to 4
    std::array<int64_t, 4> ne;  // ne[0] is the row length; 1 beyond n_dims
    uint64_t offset;            // from the start of the file, bytes
    uint64_t n_bytes;           // without padding
    int64_t n_rows() const { return ne[1] * ne[2] * ne[3]; }
    uint64_t row_bytes() const { return n_bytes / static_cast<uint64_t>(n_rows()); }
    std::string shape() const;  // "[4096, 32]": ne without trailing ones, for messages
};

struct GgufFile {
    std::string path;
    uint64_t file_size = 0;
    uint32_t version = 0;
    uint64_t alignment = GGUF_DEFAULT_ALIGNMENT;
    uint64_t data_offset = 0;         // of the tensor data in the file
    std::vector<uint8_t> header;      // the file's first bytes, up to the end of the tensor infos
    std::vector<GgufValue> values;    // in the file's order
    std::vector<GgufTensor> tensors;  // in the file's order

    const GgufValue * find(const std::string & key) const;
    const GgufTensor * find_tensor(const std::string & name) const;

    // The value of a key; empty where the key is missing or of another type.
    std::optional<std::string> string(const std::string & key) const;
    std::optional<int64_t> integer(const std::string & key) const;  // any integer type that fits
    std::optional<double> number(const std::string & key) const;    // any integer or float type
    std::optional<bool> boolean(const std::string & key) const;
    std::vector<std::string> strings(const std::string & key) const;  // an array of strings, else empty
    std::vector<int64_t> integers(const std::string & key) const;  // an integer, or an array of 32-bit ones, else empty

    std::string architecture() const { return string("general.architecture").value_or(""); }

    std::unordered_map<std::string, size_t> value_index;
    std::unordered_map<std::string, size_t> tensor_index;
};

// A text out of a file for a message: quoted, cut to what a person can read, and in ASCII.
std::string printable(const std::string & text);

// The text with U+FFFD for each byte that is not UTF-8: Python takes no other.
std::string valid_utf8(const std::string & text);

// Reads the header and checks all of it: magic, version, counts, lengths, types, duplicates, names, shapes, sizes,
// alignment, and that the tensors lie one after another inside the file.
// Raises ModelFileError; the message starts with the path.
GgufFile open_checked(const std::string & path);

}  // namespace ggtune
