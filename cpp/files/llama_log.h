// What llama.cpp and ggml log. They have one log function for the whole process: it is set once and stays, and what
// it gets it keeps by thread. Nothing reaches the terminal unless it is asked for.
#pragma once

#include <ggml.h>

#include <functional>
#include <string>

namespace ggtune {

// Call before anything of llama.cpp that may log; does nothing the second time.
void install_llama_log();

// The last errors that this thread's calls logged since it was asked, one line.
std::string take_llama_log();

// Lets everything through to standard error.
void set_llama_log_verbose(bool verbose);

// While it lives, what this thread's calls log goes to `receive`; an exception of it ends there.
class LlamaLogCapture {
  public:
    using Receive = std::function<void(ggml_log_level level, const char * text)>;
    explicit LlamaLogCapture(Receive receive);
    ~LlamaLogCapture();
    LlamaLogCapture(const LlamaLogCapture &) = delete;
    LlamaLogCapture & operator=(const LlamaLogCapture &) = delete;

  private:
    Receive receive_;
    Receive * previous_;
};

}  // namespace ggtune
