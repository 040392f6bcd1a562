#!/usr/bin/env python3
"""Write a llama-architecture GGUF with random weights in a quantized mixture, of any size, for speed and memory.

    make_random_model.py OUT.gguf VOCAB.gguf SHAPE TYPE

SHAPE is a name (271M, tinyllama, 7b, 13b) or N_EMBD,N_LAYER,N_HEAD,N_HEAD_KV,N_FF. TYPE is Q4_K_M, Q5_K_M or a plain
ggml type such as Q8_0 or F16; the two mixtures give attn_v and ffn_down of half the layers and the output matrix Q6_K,
much as llama.cpp's do. VOCAB.gguf supplies the tokenizer (vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf). Weights
are drawn and quantized once per shape and type and used again, so that a 13B file takes about a minute.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType

from ggtune import _core

SHAPES = {
    "271M": (1024, 16, 16, 16, 2816),
    "tinyllama": (2048, 22, 32, 4, 5632),
    "7b": (4096, 32, 32, 32, 11008),
    "13b": (5120, 40, 40, 40, 13824),
}
MIXTURES = {"Q4_K_M": ("q4_K", "q6_K"), "Q5_K_M": ("q5_K", "q6_K")}


class WeightMaker:
    """Quantized random matrices, one per shape and type."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.made: dict[tuple[str, int, int], np.ndarray[Any, Any]] = {}

    def __call__(self, ggml_type: str, n_out: int, n_in: int) -> np.ndarray[Any, Any]:
        key = (ggml_type, n_out, n_in)
        if key not in self.made:
            values = self.rng.standard_normal((n_out, n_in), dtype=np.float32) / np.float32(np.sqrt(n_in))
            self.made[key] = _core.quantize(ggml_type, values)
        return self.made[key]


def copy_tokenizer(writer: GGUFWriter, vocab: Path) -> int:
    """Copy the tokenizer's keys; returns the size of the vocabulary."""
    fields = GGUFReader(vocab).fields
    for name, field in fields.items():
        if name.startswith("tokenizer."):
            sub_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    return len(fields["tokenizer.ggml.tokens"].contents())


def main() -> None:
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    out, vocab, shape, type_name = sys.argv[1:]
    n_embd, n_layer, n_head, n_head_kv, n_ff = SHAPES.get(shape) or map(int, shape.split(","))
    normal, better = MIXTURES.get(type_name, (type_name, type_name))
    if type_name not in MIXTURES:
        normal = better = next(t.name for t in GGMLQuantizationType if t.name.lower() == type_name.lower())
    head_dim = n_embd // n_head
    writer = GGUFWriter(out, "llama")
    writer.add_name(f"random {shape}")
    writer.add_context_length(4096)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head_dim)
    file_type = getattr(LlamaFileType, f"MOSTLY_{type_name.upper()}", LlamaFileType.MOSTLY_F16)
    writer.add_file_type(file_type)
    n_vocab = copy_tokenizer(writer, Path(vocab))
    writer.add_vocab_size(n_vocab)
    make = WeightMaker()

    def add(name: str, n_out: int, n_in: int, ggml_type: str) -> None:
        # ggml's names of types, in the lower case of _core, and gguf's upper case
        canonical = ggml_type if ggml_type.islower() or "_K" in ggml_type else ggml_type.lower()
        data = make(canonical, n_out, n_in)
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[canonical.upper()])

    def add_norm(name: str) -> None:
        writer.add_tensor(name, np.ones(n_embd, np.float32))

    add("token_embd.weight", n_vocab, n_embd, normal)
    for layer in range(n_layer):
        more_bits = better if layer % 2 == 0 else normal
        block = f"blk.{layer}."
        add_norm(block + "attn_norm.weight")
        add_norm(block + "ffn_norm.weight")
        add(block + "attn_q.weight", n_embd, n_embd, normal)
        add(block + "attn_k.weight", n_head_kv * head_dim, n_embd, normal)
        add(block + "attn_v.weight", n_head_kv * head_dim, n_embd, more_bits)
        add(block + "attn_output.weight", n_embd, n_embd, normal)
        add(block + "ffn_gate.weight", n_ff, n_embd, normal)
        add(block + "ffn_up.weight", n_ff, n_embd, normal)
        add(block + "ffn_down.weight", n_embd, n_ff, more_bits)
    add_norm("output_norm.weight")
    add("output.weight", n_vocab, n_embd, better)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=False)
    writer.close()


if __name__ == "__main__":
    main()
