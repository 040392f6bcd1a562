"""Scales of a merged file that are tuned through the whole model towards the live adapter."""

from __future__ import annotations

from pathlib import Path

import gguf_files
import numpy as np
import pytest
from gguf_files import CODES, LINEARS, N_LAYER, VOCABULARY, codes_of, data_of, model_arrays, random_pairs, write_model
from numpy.typing import NDArray

from architectures import files
from ggtune import _core
from ggtune._core import Model, ScaleTuner
from ggtune.data.samples import make_sample
from ggtune.errors import GgtuneError, ModelError
from ggtune.gguf import scale_tuning

FloatArray = NDArray[np.float32]
Batch = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], FloatArray]
ADAPTED = [f"blk.{layer}.{kind}.weight" for layer in range(N_LAYER) for kind in LINEARS]
LENGTHS = (30, 17, 40)
# where the factors lie in a block, scales before mins (ggml-common.h)
FACTORS = {"q4_0": (0,), "q4_1": (0, 2), "q8_0": (0,), "q2_K": (80, 82), "q4_K": (0, 2), "q6_K": (208,), "iq4_xs": (0,)}


class Case:
    """A base, an adapter beside it, and the two merged by unbiased rounding alone."""

    def __init__(self, folder: Path, ggml_type: str) -> None:
        arrays = model_arrays()
        self.type = ggml_type
        self.base = write_model(folder / "base.gguf", arrays, types=dict.fromkeys(ADAPTED, ggml_type))
        pairs = {name: (a, 0.3 * b) for name, (a, b) in random_pairs(ADAPTED, arrays).items()}
        self.adapter = gguf_files.write_adapter(folder / "adapter.gguf", pairs)
        self.merged = folder / "merged.gguf"
        _core.merge(str(self.base), [(str(self.adapter), 1.0)], str(self.merged))

    def tuner(self, data: dict[str, bytes] | None = None, **options: object) -> ScaleTuner:
        data = {name: data_of(self.merged, name) for name in ADAPTED} if data is None else data
        weights = [(name, self.type, data[name]) for name in data]
        options = {"context": 64, "precision": "f32", **options}
        return ScaleTuner(Model(str(self.base)), str(self.adapter), weights, **options)  # type: ignore[arg-type]


