"""Which weights carry an adapter: those to which llama.cpp applies one, asked of the model's own graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf_files
import numpy as np
import pytest
from numpy.typing import NDArray

from architectures import files
from ggtune import _core
from ggtune._core import Adapter, Model
from ggtune.errors import GgtuneError

ATTENTION = ["attn_q", "attn_k", "attn_v", "attn_output"]
FEED_FORWARD = ["ffn_gate", "ffn_up", "ffn_down"]
EXPERTS = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]
SHARED = ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"]

# by architecture: plain linears and experts
KINDS: Mapping[str, tuple[list[str], list[str]]] = {
    "llama": ([*ATTENTION, *FEED_FORWARD], []),
    "gpt2": (["attn_qkv", "attn_output", "ffn_up", "ffn_down"], []),
    "muse-glimmer": ([*ATTENTION, "attn_gate", *FEED_FORWARD], []),
    "llama+experts": ([*ATTENTION, "ffn_gate_inp"], EXPERTS),
    "qwen2moe": ([*ATTENTION, "ffn_gate_inp", *SHARED], EXPERTS),  # ffn_gate_inp_shexp is a vector
    "grovemoe": (
        [*ATTENTION, "ffn_gate_inp"],
        [*EXPERTS, "ffn_gate_chexps", "ffn_up_chexps", "ffn_down_chexps"],
    ),
    "nemotron_h_moe+experts": (
        [*ATTENTION, "ssm_in", "ssm_out", "ffn_gate_inp", "ffn_up_shexp", "ffn_down_shexp"],
        ["ffn_up_exps", "ffn_down_exps"],
    ),
    "jamba": ([*ATTENTION, *FEED_FORWARD, "ssm_in", "ssm_x", "ssm_dt", "ssm_out"], []),
    "lfm2": ([*ATTENTION, *FEED_FORWARD, "shortconv.in_proj", "shortconv.out_proj"], []),
    "qwen35": (
        [*ATTENTION, "attn_qkv", "attn_gate", *FEED_FORWARD, "ssm_alpha", "ssm_beta", "ssm_out"],
        [],
    ),
    "rwkv6": (
        [
            *(f"time_mix_{name}" for name in ("gate", "key", "output", "receptance", "value")),
            *(f"channel_mix_{name}" for name in ("key", "receptance", "value")),
        ],
        [],
    ),
    "gemma4+shared-kv": ([*ATTENTION, "inp_gate", "proj", *FEED_FORWARD], []),
    # the file has a dense feed-forward, which its graph does not multiply with
    "hy_v3": ([*ATTENTION, "ffn_gate_inp", *SHARED], ["ffn_gate_up_exps", "ffn_down_exps"]),
    # multi-head latent attention: llama.cpp multiplies without adapters
    "deepseek2+experts": (
        ["attn_output", *FEED_FORWARD, "ffn_gate_inp", *SHARED],
        ["ffn_gate_up_exps", "ffn_down_exps"],
    ),
}


def kinds_of(model: Model, *, routed: bool) -> set[str]:
    return {linear.kind for linear in model.linears() if linear.routed == routed}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_kinds(tmp_path: Path, name: str) -> None:
    path = files.write_model(tmp_path, name)
    shapes = files.tensor_shapes(name)
    plain, routed = KINDS[name]
    for model in (Model(str(path)), Model(str(path), header_only=True)):
        assert kinds_of(model, routed=False) == set(plain)
        assert kinds_of(model, routed=True) == set(routed)
        for linear in model.linears():
            n_in, n_out, n_mat = (*shapes[linear.name], 1, 1)[:3]
            assert (linear.n_in, linear.n_out, linear.n_mat) == (n_in, n_out, n_mat)
            assert linear.name == f"blk.{linear.layer}.{linear.kind}.weight"
        order = [tensor.name for tensor in model.tensors()]
        assert [linear.name for linear in model.linears()] == [
            name for name in order if name in {linear.name for linear in model.linears()}
        ]
    assert Model(str(path), vocab_only=True).linears() == []


def decoded(model: Model, adapter: Path | None = None) -> NDArray[np.float32]:
    tokens = np.arange(5, 29, dtype=np.int32)
    return _core.decode_log_probs(model, tokens, adapter_path=None if adapter is None else str(adapter))


@pytest.mark.parametrize("name", [name for name in sorted(KINDS) if name not in ("gpt2", "llama", "jamba")])
def test_llama_cpp_applies_a_pair_to_these_and_to_no_other(tmp_path: Path, name: str) -> None:
    """By its own loader of adapter files, stacks of pairs included."""
    model = Model(str(files.write_model(tmp_path, name)))
    linears = {linear.name for linear in model.linears()}
    matrices = {
        tensor: shape
        for tensor, shape in files.tensor_shapes(name).items()
        if tensor.startswith("blk.") and tensor.endswith(".weight") and 2 <= len(shape) <= 3
    }
    rng = np.random.default_rng(0)
    plain = decoded(model)
    first_of_kind = {tensor.split(".", 2)[2]: tensor for tensor in reversed(matrices)}
    for tensor in first_of_kind.values():
        n_in, n_out, *stack = matrices[tensor]
        a, b = rng.normal(0, 1, (*stack, 1, n_in)), rng.normal(0, 1, (*stack, n_out, 1))
        pairs = {tensor: (a.astype(np.float32), b.astype(np.float32))}
        path = gguf_files.write_adapter(
            tmp_path / "pair.gguf", pairs, alpha=1.0, architecture=files.architecture_of(name)
        )
        assert (decoded(model, path).tobytes() != plain.tobytes()) == (tensor in linears), tensor


def test_a_model_without_linears(tmp_path: Path) -> None:
    for name, why in (("graniteswitch", "does not apply adapters to its linears"), ("t5", "has an encoder")):
        model = Model(str(files.write_model(tmp_path, name)), header_only=True)
        assert model.linears() == []
        with pytest.raises(GgtuneError, match=why):
            Adapter(model, rank=1, alpha=1.0, targets=["attn_q"])


def test_a_pair_of_stacks(tmp_path: Path) -> None:
    """Each expert has a pair of its own, drawn as that of a plain linear is."""
    model = Model(str(files.write_model(tmp_path, "qwen3moe")))
    experts = [linear for linear in model.linears() if linear.routed]
    n_expert = experts[0].n_mat
    assert n_expert > 1
    adapter, again, other = (
        Adapter(model, rank=16, alpha=1.0, targets=["ffn_up_exps", "attn_q"], seed=seed) for seed in (1, 1, 2)
    )
    ups = [linear for linear in experts if linear.kind == "ffn_up_exps"]
    for linear in ups:
        a, b = (adapter.get(linear.name + side) for side in (".lora_a", ".lora_b"))
        assert a.shape == (n_expert, 16, linear.n_in)
        assert b.shape == (n_expert, linear.n_out, 16)
        assert not b.any()
        assert len({expert.tobytes() for expert in a}) == n_expert
        for expert in a:
            assert expert.std() == pytest.approx(linear.n_in**-0.5, rel=0.1)
        np.testing.assert_array_equal(again.get(linear.name + ".lora_a"), a)
        assert (other.get(linear.name + ".lora_a") != a).any()
    queries = [linear for linear in model.linears() if linear.kind == "attn_q"]
    per_pair = [16 * (linear.n_in + linear.n_out) * linear.n_mat for linear in (*ups, *queries)]
    assert adapter.n_params == sum(per_pair)

    name = ups[0].name + ".lora_b"
    values = np.random.default_rng(0).normal(size=adapter.get(name).shape).astype(np.float32)
    adapter.set(name, values)
    np.testing.assert_array_equal(adapter.get(name), values)
    with pytest.raises(GgtuneError, match=rf"has shape \({n_expert}, {ups[0].n_out}, 16\)"):
        adapter.set(name, values[0])
    too_high = min(ups[0].n_in, ups[0].n_out) + 1
    with pytest.raises(GgtuneError, match=f"rank {too_high} is more than blk.0.ffn_up_exps.weight has"):
        Adapter(model, rank=too_high, alpha=1.0, targets=["ffn_up_exps"])


def test_dropped_pairs_are_in_no_graph(tmp_path: Path) -> None:
    model = Model(str(files.write_model(tmp_path, "llama+experts")))
    adapter = Adapter(model, rank=2, alpha=2.0, targets=["attn_q", "ffn_up_exps"])
    names = [linear.name for linear in model.linears() if linear.kind in ("attn_q", "ffn_up_exps")]
    n_params = adapter.n_params
    rng = np.random.default_rng(0)
    for name in adapter.tensor_names():
        adapter.set(name, rng.normal(size=adapter.get(name).shape).astype(np.float32))
    kept = {name: adapter.get(name) for name in adapter.tensor_names() if not name.startswith(names[-1])}
    n_dropped = sum(adapter.get(names[-1] + side).size for side in (".lora_a", ".lora_b"))

    def answer() -> list[int]:
        generator = _core.Generator(model, [1, 5, 6], adapter=adapter, context=24)
        return list(generator)

    adapter.drop(names[-1:])
    assert adapter.dropped == names[-1:]
    assert adapter.n_params == n_params - n_dropped
    assert {name: adapter.get(name).tobytes() for name in adapter.tensor_names()} == {
        name: values.tobytes() for name, values in kept.items()
    }
    with pytest.raises(GgtuneError, match="no tensor"):
        adapter.get(names[-1] + ".lora_a")
    with pytest.raises(GgtuneError, match="no pair of the adapter is left"):
        adapter.drop(names)
    assert adapter.dropped == names[-1:]
    answer()
    for name in kept:
        if name.endswith(".lora_b"):
            adapter.set(name, np.zeros_like(kept[name]))
    without = list(_core.Generator(model, [1, 5, 6], context=24))
    assert answer() == without  # the dropped pair's B is not 0
