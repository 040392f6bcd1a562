"""Scales and mins that are fitted to what the layers read: outputs are nearer, and no part of the adapter is lost."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import gguf
import gguf_files
import numpy as np
import pytest
from gguf_files import (
    LINEARS,
    N_LAYER,
    VOCABULARY,
    codes_of,
    data_of,
    model_arrays,
    random_pairs,
    scales_of,
    write_adapter,
    write_model,
)
from numpy.typing import NDArray

from architectures import files
from ggtune import _core
from ggtune._core import Model
from ggtune.gguf import built_in_text, merge

FloatArray = NDArray[np.float32]
ADAPTED = [f"blk.{layer}.{kind}.weight" for layer in range(N_LAYER) for kind in LINEARS]
LENGTH = 60


@dataclass
class Case:
    base: Path
    adapter: Path
    deltas: dict[str, FloatArray]

    def merge(self, **options: object) -> Path:
        output = self.base.with_name("merged.gguf")
        self.counts = _core.merge(str(self.base), [(str(self.adapter), 1.0)], str(output), **options)  # type: ignore[arg-type]
        return output

    def fit(self, **options: object) -> Path:
        return self.merge(tokens=text(), sequences=[i // LENGTH for i in range(len(text()))], **options)


def text(seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(3, len(VOCABULARY), 5 * LENGTH)]


def make_case(folder: Path, ggml_type: str) -> Case:
    arrays = model_arrays()
    # what all tokens have in common, as in a real model
    arrays["token_embd.weight"] += np.random.default_rng(2).normal(0, 2, arrays["token_embd.weight"].shape[1])
    base = write_model(folder / "base.gguf", arrays, types=dict.fromkeys(ADAPTED, ggml_type))
    factor = 0.02 if ggml_type == "q6_K" else 0.05  # no block quantized anew
    pairs = {name: (a, factor * b) for name, (a, b) in random_pairs(ADAPTED, arrays).items()}
    adapter = write_adapter(folder / "adapter.gguf", pairs)
    return Case(base, adapter, {name: (2.0 * b @ a).astype(np.float32) for name, (a, b) in pairs.items()})


# divergence with scales fitted, of what it is without: the fewer scales and mins, the less can be gained
NEARER = {"q4_0": 0.06, "q4_1": 0.05, "q4_K": 0.2, "q6_K": 0.5, "iq4_xs": 0.4, "mxfp4": 1.0}


@pytest.mark.parametrize("ggml_type", NEARER)
def test_outputs_are_nearer(ggml_type: str, tmp_path: Path) -> None:
    """The same bytes with any number of threads, and the codes as without the fit."""
    case = make_case(tmp_path, ggml_type)

    def written(path: Path) -> dict[str, bytes]:
        assert sum(tensor["n_moved"] for tensor in case.counts["tensors"].values()) > 0
        return {name: data_of(path, name) for name in ADAPTED}

    def divergence(path: Path) -> float:
        """KL from the live adapter's predictions, on another text."""
        other = np.array(text(1)[:200], np.int32)
        outputs, sequences = np.ones(200, bool), np.zeros(200, np.int32)
        models = [(str(case.base), [(str(case.adapter), 1.0)]), (str(path), [])]
        live, found = (
            _core.Scorer(Model(model), adapters, n_tokens=200, n_sequences=1).logits(other, sequences, outputs)
            for model, adapters in models
        )
        live, found = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (live, found))
        return float(np.mean(np.sum(np.exp(live) * (live - found), axis=1)))

    output = case.merge()
    assert not any(tensor["fitted"] for tensor in case.counts["tensors"].values())
    plain = written(output)
    before = {name: codes_of(output, name, ggml_type) for name in ADAPTED}
    far = divergence(output)
    fitted = written(case.fit())
    can_fit = ggml_type != "mxfp4"
    assert {tensor["fitted"] for tensor in case.counts["tensors"].values()} == {can_fit}
    if not can_fit:  # its scales are powers of two
        assert fitted == plain
        return
    assert all(fitted[name] != plain[name] for name in ADAPTED)
    for name, codes in before.items():
        assert np.array_equal(codes_of(output, name, ggml_type), codes)
    assert divergence(output) < NEARER[ggml_type] * far
    for threads in (2, 3):
        assert written(case.fit(threads=threads)) == fitted
    assert written(case.fit(seed=1)) != fitted


