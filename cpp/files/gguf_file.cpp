#include "files/gguf_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <type_traits>

#include "base/error.h"

namespace ggtune {

namespace {

// ggml's reader has the same two bounds on strings and arrays.
constexpr uint64_t kMaxStringBytes = 1u << 30;
constexpr uint64_t kMaxArrayElements = 1u << 30;
// A header is a few MiB, nearly all of it the vocabulary. Far more than that is a damaged length, not to be read into
// memory.
constexpr uint64_t kMaxHeaderBytes = 1u << 30;
constexpr uint64_t kMinValueBytes = 8 + 1 + 4 + 1;       // key length, key, type, value
constexpr uint64_t kMinTensorBytes = 8 + 4 + 8 + 4 + 8;  // name length, n_dims, one dimension, type, offset

size_t scalar_bytes(gguf_type type) {
    switch (type) {
        case GGUF_TYPE_UINT8:
        case GGUF_TYPE_INT8:
        case GGUF_TYPE_BOOL:
            return 1;
        case GGUF_TYPE_UINT16:
        case GGUF_TYPE_INT16:
            return 2;
        case GGUF_TYPE_UINT32:
        case GGUF_TYPE_INT32:
        case GGUF_TYPE_FLOAT32:
            return 4;
        case GGUF_TYPE_UINT64:
        case GGUF_TYPE_INT64:
        case GGUF_TYPE_FLOAT64:
            return 8;
        default:
            return 0;
    }
}

// The standard wants keys and tensor names in ASCII; it also makes them safe to print.
bool is_ascii(const std::string & text) {
    return std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

// Reads the file from its start, front to back, into GgufFile::header; every read is checked against the file's size.
class HeaderReader {
  public:
    HeaderReader(GgufFile & file, std::ifstream & in) : file_(file), in_(in) {}

    [[noreturn]] void fail(const std::string & what) const { throw ModelFileError(file_.path + ": " + what); }

    size_t position() const { return position_; }

    // Makes the next n bytes available in the header.
    void need(uint64_t n, const std::string & what) {
        if (n > file_.file_size - position_) {
            fail("the file is truncated: it ends inside " + what + " (" + std::to_string(file_.file_size) +
                 " bytes; download or copy it again)");
        }
        const uint64_t end = position_ + n;
        if (end > kMaxHeaderBytes) {
            fail("the header is damaged: it would be longer than 1 GiB at " + what);
        }
        if (end <= file_.header.size()) {
            return;
        }
        constexpr uint64_t kStep = 1u << 20;
        const size_t old_size = file_.header.size();
        const uint64_t new_size = std::min(file_.file_size, std::max(end, static_cast<uint64_t>(old_size) + kStep));
        file_.header.resize(new_size);
        in_.read(reinterpret_cast<char *>(file_.header.data() + old_size),
                 static_cast<std::streamsize>(new_size - old_size));
        if (static_cast<uint64_t>(in_.gcount()) != new_size - old_size) {
            fail("can't be read at byte " + std::to_string(old_size));
        }
    }

    template <typename T>
    T read(const std::string & what) {
        static_assert(std::is_arithmetic_v<T>);
        need(sizeof(T), what);
        T value;
        std::memcpy(&value, file_.header.data() + position_, sizeof(T));
        position_ += sizeof(T);
        return value;
    }

    std::string read_string(const std::string & what) {
        const size_t n = skip_string(what);
        return std::string(reinterpret_cast<const char *>(file_.header.data() + position_ - n), n);
    }

    // Returns the string's length; the position is then past it.
    size_t skip_string(const std::string & what) {
        const uint64_t n = read<uint64_t>(what);
        if (n > kMaxStringBytes) {
            fail("the header is damaged: a string of " + std::to_string(n) + " bytes in " + what);
        }
        skip(n, what);
        return n;
    }

    void skip(uint64_t n, const std::string & what) {
        need(n, what);
        position_ += n;
    }

  private:
    GgufFile & file_;
    std::ifstream & in_;
    uint64_t position_ = 0;
};

void read_value(HeaderReader & reader, GgufFile & file, uint64_t index) {
    const std::string where = "key " + std::to_string(index);
    GgufValue value{};
    value.begin = reader.position();
    value.key = reader.read_string(where);
    if (value.key.empty() || !is_ascii(value.key)) {
        reader.fail("the header is damaged: " + where + " is called " + printable(value.key));
    }
    if (!file.value_index.emplace(value.key, file.values.size()).second) {
        reader.fail("the header is damaged: the key " + printable(value.key) + " is there twice");
    }
    const std::string what = "the value of " + printable(value.key);
    uint32_t type = reader.read<uint32_t>(what);
    value.count = 1;
    const bool is_array = type == GGUF_TYPE_ARRAY;
    if (is_array) {
        type = reader.read<uint32_t>(what);
        value.count = reader.read<uint64_t>(what);
    }
    if (type >= GGUF_TYPE_COUNT || type == GGUF_TYPE_ARRAY) {
        reader.fail("the header is damaged: " + what + " has the unknown type " + std::to_string(type));
    }
    value.element_type = static_cast<gguf_type>(type);
    value.type = is_array ? GGUF_TYPE_ARRAY : value.element_type;
    if (value.count > kMaxArrayElements) {
        reader.fail("the header is damaged: " + what + " has " + std::to_string(value.count) + " elements");
    }
    value.data = reader.position();
    if (value.element_type == GGUF_TYPE_STRING) {
        for (uint64_t i = 0; i < value.count; ++i) {
            reader.skip_string(what);
        }
    } else {
        reader.skip(value.count * scalar_bytes(value.element_type), what);
    }
    value.end = reader.position();
    file.values.push_back(std::move(value));
}

uint64_t padded(uint64_t n, uint64_t alignment) {
    return (n + alignment - 1) & ~(alignment - 1);
}

// Checks the shape and sets n_bytes.
void check_shape(const HeaderReader & reader, GgufTensor & tensor) {
    const std::string name = "tensor " + printable(tensor.name);
    // Far below the overflow of 64 bits, in whatever order ggml multiplies.
    constexpr int64_t kMaxElements = int64_t{1} << 56;
    int64_t n_elements = 1;
    for (const int64_t ne : tensor.ne) {
        if (ne <= 0 || ne > kMaxElements / n_elements) {
            reader.fail("the header is damaged: " + name + " has the shape " + tensor.shape());
        }
        n_elements *= ne;
    }
    const int64_t block = ggml_blck_size(tensor.type);
    if (block <= 0 || ggml_type_size(tensor.type) == 0) {
        reader.fail(name + " has a type that llama.cpp no longer reads (" + std::to_string(tensor.type) +
                    "): convert the model again");
    }
    if (tensor.ne[0] % block != 0) {
        reader.fail("the header is damaged: rows of " + name + " have " + std::to_string(tensor.ne[0]) +
                    " elements, not a multiple of the " + std::to_string(block) + " of a block of type " +
                    ggml_type_name(tensor.type));
    }
    tensor.n_bytes = static_cast<uint64_t>(n_elements / block) * ggml_type_size(tensor.type);
}

void read_tensor(HeaderReader & reader, GgufFile & file, uint64_t index) {
    const std::string where = "the description of tensor " + std::to_string(index);
    GgufTensor tensor{};
    tensor.name = reader.read_string(where);
    if (tensor.name.empty() || tensor.name.size() >= GGML_MAX_NAME || !is_ascii(tensor.name)) {
        reader.fail("the header is damaged: tensor " + std::to_string(index) + " is called " + printable(tensor.name));
    }
    if (!file.tensor_index.emplace(tensor.name, file.tensors.size()).second) {
        reader.fail("the header is damaged: tensor " + printable(tensor.name) + " is there twice");
    }
    tensor.n_dims = reader.read<uint32_t>(where);
    if (tensor.n_dims < 1 || tensor.n_dims > GGML_MAX_DIMS) {
        reader.fail("the header is damaged: tensor " + printable(tensor.name) + " has " +
                    std::to_string(tensor.n_dims) + " dimensions");
    }
    tensor.ne.fill(1);
    for (uint32_t i = 0; i < tensor.n_dims; ++i) {
        tensor.ne[i] = reader.read<int64_t>(where);
    }
    const uint32_t type = reader.read<uint32_t>(where);
    if (type >= GGML_TYPE_COUNT) {
        reader.fail("tensor " + printable(tensor.name) + " has the unknown type " + std::to_string(type) +
                    ": the file is damaged, or newer than this ggtune");
    }
    tensor.type = static_cast<ggml_type>(type);
    check_shape(reader, tensor);
    tensor.offset = reader.read<uint64_t>(where);  // from the start of the data; made absolute by place_tensors
    file.tensors.push_back(std::move(tensor));
}

void read_alignment(const HeaderReader & reader, GgufFile & file) {
    const GgufValue * value = file.find(GGUF_KEY_GENERAL_ALIGNMENT);
    if (value == nullptr) {
        return;
    }
    const int64_t alignment = file.integer(GGUF_KEY_GENERAL_ALIGNMENT).value_or(0);
    if (value->type != GGUF_TYPE_UINT32 || alignment <= 0 || (alignment & (alignment - 1)) != 0) {
        reader.fail("the header is damaged: general.alignment has to be a 32-bit power of two");
    }
    file.alignment = static_cast<uint64_t>(alignment);
}

// ggml wants the tensors one after another, each padded to the alignment.
void place_tensors(const HeaderReader & reader, GgufFile & file) {
    file.data_offset = file.tensors.empty() ? reader.position() : padded(reader.position(), file.alignment);
    uint64_t expected = 0;
    for (GgufTensor & tensor : file.tensors) {
        if (tensor.offset != expected) {
            reader.fail("the header is damaged: the data of tensor " + printable(tensor.name) +
                        " is said to start at " + std::to_string(tensor.offset) + " where " + std::to_string(expected) +
                        " is expected");
        }
        tensor.offset += file.data_offset;
        // n_bytes < 2^56 * 8 and the sum so far is inside the file: no overflow.
        const uint64_t end = tensor.offset + tensor.n_bytes;
        if (end > file.file_size) {
            uint64_t whole = file.data_offset;
            for (const GgufTensor & each : file.tensors) {
                whole = padded(whole, file.alignment) + each.n_bytes;
            }
            reader.fail("the file is truncated: it has " + std::to_string(file.file_size) + " of " +
                        std::to_string(whole) + " bytes, " + std::to_string(whole - file.file_size) +
                        " are missing, from tensor " + printable(tensor.name) + " on (download or copy it again)");
        }
        expected += padded(tensor.n_bytes, file.alignment);
    }
}

std::ifstream open_for_reading(GgufFile & file) {
    const auto fail = [&](const std::string & what) { throw ModelFileError(file.path + ": " + what); };
    std::error_code error;
    const auto status = std::filesystem::status(file.path, error);
    if (status.type() == std::filesystem::file_type::not_found) {
        fail("there is no such file");
    }
    if (error) {
        fail(error.message());
    }
    if (status.type() != std::filesystem::file_type::regular) {
        fail(status.type() == std::filesystem::file_type::directory ? "is a folder, not a GGUF file"
                                                                    : "is not a regular file");
    }
    file.file_size = std::filesystem::file_size(file.path, error);
    if (error) {
        fail(error.message());
    }
    if (file.file_size == 0) {
        fail("the file is empty");
    }
    errno = 0;
    std::ifstream in(file.path, std::ios::binary);
    if (!in) {
        fail(std::string("can't be opened: ") + std::strerror(errno != 0 ? errno : EIO));
    }
    return in;
}

void check_magic(HeaderReader & reader, const GgufFile & file) {
    const size_t n = std::min<uint64_t>(4, file.file_size);
    reader.skip(n, "the magic");
    const std::string magic(file.header.begin(), file.header.begin() + static_cast<std::ptrdiff_t>(n));
    if (magic == GGUF_MAGIC) {
        return;
    }
    // The magics of GGML files before GGUF, little-endian: ggml, ggmf, ggjt, ggla (the old finetune's adapters).
    for (const char * old : {"lmgg", "fmgg", "tjgg", "algg"}) {
        if (magic == old) {
            reader.fail("is in the GGML format of before August 2023, not GGUF: get or convert a GGUF file");
        }
    }
    reader.fail("is not a GGUF file (it starts with " + printable(magic) + ")");
}

}  // namespace

GgufFile open_checked(const std::string & path) {
    GgufFile file;
    file.path = path;
    std::ifstream in = open_for_reading(file);
    HeaderReader reader(file, in);
    check_magic(reader, file);
    file.version = reader.read<uint32_t>("the version");
    if ((file.version & 0xffff) == 0) {
        reader.fail("is a big-endian GGUF file (or damaged): convert it with gguf_convert_endian.py");
    }
    if (file.version < 2 || file.version > GGUF_VERSION) {
        reader.fail("has GGUF version " + std::to_string(file.version) + "; versions 2 and 3 can be read");
    }
    const uint64_t n_tensors = reader.read<uint64_t>("the number of tensors");
    const uint64_t n_values = reader.read<uint64_t>("the number of keys");
    if (n_values > file.file_size / kMinValueBytes || n_tensors > file.file_size / kMinTensorBytes) {
        reader.fail("the header is damaged: " + std::to_string(n_values) + " keys and " + std::to_string(n_tensors) +
                    " tensors can't be in a file of " + std::to_string(file.file_size) + " bytes");
    }
    for (uint64_t i = 0; i < n_values; ++i) {
        read_value(reader, file, i);
    }
    read_alignment(reader, file);
    for (uint64_t i = 0; i < n_tensors; ++i) {
        read_tensor(reader, file, i);
    }
    place_tensors(reader, file);
    file.header.resize(reader.position());
    return file;
}

}  // namespace ggtune
