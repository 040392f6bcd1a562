#include "engine/host.h"

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <llama.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

namespace ggtune {

namespace {

constexpr int64_t unlimited = std::numeric_limits<int64_t>::max();

// The number that a file starts with; none for a missing file or for "max".
std::optional<int64_t> read_number(const std::string & path) {
    std::ifstream in(path);
    int64_t value = 0;
    return in >> value ? std::optional<int64_t>(value) : std::nullopt;
}

// The number after `key` in a file of lines "key number ..." (meminfo, memory.stat).
std::optional<int64_t> read_field(const std::string & path, const std::string & key) {
    std::ifstream in(path);
    std::string line;
    while (std::getline(in, line)) {
        std::istringstream fields(line);
        std::string name;
        int64_t value = 0;
        if (fields >> name >> value && name == key) {
            return value;
        }
    }
    return std::nullopt;
}

// What one control group leaves: its limit less its use, page cache that can be dropped not counted.
int64_t group_available(const std::string & folder, const char * limit_file, const char * usage_file,
                        const char * cache_field) {
    const auto limit = read_number(folder + "/" + limit_file);
    const auto usage = read_number(folder + "/" + usage_file);
    if (!limit || !usage) {
        return unlimited;
    }
    const int64_t cache = read_field(folder + "/memory.stat", cache_field).value_or(0);
    return std::max<int64_t>(0, *limit - std::max<int64_t>(0, *usage - cache));
}

// The tightest of the process's groups and their parents (cgroups(7),
// https://docs.kernel.org/admin-guide/cgroup-v2.html).
int64_t groups_available() {
    int64_t available = unlimited;
    std::ifstream in("/proc/self/cgroup");
    std::string line;
    while (std::getline(in, line)) {  // "hierarchy:controllers:/path"
        const size_t first = line.find(':');
        const size_t second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) {
            continue;
        }
        const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
        const bool v1 = controllers.find(",memory,") != std::string::npos;
        if (!v1 && controllers != ",,") {
            continue;
        }
        const std::string root = v1 ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup";
        std::string path = line.substr(second + 1);
        while (true) {
            available =
                std::min(available, v1 ? group_available(root + path, "memory.limit_in_bytes", "memory.usage_in_bytes",
                                                         "total_inactive_file")
                                       : group_available(root + path, "memory.max", "memory.current", "inactive_file"));
            const size_t slash = path.rfind('/');
            if (slash == std::string::npos || path.size() <= 1) {
                break;
            }
            path.resize(slash);
        }
    }
    return available;
}

}  // namespace

int64_t available_memory() {
    const auto kilobytes = read_field("/proc/meminfo", "MemAvailable:");
    const int64_t machine =
        kilobytes ? *kilobytes * 1024 : static_cast<int64_t>(::sysconf(_SC_PHYS_PAGES)) * ::sysconf(_SC_PAGESIZE);
    return std::min(machine, groups_available());
}

std::map<std::string, std::string> build_info() {
    std::string backends;
    for (size_t i = 0; i < ggml_backend_reg_count(); ++i) {
        backends += (i > 0 ? ", " : "") + std::string(ggml_backend_reg_name(ggml_backend_reg_get(i)));
    }
    std::string cpu;
    if (ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)) {
        cpu = ggml_backend_dev_description(device);
    }
    // "NAME = 1" of llama.cpp's own summary line, for each feature that is there
    std::string features;
    std::istringstream info(llama_print_system_info());
    std::string word;
    std::string previous;
    while (info >> word) {
        if (word == "1" && !previous.empty()) {
            features += (features.empty() ? "" : " ") + previous;
        }
        if (word != "=" && word != "|") {
            previous = word;
        }
    }
    return {{"llama.cpp", llama_version()}, {"backends", backends}, {"cpu", cpu}, {"cpu_features", features}};
}

}  // namespace ggtune