def batch(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> Batch:
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    return (
        rng.integers(3, len(VOCABULARY), n).astype(np.int32),
        np.concatenate([np.arange(length) for length in lengths]).astype(np.int32),
        np.repeat(np.arange(len(lengths)), lengths).astype(np.int32),
        np.zeros(n, np.int32),
        rng.uniform(0.5, 1.5, n).astype(np.float32),
    )


def changed_factors(data: bytes, ggml_type: str, kind: int, by: FloatArray) -> tuple[bytes, FloatArray]:
    """Multiply the factors of one kind by ``1 + by``; returns what was added to them, in half precision as it is."""
    n_bytes, at = CODES[ggml_type][0], FACTORS[ggml_type][kind]
    blocks = np.frombuffer(data, np.uint8).reshape(-1, n_bytes).copy()
    before = blocks[:, at : at + 2].copy().view(np.float16)[:, 0].astype(np.float32)
    after = (before * (1 + by)).astype(np.float16)
    blocks[:, at : at + 2] = after[:, None].view(np.uint8)
    return blocks.tobytes(), after.astype(np.float32) - before


@pytest.mark.parametrize("ggml_type", FACTORS)
def test_gradients_are_those_of_the_divergence(ggml_type: str, tmp_path: Path) -> None:
    """Against central differences, for the factors of each kind in two layers; from the base, which is far away."""
    case = Case(tmp_path, ggml_type)
    data = {name: data_of(case.base, name) for name in ADAPTED}
    tuner = case.tuner(data)
    assert tuner.tuned == ADAPTED
    tuner.accumulate(tuner.add(*batch()))
    gradients = tuner.gradients()
    n_kinds = len(FACTORS[ggml_type])
    for name in ("blk.0.ffn_down.weight", "blk.1.attn_q.weight"):
        n_out = LINEARS[name.split(".")[2]][0]
        of_kinds = gradients[name].reshape(n_out, n_kinds, -1)
        for kind in range(n_kinds):
            gradient = of_kinds[:, kind].ravel()
            # along the gradient, so that the difference is no small one of large numbers
            by = 0.01 * np.sign(gradient)
            ends = []
            for sign in (1, -1):
                other, added = changed_factors(data[name], ggml_type, kind, (sign * by).astype(np.float32))
                moved = case.tuner({**data, name: other})
                ends.append((moved.accumulate(moved.add(*batch())), float(gradient @ added)))
            (up, wanted_up), (down, wanted_down) = ends
            assert up - down == pytest.approx(wanted_up - wanted_down, rel=0.02)


def test_the_loss_is_the_divergence_of_what_both_predict(tmp_path: Path) -> None:
    """As llama.cpp computes it, which rounds the activations; each row counts with its weight."""
    case = Case(tmp_path, "q8_0")
    tokens, positions, sequences, targets, weights = batch()
    outputs = np.ones(len(tokens), bool)
    models = [(case.base, [(str(case.adapter), 1.0)]), (case.merged, [])]
    live, found = (
        _core.Scorer(Model(str(path)), adapters, n_tokens=len(tokens), n_sequences=3).logits(tokens, sequences, outputs)
        for path, adapters in models
    )
    live, found = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (live, found))
    rows = np.sum(np.exp(live) * (live - found), axis=1)
    data = {name: data_of(case.base, name) for name in ADAPTED}  # as if nothing had been merged: not tiny
    plain = _core.Scorer(Model(str(case.base)), (), n_tokens=len(tokens), n_sequences=3)
    base = plain.logits(tokens, sequences, outputs)
    base -= np.log(np.exp(base).sum(axis=1, keepdims=True))
    far = np.sum(np.exp(live) * (live - base), axis=1)
    for tensors, expected in ((None, rows), (data, far)):
        tuner = case.tuner(tensors)
        sum_ = tuner.accumulate(tuner.add(tokens, positions, sequences, targets, weights))
        assert sum_ == pytest.approx(float(weights @ expected), rel=0.05, abs=0.02)
    assert float(far.mean()) > 100 * float(rows.mean())


@pytest.mark.parametrize("precision", ["auto", "f32"])
@pytest.mark.parametrize("ggml_type", ["q4_1", "q4_K"])
def test_scales_come_nearer_and_codes_stay(ggml_type: str, precision: str, tmp_path: Path) -> None:
    case = Case(tmp_path, ggml_type)
    tuner = case.tuner(precision=precision)
    numbers = [tuner.add(*batch(seed)) for seed in range(2)]
    first = sum(map(tuner.accumulate, numbers))
    for _ in range(30):
        tuner.step(2e-3)
        last = sum(map(tuner.accumulate, numbers))
    assert last < (0.5 if ggml_type == "q4_1" else 0.85) * first
    n_bytes, begin, end = CODES[ggml_type]
    for name, data in tuner.weights().items():
        blocks = np.frombuffer(data, np.uint8).reshape(-1, n_bytes)
        assert np.array_equal(blocks[:, begin:end], codes_of(case.merged, name, ggml_type))
        assert data != data_of(case.merged, name)


def test_the_same_bits(tmp_path: Path) -> None:
    """For any number of threads, and with layers that are computed again."""
    case = Case(tmp_path, "q4_0")

    def tuned(threads: int, recompute_layers: int) -> dict[str, bytes]:
        tuner = case.tuner(threads=threads, precision="auto")
        tuner.recompute_layers = recompute_layers
        number = tuner.add(*batch())
        for _ in range(3):
            tuner.accumulate(number)
            tuner.step(2e-3)
        return tuner.weights()

    found = tuned(1, 0)
    assert found != {name: data_of(case.merged, name) for name in ADAPTED}
    for threads, recompute_layers in ((2, 0), (3, 1), (1, 1)):
        assert tuned(threads, recompute_layers) == found


