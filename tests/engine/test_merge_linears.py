"""A merged model gives what llama.cpp gives with the adapter beside the base, for linears of every kind."""

from __future__ import annotations

import re
from pathlib import Path

import gguf_files
import numpy as np
import pytest
from numpy.typing import NDArray

from architectures import files
from ggtune import _core
from ggtune._core import Linear, Model
from ggtune.errors import ModelError
from ggtune.gguf.merge import merge_adapters

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]

# attention of all kinds, gates, state spaces, convolutions, RWKV; routed and shared experts, in one stack or two
NAMES = [
    *("llama", "gpt2", "falcon", "bitnet", "gemma4+shared-kv", "gemma4+experts", "step35+experts", "muse-glimmer"),
    *(
        "qwen2moe",
        "qwen3moe",
        "llama+experts",
        "gpt-oss",
        "grovemoe",
        "dbrx",
        "deepseek2+experts",
        "hy_v3",
        "hunyuan-moe",
    ),
    *("mamba", "mamba2", "jamba+experts", "falcon-h1", "nemotron_h_moe+experts", "granitehybrid+experts", "plamo2"),
    *("lfm2", "lfm2moe+experts", "qwen35", "qwen3next+experts", "kimi-linear+experts", "rwkv6", "minimax-01"),
]


def random_pairs(linears: list[Linear], seed: int = 0) -> dict[str, Pair]:
    rng = np.random.default_rng(seed)
    pairs = {}
    for linear in linears:
        stack = (linear.n_mat,) if linear.n_mat > 1 else ()
        a = rng.normal(0, linear.n_in**-0.5, (*stack, 2, linear.n_in))
        b = rng.normal(0, 0.05, (*stack, linear.n_out, 2))
        pairs[linear.name] = (a.astype(np.float32), b.astype(np.float32))
    return pairs


def decoded(path: Path, adapter: Path | None = None) -> NDArray[np.float32]:
    tokens = np.arange(5, 29, dtype=np.int32)
    return _core.decode_log_probs(Model(str(path)), tokens, adapter_path=None if adapter is None else str(adapter))


@pytest.mark.parametrize("name", NAMES)
def test_merged_is_what_llama_cpp_adds(tmp_path: Path, name: str) -> None:
    """Factors beside the weights (``*.scale``) included, which some of these graphs apply and others don't."""
    base = files.write_model(tmp_path, name, quantized=False)
    linears = Model(str(base), header_only=True).linears()
    adapter = gguf_files.write_adapter(
        tmp_path / "adapter.gguf", random_pairs(linears), alpha=2.0, architecture=files.architecture_of(name)
    )
    counts = merge_adapters(str(base), [(str(adapter), 1.0)], tmp_path / "merged.gguf")
    assert counts["n_merged_tensors"] == len(linears)
    live = decoded(base, adapter)
    effect = np.abs(live - decoded(base)).max()
    error = np.abs(decoded(tmp_path / "merged.gguf") - live).max()
    assert error < 0.01 * effect
    assert error < 1e-3
    adapted = {linear.name for linear in linears}
    before, after = (gguf_files.tensors(path) for path in (base, tmp_path / "merged.gguf"))
    assert before.keys() == after.keys()
    for tensor in before.keys() - adapted:
        assert before[tensor].data.tobytes() == after[tensor].data.tobytes()


def test_factors_are_found_in_the_graph(tmp_path: Path) -> None:
    """Of the factors in the files of llama and qwen2 the one graph applies all, the other those of attention alone."""
    attention = {"attn_q", "attn_k", "attn_v", "attn_output"}
    for name, kinds in (
        ("llama", attention),
        ("qwen3moe", {*attention, "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}),
    ):
        linears = Model(str(files.write_model(tmp_path, name)), header_only=True).linears()
        assert {linear.kind for linear in linears if linear.scale} == kinds
        assert all(linear.scale in ("", re.sub("weight$", "scale", linear.name)) for linear in linears)


def test_a_factor_of_0_is_refused(tmp_path: Path) -> None:
    scale = "blk.0.attn_q.scale"
    base = files.write_model(tmp_path, "llama", quantized=False)
    arrays = {tensor: gguf_files.values(base, tensor) for tensor in gguf_files.tensors(base)}
    linears = Model(str(base), header_only=True).linears()
    adapter = gguf_files.write_adapter(tmp_path / "adapter.gguf", random_pairs(linears[:1]))
    data = bytearray(base.read_bytes())
    offset = gguf_files.tensors(base)[scale].data_offset
    assert np.frombuffer(data, "<f4", 1, offset)[0] == arrays[scale]
    data[offset : offset + 4] = bytes(4)
    base.write_bytes(data)
    with pytest.raises(ModelError, match=f"{scale} has a factor that is 0"):
        merge_adapters(str(base), [(str(adapter), 1.0)], tmp_path / "merged.gguf")
    assert not (tmp_path / "merged.gguf").exists()
