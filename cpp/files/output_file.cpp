#include "files/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/error.h"

namespace ggtune {

namespace {

std::string megabytes(uint64_t n) {
    return std::to_string((n + 999999) / 1000000) + " MB";
}

std::filesystem::path folder_of(const std::string & path) {
    const std::filesystem::path folder = std::filesystem::path(path).parent_path();
    return folder.empty() ? "." : folder;
}

}  // namespace

void OutputFile::fail(const std::string & what) const {
    throw Error(path_ + ": " + what);
}

void OutputFile::fail_to_write(int error) const {
    std::string space;
    std::error_code unknown;
    const auto found = std::filesystem::space(folder_of(path_), unknown);
    if (n_bytes_ > 0 && !unknown) {
        space = " (" + megabytes(n_bytes_) + " needed, " + megabytes(found.available) + " free)";
    }
    fail(std::string("can't be written: ") + std::strerror(error) + space);
}

OutputFile::OutputFile(const std::string & path, uint64_t n_bytes)
    : path_(path), n_bytes_(n_bytes), temporary_(path + ".tmp-" + std::to_string(::getpid())) {
    std::error_code error;
    if (path.empty() || std::filesystem::is_directory(path, error)) {
        fail("the output has to be a file, not a folder");
    }
    if (std::filesystem::exists(path, error) && !std::filesystem::is_regular_file(path, error)) {
        fail("the output has to be a file, not a device");
    }
    const std::filesystem::path folder = folder_of(path);
    if (!std::filesystem::is_directory(folder, error)) {
        fail("the folder " + folder.string() + " doesn't exist: make it first");
    }
    const auto space = std::filesystem::space(folder, error);
    if (!error && space.available < n_bytes) {
        fail("needs " + megabytes(n_bytes) + " in " + folder.string() + ", where " + megabytes(space.available) +
             " are free: make room, or write elsewhere");
    }
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (descriptor_ < 0) {
        fail_to_write(errno);
    }
}

OutputFile::~OutputFile() {
    if (descriptor_ >= 0) {
        ::close(descriptor_);
        ::unlink(temporary_.c_str());
    }
}

void OutputFile::write_at(uint64_t offset, const void * data, uint64_t n) {
    const char * at = static_cast<const char *>(data);
    while (n > 0) {
        const ssize_t written = ::pwrite(descriptor_, at, std::min<uint64_t>(n, 1u << 30), static_cast<off_t>(offset));
        if (written < 0 && errno == EINTR) {
            continue;
        }
        if (written <= 0) {
            fail_to_write(written < 0 ? errno : EIO);
        }
        at += written;
        offset += static_cast<uint64_t>(written);
        n -= static_cast<uint64_t>(written);
    }
}

void OutputFile::commit() {
    if (::fsync(descriptor_) != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
        fail_to_write(errno);
    }
    ::close(descriptor_);
    descriptor_ = -1;
}

bool same_file(const std::string & a, const std::string & b) {
    std::error_code error;
    return std::filesystem::equivalent(a, b, error) && !error;
}

}  // namespace ggtune
