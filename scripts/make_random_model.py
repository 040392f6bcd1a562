#!/usr/bin/env python3
"""Write a GGUF with random weights in a quantized mixture, of any size, for speed and memory.

    make_random_model.py OUT.gguf VOCAB.gguf SHAPE TYPE

SHAPE is a name (271M, tinyllama, 7b, 13b; mixtures of experts: olmoe, mixtral, qwen3-30b-a3b; hybrids: lfm2-1.2b,
qwen3.5-0.8b, mamba2-780m) or the numbers N_EMBD, N_LAYER, N_HEAD, N_HEAD_KV, N_FF and, of a mixture, N_EXPERT and
N_USED, separated by commas: the architecture is llama, of a mixture olmoe. TYPE is Q4_K_M, Q5_K_M or a plain ggml type
such as Q8_0 or F16; the two mixtures of types give attn_v and ffn_down of half the layers and the output matrix Q6_K,
much as llama.cpp's do. VOCAB.gguf supplies the tokenizer (vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf). Weights
are drawn and quantized once per shape and type and used again, also for all experts of a layer, so that a 13B file
takes about a minute.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType

from ggtune import _core


@dataclass(frozen=True)
class Shape:
    """Numbers of a model; ``n_ff`` is that of an expert where there are experts."""

    n_embd: int
    n_layer: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_expert: int = 0
    n_used: int = 0
    architecture: str = ""
    head_dim: int = 0

    @classmethod
    def of(cls, text: str) -> "Shape":
        """Return that of a name or of numbers."""
        if text in SHAPES:
            return SHAPES[text]
        n_embd, n_layer, n_head, n_head_kv, n_ff, *experts = map(int, text.split(","))
        n_expert, n_used = experts or (0, 0)
        return cls(n_embd, n_layer, n_head, n_head_kv, n_ff, n_expert, n_used)

    @property
    def arch(self) -> str:
        return self.architecture or ("olmoe" if self.n_expert else "llama")

    @property
    def n_rot(self) -> int:
        return self.head_dim or self.n_embd // self.n_head


SHAPES = {
    "271M": Shape(1024, 16, 16, 16, 2816),
    "tinyllama": Shape(2048, 22, 32, 4, 5632),
    "7b": Shape(4096, 32, 32, 32, 11008),
    "13b": Shape(5120, 40, 40, 40, 13824),
    "olmoe": Shape(2048, 16, 16, 16, 1024, 64, 8),
    "mixtral": Shape(4096, 32, 32, 8, 14336, 8, 2, "llama"),
    "qwen3-30b-a3b": Shape(2048, 48, 32, 4, 768, 128, 8, "qwen3moe", 128),
}
MIXTURES = {"Q4_K_M": ("q4_K", "q6_K"), "Q5_K_M": ("q5_K", "q6_K")}


class ModelWriter:
    """A file in the making. Quantized random matrices are made once per shape and type."""

    def __init__(self, path: str, architecture: str, vocab: Path, shape: str, type_name: str) -> None:
        self.normal, self.better = MIXTURES.get(type_name, (type_name, type_name))
        if type_name not in MIXTURES:
            self.normal = self.better = next(
                t.name for t in GGMLQuantizationType if t.name.lower() == type_name.lower()
            )
        self.writer = GGUFWriter(path, architecture)
        self.rng = np.random.default_rng(0)
        self.made: dict[tuple[str, int, int], np.ndarray[Any, Any]] = {}
        self.writer.add_name(f"random {shape}")
        self.writer.add_file_type(getattr(LlamaFileType, f"MOSTLY_{type_name.upper()}", LlamaFileType.MOSTLY_F16))
        self.n_vocab = copy_tokenizer(self.writer, vocab)
        self.writer.add_vocab_size(self.n_vocab)

    def matrix(self, name: str, n_out: int, n_in: int, more_bits: bool = False, n_expert: int = 0) -> None:
        """Add a matrix, or the stack of those of all experts of a layer."""
        ggml_type = self.better if more_bits else self.normal
        # ggml's names of types, in the lower case of _core, and gguf's upper case
        canonical = ggml_type if ggml_type.islower() or "_K" in ggml_type else ggml_type.lower()
        key = (canonical, n_out, n_in)
        if key not in self.made:
            values = self.rng.standard_normal((n_out, n_in), dtype=np.float32) / np.float32(np.sqrt(n_in))
            self.made[key] = _core.quantize(canonical, values)
        one = self.made[key]
        data = np.broadcast_to(one, (n_expert, *one.shape)) if n_expert else one
        self.writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[canonical.upper()])

    def constant(self, name: str, *shape: int, value: float = 1.0) -> None:
        self.writer.add_tensor(name, np.full(shape, value, np.float32))

    def floats(self, name: str, n_out: int, n_in: int) -> None:
        values = self.rng.standard_normal((n_out, n_in), dtype=np.float32) / np.float32(np.sqrt(n_in))
        self.writer.add_tensor(name, values)

    def sizes(self, n_embd: int, n_layer: int, n_ff: int) -> None:
        self.writer.add_context_length(4096)
        self.writer.add_embedding_length(n_embd)
        self.writer.add_block_count(n_layer)
        self.writer.add_feed_forward_length(n_ff)
        self.writer.add_layer_norm_rms_eps(1e-5)

    def feed_forward(self, block: str, n_embd: int, n_ff: int, more_bits: bool, n_expert: int = 0) -> None:
        kind = "_exps" if n_expert else ""
        self.matrix(f"{block}ffn_gate{kind}.weight", n_ff, n_embd, n_expert=n_expert)
        self.matrix(f"{block}ffn_up{kind}.weight", n_ff, n_embd, n_expert=n_expert)
        self.matrix(f"{block}ffn_down{kind}.weight", n_embd, n_ff, more_bits, n_expert)

    def state_space(self, inner: int, state: int, heads: int, groups: int) -> None:
        self.writer.add_ssm_conv_kernel(4)
        self.writer.add_ssm_inner_size(inner)
        self.writer.add_ssm_state_size(state)
        self.writer.add_ssm_time_step_rank(heads)
        self.writer.add_ssm_group_count(groups)

    def close(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file(progress=False)
        self.writer.close()


def copy_tokenizer(writer: GGUFWriter, vocab: Path) -> int:
    """Copy the tokenizer's keys; returns the size of the vocabulary."""
    fields = GGUFReader(vocab).fields
    for name, field in fields.items():
        if name.startswith("tokenizer."):
            sub_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    return len(fields["tokenizer.ggml.tokens"].contents())


