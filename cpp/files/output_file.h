// A file that appears under its name only once it is whole.
#pragma once

#include <cstdint>
#include <string>

namespace ggtune {

// Writes to "<path>.tmp-<pid>" beside the path; commit() syncs and renames it, and without commit() the destructor
// removes it. Raises Error, with the path in the message.
class OutputFile {
  public:
    // Refuses an output folder that doesn't exist or can't be written, a path that is one of a folder or a device, and
    // less free space than n_bytes (0: unknown).
    explicit OutputFile(const std::string & path, uint64_t n_bytes = 0);
    ~OutputFile();
    OutputFile(const OutputFile &) = delete;
    OutputFile & operator=(const OutputFile &) = delete;

    // At this offset; what lies between two parts is zeros.
    void write_at(uint64_t offset, const void * data, uint64_t n);
    void commit();

    const std::string & temporary_path() const { return temporary_; }

  private:
    [[noreturn]] void fail(const std::string & what) const;
    [[noreturn]] void fail_to_write(int error) const;
    std::string path_;
    uint64_t n_bytes_;
    std::string temporary_;
    int descriptor_ = -1;
};

// The two paths lead to one and the same file.
bool same_file(const std::string & a, const std::string & b);

}  // namespace ggtune
