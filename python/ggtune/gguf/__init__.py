"""GGUF files: structure, reading and writing, adapters, merging."""