def write_transformer(model: ModelWriter, shape: Shape) -> None:
    """Attention and feed-forward in every layer, the latter by experts where there are any."""
    n_embd, n_head_out, n_kv_out = shape.n_embd, shape.n_head * shape.n_rot, shape.n_head_kv * shape.n_rot
    model.sizes(n_embd, shape.n_layer, shape.n_ff)
    model.writer.add_head_count(shape.n_head)
    model.writer.add_head_count_kv(shape.n_head_kv)
    model.writer.add_rope_dimension_count(shape.n_rot)
    if shape.head_dim:
        model.writer.add_key_length(shape.head_dim)
        model.writer.add_value_length(shape.head_dim)
    if shape.n_expert:
        model.writer.add_expert_count(shape.n_expert)
        model.writer.add_expert_used_count(shape.n_used)
        model.writer.add_expert_feed_forward_length(shape.n_ff)
    model.matrix("token_embd.weight", model.n_vocab, n_embd)
    for layer in range(shape.n_layer):
        more_bits = layer % 2 == 0
        block = f"blk.{layer}."
        model.constant(block + "attn_norm.weight", n_embd)
        model.constant(block + "ffn_norm.weight", n_embd)
        if shape.arch in ("olmoe", "qwen3moe"):
            model.constant(block + "attn_q_norm.weight", n_head_out if shape.arch == "olmoe" else shape.n_rot)
            model.constant(block + "attn_k_norm.weight", n_kv_out if shape.arch == "olmoe" else shape.n_rot)
        model.matrix(block + "attn_q.weight", n_head_out, n_embd)
        model.matrix(block + "attn_k.weight", n_kv_out, n_embd)
        model.matrix(block + "attn_v.weight", n_kv_out, n_embd, more_bits)
        model.matrix(block + "attn_output.weight", n_embd, n_head_out)
        if shape.n_expert:
            model.floats(block + "ffn_gate_inp.weight", shape.n_expert, n_embd)
        model.feed_forward(block, n_embd, shape.n_ff, more_bits, shape.n_expert)
    model.constant("output_norm.weight", n_embd)
    model.matrix("output.weight", model.n_vocab, n_embd, more_bits=True)


def write_lfm2(model: ModelWriter) -> None:
    """LFM2-1.2B: short convolutions, attention in six of the sixteen layers; tied embeddings."""
    n_embd, n_layer, n_ff, n_head, n_head_kv, head_dim = 2048, 16, 8192, 32, 8, 64
    attention = {2, 5, 8, 10, 12, 14}
    model.sizes(n_embd, n_layer, n_ff)
    model.writer.add_head_count(n_head)
    model.writer.add_head_count_kv([n_head_kv if layer in attention else 0 for layer in range(n_layer)])
    model.writer.add_rope_freq_base(1e6)
    model.writer.add_shortconv_l_cache(3)
    model.matrix("token_embd.weight", model.n_vocab, n_embd, more_bits=True)
    model.constant("token_embd_norm.weight", n_embd)
    for layer in range(n_layer):
        more_bits = layer % 2 == 0
        block = f"blk.{layer}."
        model.constant(block + "attn_norm.weight", n_embd)
        model.constant(block + "ffn_norm.weight", n_embd)
        if layer in attention:
            model.constant(block + "attn_q_norm.weight", head_dim)
            model.constant(block + "attn_k_norm.weight", head_dim)
            model.matrix(block + "attn_q.weight", n_embd, n_embd)
            model.matrix(block + "attn_k.weight", n_head_kv * head_dim, n_embd)
            model.matrix(block + "attn_v.weight", n_head_kv * head_dim, n_embd, more_bits)
            model.matrix(block + "attn_output.weight", n_embd, n_embd)
        else:
            model.floats(block + "shortconv.conv.weight", n_embd, 3)
            model.matrix(block + "shortconv.in_proj.weight", 3 * n_embd, n_embd)
            model.matrix(block + "shortconv.out_proj.weight", n_embd, n_embd)
        model.feed_forward(block, n_embd, n_ff, more_bits)


