"""Readers of recipes: the way of a model or adapter file through the engine, as the commands take it."""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fuzzing.gguf_edits import apply
from ggtune._native import core
from ggtune.errors import GgtuneError
from ggtune.generate import answers
from ggtune.gguf.adapter_file import load_adapter

GOLDEN = Path(__file__).resolve().parents[2] / "tests/golden"
TOKENS = np.array([1, 5, 7, 9], dtype=np.int32)
TEXT = "A b\n\n12 \u00e9\u4e2d \U0001f600</s>"


@functools.cache
def _seed(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


@functools.cache
def _model(name: str) -> core.Model:
    return core.Model(str(GOLDEN / f"{name}.gguf"))


def write_parts(path: Path) -> tuple[str, Path, Path]:
    """Write the model and the adapter of a recipe beside it; also the seed's name."""
    recipe = json.loads(path.read_bytes())
    name = recipe["seed"]
    model, adapter = path.with_name("model.gguf"), path.with_name("adapter.gguf")
    model.write_bytes(apply(_seed(f"{name}.gguf"), recipe.get("model", [])))
    adapter.write_bytes(apply(_seed(f"{name}-lora.gguf"), recipe.get("adapter", [])))
    return name, model, adapter


def use_adapter(path: Path) -> None:
    """Score and generate with an adapter of a recipe, on the unchanged model."""
    name, _, adapter = write_parts(path)
    model = _model(name)
    refused = []
    try:
        core.decode_log_probs(model, TOKENS, adapter_path=str(adapter))
    except GgtuneError as error:
        refused.append(error)
    loaded = load_adapter(adapter, model)
    list(zip(range(2), core.Generator(model, TOKENS, adapter=loaded, context=8), strict=False))
    if refused:
        raise refused[0]


@contextmanager
def _all_or_nothing(folder: Path) -> Iterator[None]:
    before = {each.name for each in folder.iterdir()}
    try:
        yield
    except GgtuneError:
        left = {each.name for each in folder.iterdir()} - before
        assert not left, f"a failure left {left}"
        raise


def merge(path: Path) -> None:
    """Merge model and adapter of a recipe: nothing is left of a merge that failed."""
    _, model, adapter = write_parts(path)
    output = path.with_name("merged.gguf")
    output.unlink(missing_ok=True)
    with _all_or_nothing(path.parent):
        core.merge(str(model), [(str(adapter), 0.5)], str(output))
    settled = path.with_name("settled.gguf")
    settled.unlink(missing_ok=True)
    with _all_or_nothing(path.parent):
        core.merge(str(model), [(str(adapter), 0.5)], str(settled), tokens=TOKENS.tolist(), sequences=[0] * 4)
    try:
        core.check_gguf(str(model))
    except GgtuneError:
        return
    core.check_gguf(str(output))


def load_model(path: Path) -> None:
    """Load the model of a recipe and do with it what the commands do: tokenize, train, score, generate."""
    _, file, _ = write_parts(path)
    model = core.Model(str(file))
    model.metadata()
    model.detokenize(model.tokenize(TEXT, add_special=True), special=True)
    model.detokenize(list(range(min(model.n_vocab, 300))), special=True)
    _train(model)
    core.decode_log_probs(model, TOKENS)
    list(zip(range(2), core.Generator(model, TOKENS), strict=False))
    list(answers(model, [[1, 5], [7]], max_tokens=2, threads=1))
    collector = core.ImatrixCollector(model, context=8)
    collector.add(TOKENS)


def quantize(path: Path) -> None:
    """Quantize the model of a recipe: nothing is left of one that failed, and what is written can be loaded."""
    _, model, _ = write_parts(path)
    output = path.with_name("quantized.gguf")
    output.unlink(missing_ok=True)
    with _all_or_nothing(path.parent):
        core.quantize_model(str(model), str(output), "Q8_0")
    core.check_gguf(str(output))


def _train(model: core.Model) -> None:
    kinds = sorted({linear.kind for linear in model.linears()})
    adapter = core.Adapter(model, rank=2, alpha=4.0, targets=kinds)
    trainer = core.Trainer(adapter, context=8, threads=1)
    n = len(TOKENS)
    rows = np.arange(n, dtype=np.int32)
    trainer.memory(n, n)
    trainer.accumulate(TOKENS, rows, np.zeros_like(rows), np.roll(TOKENS, -1), np.ones(n, dtype=np.float32))
