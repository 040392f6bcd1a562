#include "files/llama_log.h"

#include <llama.h>

#include <atomic>
#include <cstdio>
#include <mutex>

#include "files/gguf_file.h"

namespace ggtune {

namespace {

std::atomic<bool> log_verbose{false};
thread_local std::string log_tail;
thread_local LlamaLogCapture::Receive * capture = nullptr;

void on_log(ggml_log_level level, const char * text, void *) {
    if (log_verbose) {
        std::fputs(text, stderr);
    }
    if (capture != nullptr) {
        try {
            (*capture)(level, text);
        } catch (...) {  // C frames are no place for it
        }
        return;
    }
    if (level != GGML_LOG_LEVEL_ERROR && (level != GGML_LOG_LEVEL_CONT || log_tail.empty())) {
        return;
    }
    log_tail += text;
    constexpr size_t kMaxLength = 600;
    if (log_tail.size() > kMaxLength) {
        log_tail.erase(0, log_tail.size() - kMaxLength);
    }
}

}  // namespace

void install_llama_log() {
    static std::once_flag once;
    std::call_once(once, [] { llama_log_set(on_log, nullptr); });
}

std::string take_llama_log() {
    std::string line;
    line.swap(log_tail);
    while (!line.empty() && line.back() == '\n') {
        line.pop_back();
    }
    for (char & c : line) {
        if (c == '\n') {
            c = ';';
        }
    }
    return valid_utf8(line);
}

void set_llama_log_verbose(bool verbose) {
    log_verbose = verbose;
}

LlamaLogCapture::LlamaLogCapture(Receive receive) : receive_(std::move(receive)), previous_(capture) {
    install_llama_log();
    capture = &receive_;
}

LlamaLogCapture::~LlamaLogCapture() {
    capture = previous_;
}

}  // namespace ggtune
