"""Runs of a few steps that note what crosses the border to the native module, and what they leave behind.

The border is the place where a fault in the wiring shows: what the engine is given, not what was read or stored on the
way. The engine itself is real, so that losses and files are, too.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from ggtune import TrainConfig, _core, fine_tune
from ggtune.cli import cli
from ggtune.errors import GgtuneError
from ggtune.gguf.adapter_file import AdapterFile, read_adapter

Arrays = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]


@dataclass(frozen=True)
class Sequence:
    """One packed sample as the engine gets it."""

    text: str  # special tokens written out
    n_rows: int
    weights: NDArray[np.float32]  # of the targets, (n_rows,)


@dataclass
class MicroBatch:
    """A call of ``accumulate`` or ``evaluate``."""

    sequences: list[Sequence]
    n_tokens: int
    loss_sum: float
    weight_sum: float


@dataclass
class Seen:
    """What a run gave to the engine, and what it left."""

    model: str = ""  # path
    layer_devices: list[str] = field(default_factory=list)  # of the model that is trained, the output head's the last
    model_arguments: dict[str, Any] = field(default_factory=dict)
    adapter_arguments: dict[str, Any] = field(default_factory=dict)
    trainer_arguments: dict[str, Any] = field(default_factory=dict)
    recompute_layers: int = 0
    start: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # the adapter before anything is computed
    waiting: list[MicroBatch] = field(default_factory=list)  # of the step that is not taken yet
    micro_batches: list[list[MicroBatch]] = field(default_factory=list)  # by step
    evaluated: list[MicroBatch] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)  # arguments of the optimizer step
    norms: list[float] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)  # lines of samples.jsonl
    adapter: AdapterFile | None = None
    files: set[str] = field(default_factory=set)
    event_files: list[Path] = field(default_factory=list)  # TensorBoard's, wherever they are
    output: str = ""
    error: str = ""  # the message where the run was refused

    @property
    def n_steps(self) -> int:
        return len(self.steps)

    @property
    def rates(self) -> list[float]:
        return [step["lr"] for step in self.steps]

    @property
    def losses(self) -> list[float]:
        return [record["loss"] for record in self.metrics]

    @property
    def sequences(self) -> list[Sequence]:
        return [one for step in self.micro_batches for batch in step for one in batch.sequences]

    @property
    def texts(self) -> list[str]:
        return [one.text for one in self.sequences]

    @property
    def held_out(self) -> list[str]:
        """Texts of the held-out samples, each once, in the order of their evaluation."""
        return list(dict.fromkeys(one.text for batch in self.evaluated for one in batch.sequences))

    @property
    def checkpoints(self) -> list[int]:
        return sorted(int(found[1]) for name in self.files if (found := re.fullmatch(r"checkpoint-(\d+)\.gguf", name)))

    def same_adapter(self, other: Seen) -> bool:
        """True where both runs end with the same bits."""
        if self.adapter is None or other.adapter is None:
            return self.adapter is other.adapter
        one, two = self.adapter.tensors, other.adapter.tensors
        return (
            self.adapter.alpha == other.adapter.alpha
            and one.keys() == two.keys()
            and all(np.array_equal(one[name], two[name]) for name in one)
        )


@contextlib.contextmanager
def recording() -> Iterator[Seen]:
    """Note what the native ``Adapter`` and ``Trainer`` are given by whatever runs inside."""
    seen = Seen()
    native_adapter, native_trainer, native_model = _core.Adapter, _core.Trainer, _core.Model

    def make_model(path: str, **arguments: Any) -> _core.Model:
        model = native_model(path, **arguments)
        if not arguments.get("vocab_only") and not arguments.get("header_only"):
            seen.layer_devices, seen.model_arguments = model.layer_devices, arguments
        return model

    def make_adapter(model: _core.Model, **arguments: Any) -> _core.Adapter:
        seen.model = model.path
        seen.adapter_arguments = arguments
        return native_adapter(model, **arguments)

    class Trainer:
        def __init__(self, *positional: Any, **arguments: Any) -> None:
            seen.trainer_arguments = arguments
            self.__dict__["native"] = native_trainer(*positional, **arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.native, name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(self.native, name, value)

        def _call(self, name: str, arrays: Arrays) -> Any:
            adapter = self.native.adapter
            if not seen.start:
                seen.start = {tensor: adapter.get(tensor) for tensor in adapter.tensor_names()}
                seen.recompute_layers = self.native.recompute_layers
            result = getattr(self.native, name)(*arrays)
            batch = MicroBatch(
                list(_sequences(_model_of(seen.model), arrays)), result.n_tokens, result.loss_sum, result.weight_sum
            )
            (seen.waiting if name == "accumulate" else seen.evaluated).append(batch)
            return result

        def accumulate(self, *arrays: Any) -> Any:
            return self._call("accumulate", arrays)  # type: ignore[arg-type]

        def evaluate(self, *arrays: Any) -> Any:
            return self._call("evaluate", arrays)  # type: ignore[arg-type]

        def step(self, lr: float, **arguments: float) -> float:
            seen.steps.append({"lr": lr, **arguments})
            seen.micro_batches.append(seen.waiting)
            seen.waiting = []
            norm: float = self.native.step(lr, **arguments)
            seen.norms.append(norm)
            return norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_core, "Model", make_model)
        patch.setattr(_core, "Adapter", make_adapter)
        patch.setattr(_core, "Trainer", Trainer)
        yield seen


_vocabularies: dict[str, _core.Model] = {}


def _model_of(path: str) -> _core.Model:
    if path not in _vocabularies:
        _vocabularies[path] = _core.Model(path, vocab_only=True)
    return _vocabularies[path]


def _sequences(model: _core.Model, arrays: Arrays) -> Iterator[Sequence]:
    tokens, _, sequences, targets, weights = arrays
    for sequence in np.unique(sequences):
        own = sequences == sequence
        whole = [*tokens[own].tolist(), int(targets[own][-1])]
        text = model.detokenize(whole, special=True).decode("utf-8", "replace")
        yield Sequence(text, int(own.sum()), weights[own])


def finish(seen: Seen, adapter: Path, metrics: Path) -> Seen:
    """Read what the run has left."""
    folder = adapter.parent
    seen.files = {path.name for path in folder.iterdir()} if folder.exists() else set()
    seen.event_files = list(folder.rglob("events.out.tfevents*"))
    if adapter.exists():
        seen.adapter = read_adapter(adapter)
    if metrics.exists():
        seen.metrics = [json.loads(line) for line in metrics.read_text().splitlines()]
    samples = metrics.with_name(metrics.name.replace("metrics.jsonl", "samples.jsonl"))
    if samples.exists():
        seen.answers = [json.loads(line) for line in samples.read_text().splitlines()]
    return seen


def train(out: Path, values: dict[str, Any]) -> Seen:
    """Run :func:`ggtune.fine_tune`."""
    printed = io.StringIO()
    with recording() as seen, contextlib.redirect_stdout(printed):
        try:
            fine_tune(TrainConfig(**values), out, quiet=True)
        except GgtuneError as error:
            seen.error = str(error)
    seen.output = printed.getvalue()
    return finish(seen, out / "adapter.gguf", out / "metrics.jsonl")


def finetune(out: Path, arguments: list[str]) -> Seen:
    """Run the command ``ggtune finetune``, its files in the folder ``out``."""
    out.mkdir()
    paths = {"--lora-out": "adapter.gguf", "--checkpoint-out": "checkpoint-ITERATION.gguf"}
    given = [part for flag, name in paths.items() if flag not in arguments for part in (flag, str(out / name))]
    with recording() as seen:
        result = CliRunner().invoke(cli, ["finetune", *given, *arguments])
    seen.output = result.output
    if result.exit_code:
        seen.error = result.stderr or repr(result.exception)
    return finish(seen, out / "adapter.gguf", out / "adapter.gguf.metrics.jsonl")
