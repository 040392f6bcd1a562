"""From training files to packed token samples: records, prompt templates, tokens and weights, micro-batches."""
