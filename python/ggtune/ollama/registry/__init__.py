"""Models to and from Docker registries, as ``ollama push`` and ``ollama pull`` do it, without Ollama.

The protocol: https://distribution.github.io/distribution/spec/api/ and https://github.com/opencontainers/distribution-spec
"""