def test_without_a_step_nothing_changes(tmp_path: Path) -> None:
    """And with the smallest, factors that can't move by a part of a half stay, but for a few of them."""
    case = Case(tmp_path, "q4_0")
    before = {name: data_of(case.merged, name) for name in ADAPTED}
    tuner = case.tuner()
    assert tuner.weights() == before
    tuner.accumulate(tuner.add(*batch()))
    tuner.step(1e-5)
    after = tuner.weights()
    old, new = (np.frombuffer(b"".join(d[name] for name in ADAPTED), np.uint8).reshape(-1, 18) for d in (before, after))
    moved = int(np.count_nonzero((old != new).any(axis=1)))
    # a step of the grid is some 2^10 halves' steps over 8 codes: 1e-5 of it is a few thousandths of one
    assert 0 < moved < 0.02 * tuner.n_factors


@pytest.mark.parametrize("name", ["lfm2", "qwen35", "gemma4", "qwen3moe", "deepseek2+experts"])
def test_other_architectures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a state, keys and values of other layers, experts, latent attention: from the base towards the adapter."""
    base = files.write_model(tmp_path, name)
    places = gguf_files.tensors(base)
    linears = [
        each for each in Model(str(base), header_only=True).linears() if places[each.name].tensor_type.name == "Q8_0"
    ]
    rng = np.random.default_rng(0)
    pairs = {
        linear.name: (
            rng.normal(0, linear.n_in**-0.5, (2, linear.n_in)).astype(np.float32),
            rng.normal(0, 0.05, (linear.n_out, 2)).astype(np.float32),
        )
        for linear in linears
    }
    architecture = files.architecture_of(name)
    adapter = gguf_files.write_adapter(tmp_path / "adapter.gguf", pairs, alpha=2.0, architecture=architecture)
    weights = [(linear.name, "q8_0", data_of(base, linear.name)) for linear in linears]
    tuner = ScaleTuner(Model(str(base)), str(adapter), weights, context=64)
    assert tuner.tuned
    assert tuner.memory(87, 3) > tuner.memory(10, 3)  # lengths that are no multiple of each other
    tokens, positions, sequences, targets, weight = batch()
    number = tuner.add(tokens % 200 + 3, positions, sequences, targets, weight)
    first = tuner.accumulate(number)
    for _ in range(5):
        tuner.step(0.5)
        last = tuner.accumulate(number)
    assert 0 < last < 0.9 * first
    monkeypatch.setattr(scale_tuning, "text_pieces", lambda *_: [[1, 2, 3]])  # its tokens are bytes
    output, texts = tmp_path / "tuned.gguf", np.split(tokens % 200 + 3, np.cumsum(LENGTHS)[:-1])
    samples = [make_sample([], text.tolist(), "all", 0) for text in texts]
    names = [linear.name for linear in linears]
    assert scale_tuning.tune_scales(str(base), str(adapter), base, output, names, samples, seconds=1000.0, threads=1)
    written = gguf_files.tensors(output)
    changed = {n for n, t in places.items() if t.data.tobytes() != written[n].data.tobytes()}
    assert set() < changed <= set(tuner.tuned)


def test_rows_in_chunks(tmp_path: Path) -> None:
    """The head of a large vocabulary is computed for some rows at a time, the teacher's, too."""
    arrays = model_arrays()
    rng = np.random.default_rng(0)
    vocabulary = [*VOCABULARY, *(f"w{i}" for i in range(50000))]  # 8 million logits are those of 166 rows
    for name in ("token_embd.weight", "output.weight"):
        arrays[name] = rng.normal(0, 0.05, (len(vocabulary), gguf_files.N_EMBD)).astype(np.float32)
    types = {**dict.fromkeys(ADAPTED, "q4_0"), "token_embd.weight": "q8_0", "output.weight": "q8_0"}
    base = write_model(tmp_path / "base.gguf", arrays, types=types, vocabulary=vocabulary)
    pairs = {name: (a, 0.3 * b) for name, (a, b) in random_pairs(ADAPTED, arrays).items()}
    adapter = gguf_files.write_adapter(tmp_path / "adapter.gguf", pairs)
    read = gguf_files.tensors(base)  # once: gguf-py takes seconds for the vocabulary
    weights = [(name, "q4_0", read[name].data.tobytes()) for name in ADAPTED]

    def gradients(*batches: Batch) -> tuple[float, dict[str, FloatArray]]:
        tuner = ScaleTuner(Model(str(base)), str(adapter), weights, context=128, precision="f32")
        return sum(tuner.accumulate(tuner.add(*each)) for each in batches), tuner.gradients()

    one, two = batch(1, (100,)), batch(2, (90,))
    together = tuple(np.concatenate(parts) for parts in zip(one, two, strict=True))
    together[2][100:] = 1
    whole, of_whole = gradients(together)  # type: ignore[arg-type]
    parts, of_parts = gradients(one, two)
    assert whole == pytest.approx(parts, rel=1e-5)
    for name, gradient in of_whole.items():
        assert np.linalg.norm(gradient - of_parts[name]) < 1e-4 * np.linalg.norm(gradient)


