"""Tiny whole models, with random weights, of kinds that can't be trained, or not even asked."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import gguf_files
import numpy as np

N_EMBD, N_FF, N_HEAD, N_EXPERT, N_BUCKETS = 32, 48, 2, 4, 8
ENCODER_DECODER = "t5"
MIXTURE = "dots1"
RECURRENT = "mamba"


def _started(path: Path, architecture: str) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    n_vocab = len(gguf_files.VOCABULARY)
    writer.add_token_list(list(gguf_files.VOCABULARY))
    writer.add_token_scores([0.0] * n_vocab)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (n_vocab - 259)])
    return writer


def _finished(
    writer: gguf.GGUFWriter, shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, str] | None = None
) -> Path:
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = rng.normal(0, 0.2, shape).astype(np.float32)
        gguf_files.add_tensor(writer, name, values, (types or {}).get(name, "f32"))
    return gguf_files.finish(writer)


def write_encoder_decoder(path: Path) -> Path:
    """Write a T5 with one layer on each side."""
    writer = _started(path, ENCODER_DECODER)
    writer.add_relative_attn_buckets_count(N_BUCKETS)
    writer.add_decoder_start_token_id(1)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(gguf_files.VOCABULARY), N_EMBD)}
    for side in ("enc", "dec"):
        block = f"{side}.blk.0."
        shapes[f"{side}.output_norm.weight"] = (N_EMBD,)
        shapes[block + "attn_rel_b.weight"] = (N_BUCKETS, N_HEAD)
        attentions = ("attn", "cross_attn") if side == "dec" else ("attn",)
        for attention in attentions:
            shapes[f"{block}{attention}_norm.weight"] = (N_EMBD,)
            for part in "qkvo":
                shapes[f"{block}{attention}_{part}.weight"] = (N_EMBD, N_EMBD)
        shapes[block + "ffn_norm.weight"] = (N_EMBD,)
        shapes[block + "ffn_up.weight"] = (N_FF, N_EMBD)
        shapes[block + "ffn_down.weight"] = (N_EMBD, N_FF)
    return _finished(writer, shapes)


def write_mixture(path: Path, *, gating: int | None = None) -> Path:
    """Write a mixture of experts; ``gating`` None leaves the key ``expert_gating_func`` out."""
    writer = _started(path, MIXTURE)
    writer.add_expert_count(N_EXPERT)
    writer.add_expert_used_count(2)
    writer.add_expert_shared_count(1)
    writer.add_expert_feed_forward_length(N_FF)
    if gating is not None:
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType(gating))
    block = "blk.0."
    n_vocab = len(gguf_files.VOCABULARY)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (n_vocab, N_EMBD),
        "output_norm.weight": (N_EMBD,),
        "output.weight": (n_vocab, N_EMBD),
        block + "ffn_gate_inp.weight": (N_EXPERT, N_EMBD),
    }
    for norm, n in (("attn", N_EMBD), ("ffn", N_EMBD), ("attn_q", N_EMBD // N_HEAD), ("attn_k", N_EMBD // N_HEAD)):
        shapes[f"{block}{norm}_norm.weight"] = (n,)
    for kind in ("attn_q", "attn_k", "attn_v", "attn_output"):
        shapes[f"{block}{kind}.weight"] = (N_EMBD, N_EMBD)
    for kind, shape in (("gate", (N_FF, N_EMBD)), ("up", (N_FF, N_EMBD)), ("down", (N_EMBD, N_FF))):
        shapes[f"{block}ffn_{kind}_exps.weight"] = (N_EXPERT, *shape)
        shapes[f"{block}ffn_{kind}_shexp.weight"] = shape
    return _finished(writer, shapes)


def write_recurrent(
    path: Path, *, types: Mapping[str, str] | None = None, numbers: Mapping[str, int] | None = None
) -> Path:
    """Write a Mamba; ``types`` are those of single tensors, ``numbers`` further keys."""
    writer = _started(path, RECURRENT)
    for key, number in (numbers or {}).items():
        writer.add_uint32(key, number)
    n_inner, n_state, kernel, dt_rank = 2 * N_EMBD, 8, 4, 2
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(n_inner)
    writer.add_ssm_state_size(n_state)
    writer.add_ssm_time_step_rank(dt_rank)
    block = "blk.0."
    shapes = {
        "token_embd.weight": (len(gguf_files.VOCABULARY), N_EMBD),
        "output_norm.weight": (N_EMBD,),
        block + "attn_norm.weight": (N_EMBD,),
        block + "ssm_in.weight": (2 * n_inner, N_EMBD),
        block + "ssm_conv1d.weight": (n_inner, kernel),
        block + "ssm_conv1d.bias": (n_inner,),
        block + "ssm_x.weight": (dt_rank + 2 * n_state, n_inner),
        block + "ssm_dt.weight": (n_inner, dt_rank),
        block + "ssm_dt.bias": (n_inner,),
        block + "ssm_a": (n_inner, n_state),
        block + "ssm_d": (n_inner,),
        block + "ssm_out.weight": (N_EMBD, n_inner),
    }
    return _finished(writer, shapes, types)
