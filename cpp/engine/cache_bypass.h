// llama.cpp's graphs write keys and values to a cache and read them back from it. A micro-batch starts with an empty
// cache and fills it, row by row in its own order: what is read is what was written. The reads are led past the cache,
// so that gradients reach keys and values, and the cache needs no memory.
#pragma once

#include <ggml.h>

#include <vector>

namespace ggtune {

// The nodes of a graph in topological order, those that read a cache reading instead what was written to it before:
// the source of a SET_ROWS that fills a leaf of as many rows. Nodes that this needs are made in `ctx`.
std::vector<ggml_tensor *> without_caches(ggml_cgraph * graph, ggml_context * ctx);

}  // namespace ggtune