def test_an_adapter_of_the_output_matrix(tmp_path: Path) -> None:
    """Both models have one head: what the adapter adds to it would not be seen."""
    case = Case(tmp_path, "q4_0")
    pairs = random_pairs(["output.weight"], model_arrays())
    adapter = gguf_files.write_adapter(tmp_path / "output.gguf", pairs)
    data = [("output.weight", "f32", data_of(case.base, "output.weight"))]
    with pytest.raises(GgtuneError, match=r"can't be tuned beside an adapter of output\.weight"):
        ScaleTuner(Model(str(case.base)), str(adapter), data, context=64)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    case = Case(tmp_path, "q4_0")
    data = {name: data_of(case.merged, name) for name in ADAPTED}
    with pytest.raises(GgtuneError, match=r"has no tensor blk\.9\.attn_q\.weight"):
        case.tuner({**data, "blk.9.attn_q.weight": data[ADAPTED[0]]})
    with pytest.raises(GgtuneError, match=rf"{ADAPTED[0]} of the merged model has 18 bytes, not \d+"):
        case.tuner({**data, ADAPTED[0]: data[ADAPTED[0]][:18]})
    with pytest.raises(ModelError, match=r"base\.gguf"):
        ScaleTuner(Model(str(case.base)), str(case.base), [], context=64)
    tuner = case.tuner()
    with pytest.raises(GgtuneError, match="nothing to step on"):
        tuner.step(1e-3)
    with pytest.raises(GgtuneError, match="no micro-batch 0"):
        tuner.accumulate(0)
    tokens, *others = batch()
    with pytest.raises(GgtuneError, match=r"row 0 of a micro-batch: token 999 is not in the vocabulary"):
        tuner.add(np.full_like(tokens, 999), *others)
    with pytest.raises(GgtuneError, match="longer than the context of 64 tokens"):
        tuner.add(*batch(lengths=(65,)))


def test_what_has_no_scales_is_read_and_not_tuned(tmp_path: Path) -> None:
    """Of a file that was merged into other types."""
    case = Case(tmp_path, "q4_0")
    values = {name: gguf_files.values(case.merged, name) for name in ADAPTED}
    weights = [
        (name, "f16", values[name].astype(np.float16).tobytes())
        if "attn" in name
        else (name, "q4_0", data_of(case.merged, name))
        for name in ADAPTED
    ]
    mixed = ScaleTuner(Model(str(case.base)), str(case.adapter), weights, context=64, precision="f32")
    assert mixed.tuned == [name for name in ADAPTED if "attn" not in name]
    own = case.tuner()
    assert mixed.accumulate(mixed.add(*batch())) == pytest.approx(own.accumulate(own.add(*batch())), rel=1e-2)