@pytest.mark.parametrize("ggml_type", ["q4_0", "q2_K"])
def test_weights_do_not_shrink(ggml_type: str, tmp_path: Path) -> None:
    """The mean over seeds of what the weights lose, which the ends of the grid alone make more than nothing."""
    case = make_case(tmp_path, ggml_type)
    wanted = {name: gguf_files.values(case.base, name) + case.deltas[name] for name in ADAPTED}

    def along(path: Path) -> float:
        """Of the error, along the weights: 0.01 where each is a hundredth too large."""
        errors = ((gguf_files.values(path, name) - w, w) for name, w in wanted.items())
        return float(np.mean([np.sum(e * w) / np.sum(w * w) for e, w in errors]))

    plain = np.mean([along(case.merge(seed=seed, threads=2)) for seed in range(8)])
    fitted = np.mean([along(case.fit(seed=seed, threads=2)) for seed in range(8)])
    assert plain < 0
    assert abs(fitted) < abs(plain)


# convolutions, a state-space model, and one with attention between
@pytest.mark.parametrize("name", ["lfm2", "mamba2", "qwen35"])
def test_models_with_a_state_are_fitted_to_all_of_the_text(name: str, tmp_path: Path) -> None:
    """Also to what stands behind the first tokens of texts of unequal length, of which llama.cpp makes parts."""
    base = files.write_model(tmp_path, name)
    linears = [linear for linear in Model(str(base), header_only=True).linears() if linear.n_in % 32 == 0]
    rng = np.random.default_rng(0)
    pairs = {
        linear.name: (
            rng.normal(0, linear.n_in**-0.5, (2, linear.n_in)).astype(np.float32),
            rng.normal(0, 2e-4, (linear.n_out, 2)).astype(np.float32),
        )
        for linear in linears
    }
    adapter = write_adapter(tmp_path / "adapter.gguf", pairs, alpha=2.0, architecture=files.architecture_of(name))
    case = Case(base, adapter, {})
    lengths = [20, 60, 60, 60, 60]
    sequences = np.repeat(np.arange(len(lengths)), lengths)
    places = np.concatenate([np.arange(n) for n in lengths])

    def scales(tokens: NDArray[np.int64]) -> dict[str, bytes]:
        path = case.merge(tokens=tokens.tolist(), sequences=sequences.tolist(), outtype="q8_0")
        fitted = [tensor for tensor, count in case.counts["tensors"].items() if count["fitted"]]
        assert len(fitted) > len(linears) / 2
        return {tensor: scales_of(path, tensor, "q8_0").tobytes() for tensor in fitted}

    tokens = rng.integers(3, 200, sum(lengths))
    first = scales(tokens)
    second = scales(np.where(places < 20, tokens, tokens[::-1]))
    assert first.keys() == second.keys()
    assert all(first[tensor] != second[tensor] for tensor in first)


def check_merged_without_a_text(case: Case, tokens: list[int]) -> None:
    plain = data_of(case.merge(), ADAPTED[0])
    assert case.counts["not_fitted"] == ""
    assert data_of(case.merge(tokens=tokens, sequences=[0] * len(tokens)), ADAPTED[0]) == plain
    assert case.counts["not_fitted"]
    assert not any(tensor["fitted"] for tensor in case.counts["tensors"].values())


def test_a_text_that_cannot_be_read_is_not_fitted_to(tmp_path: Path) -> None:
    check_merged_without_a_text(make_case(tmp_path, "q4_0"), [len(VOCABULARY)] * 100)  # there is no such token


def test_a_model_that_cannot_be_run_is_merged_without_a_text(tmp_path: Path) -> None:
    array = model_arrays()[ADAPTED[0]]
    writer = gguf.GGUFWriter(tmp_path / "base.gguf", "llama")  # one tensor, and nothing to run
    gguf_files.add_tensor(writer, ADAPTED[0], array, "q4_0")
    base = gguf_files.finish(writer)
    pairs = {name: (a, 0.05 * b) for name, (a, b) in random_pairs(ADAPTED[:1], {ADAPTED[0]: array}).items()}
    check_merged_without_a_text(Case(base, write_adapter(tmp_path / "adapter.gguf", pairs), {}), [1] * 100)


def test_the_built_in_text_is_long_enough() -> None:
    """For any tokenizer: few make less than a token of each word and mark."""
    assert len(re.findall(r"\w+|[^\w\s]", built_in_text._TEXT.read_text(encoding="utf-8"))) > 1.15 * merge._TEXT_TOKENS