def write_qwen35(model: ModelWriter) -> None:
    """Qwen3.5-0.8B: gated delta nets, attention in every fourth layer; tied embeddings."""
    n_embd, n_layer, n_ff, n_head, n_head_kv, head_dim = 1024, 24, 3584, 8, 2, 256
    heads, dim = 16, 128
    model.sizes(n_embd, n_layer, n_ff)
    model.writer.add_head_count(n_head)
    model.writer.add_head_count_kv(n_head_kv)
    model.writer.add_key_length(head_dim)
    model.writer.add_value_length(head_dim)
    model.writer.add_rope_dimension_count(head_dim // 4)
    model.writer.add_rope_dimension_sections([11, 11, 10, 0])
    model.writer.add_rope_freq_base(1e7)
    model.writer.add_full_attention_interval(4)
    model.state_space(heads * dim, dim, heads, heads)
    model.matrix("token_embd.weight", model.n_vocab, n_embd, more_bits=True)
    model.constant("output_norm.weight", n_embd)
    for layer in range(n_layer):
        more_bits = layer % 2 == 0
        block = f"blk.{layer}."
        model.constant(block + "attn_norm.weight", n_embd)
        model.constant(block + "post_attention_norm.weight", n_embd)
        if layer % 4 == 3:
            model.constant(block + "attn_q_norm.weight", head_dim)
            model.constant(block + "attn_k_norm.weight", head_dim)
            model.matrix(block + "attn_q.weight", 2 * n_head * head_dim, n_embd)
            model.matrix(block + "attn_k.weight", n_head_kv * head_dim, n_embd)
            model.matrix(block + "attn_v.weight", n_head_kv * head_dim, n_embd, more_bits)
            model.matrix(block + "attn_output.weight", n_embd, n_head * head_dim)
        else:
            model.matrix(block + "attn_qkv.weight", 3 * heads * dim, n_embd)
            model.matrix(block + "attn_gate.weight", heads * dim, n_embd)
            model.floats(block + "ssm_conv1d.weight", 3 * heads * dim, 4)
            model.constant(block + "ssm_dt.bias", heads, value=-3.0)
            model.constant(block + "ssm_a", heads, value=-1.0)
            model.matrix(block + "ssm_alpha.weight", heads, n_embd)
            model.matrix(block + "ssm_beta.weight", heads, n_embd)
            model.constant(block + "ssm_norm.weight", dim)
            model.matrix(block + "ssm_out.weight", n_embd, heads * dim)
        model.feed_forward(block, n_embd, n_ff, more_bits)


def write_mamba2(model: ModelWriter) -> None:
    """Mamba2-780M; tied embeddings."""
    n_embd, n_layer, inner, state, heads = 1536, 48, 3072, 128, 48
    model.sizes(n_embd, n_layer, 0)
    model.writer.add_head_count(0)
    model.state_space(inner, state, heads, 1)
    model.matrix("token_embd.weight", model.n_vocab, n_embd, more_bits=True)
    model.constant("output_norm.weight", n_embd)
    for layer in range(n_layer):
        block = f"blk.{layer}."
        model.constant(block + "attn_norm.weight", n_embd)
        model.matrix(block + "ssm_in.weight", 2 * inner + 2 * state + heads, n_embd)
        model.floats(block + "ssm_conv1d.weight", inner + 2 * state, 4)
        model.constant(block + "ssm_conv1d.bias", inner + 2 * state, value=0.0)
        model.constant(block + "ssm_dt.bias", heads, value=-3.0)
        model.constant(block + "ssm_a", heads, 1, value=-1.0)
        model.constant(block + "ssm_d", heads, 1)
        model.constant(block + "ssm_norm.weight", 1, inner)
        model.matrix(block + "ssm_out.weight", n_embd, inner, more_bits=layer % 2 == 0)


OTHERS: dict[str, tuple[str, Callable[[ModelWriter], None]]] = {
    "lfm2-1.2b": ("lfm2", write_lfm2),
    "qwen3.5-0.8b": ("qwen35", write_qwen35),
    "mamba2-780m": ("mamba2", write_mamba2),
}


def main() -> None:
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    out, vocab, shape_name, type_name = sys.argv[1:]
    if shape_name in OTHERS:
        architecture, write = OTHERS[shape_name]
        model = ModelWriter(out, architecture, Path(vocab), shape_name, type_name)
        write(model)
    else:
        shape = Shape.of(shape_name)
        model = ModelWriter(out, shape.arch, Path(vocab), shape_name, type_name)
        write_transformer(model, shape)
    model.close()


if __name__ == "__main__":
    main()
