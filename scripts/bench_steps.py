"""Steps for benchmarks and checks: what they consist of, and the trainer that takes and times them."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ggtune._native import core as _core
from ggtune.config import TrainConfig
from ggtune.data.samples import FloatArray
from ggtune.data.tokenization import IntArray
from ggtune.train.build import build

SETTINGS = ("ctx", "samples", "batch", "rank", "targets", "threads", "recompute", "precision", "device", "layers")
ALL = "all"
DATA_STEPS = 5

Arrays = tuple[IntArray, IntArray, IntArray, IntArray, FloatArray]  # a micro-batch, as Trainer's methods take it


@dataclass(frozen=True)
class Shape:
    """What is measured; the names are those of the options."""

    ctx: int
    samples: int
    batch: int
    rank: int
    targets: str  # kinds of linears joined by "+", or ALL
    threads: int
    recompute: bool
    precision: str
    device: str = ""  # devices joined by "+"; "": the CPU
    layers: int = 0  # of the last ones on them, the output head among them; 0: all

    def changed(self, text: str) -> "Shape":
        """``"ctx=4096,samples=32"`` applied to this one."""
        values: dict[str, Any] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            if name not in SETTINGS or not (value or name == "device"):
                sys.exit(f"--against {text}: {part!r} is not one of {', '.join(SETTINGS)} with its value")
            as_text = name in ("precision", "targets", "device")
            values[name] = value if as_text else bool(int(value)) if name == "recompute" else int(value)
        return replace(self, **values)

    def options(self) -> list[str]:
        """Return what a command line gives for it."""
        texts = [f"--{name}={getattr(self, name)}" for name in SETTINGS if name != "recompute"]
        return [*texts, "--recompute"] if self.recompute else texts


@dataclass
class Contender:
    """A shape that is measured: its trainer, its steps, and the best time of each step so far."""

    shape: Shape
    trainer: _core.Trainer
    steps: Sequence[Sequence[Arrays]]
    best: list[dict[str, float]] = field(default_factory=list)

    def run(self) -> None:
        """Take every step once and keep the best times."""
        times = [self._timed(step) for step in self.steps]
        self.best = [min(pair, key=lambda t: t["step_s"]) for pair in zip(self.best or times, times, strict=True)]

    def _timed(self, step: Sequence[Arrays]) -> dict[str, float]:
        start = time.perf_counter()
        results = [self.trainer.accumulate(*batch) for batch in step]
        self.trainer.step(1e-4)
        return {
            "step_s": time.perf_counter() - start,
            "forward_s": sum(r.forward_s for r in results),
            "backward_s": sum(r.backward_s for r in results),
        }

    def seconds(self, name: str) -> float:
        return sum(times[name] for times in self.best) / len(self.best)

    @property
    def n_tokens(self) -> float:
        return sum(len(batch[0]) for step in self.steps for batch in step) / len(self.steps)

    @property
    def n_targets(self) -> float:
        return sum(int((batch[4] != 0).sum()) for step in self.steps for batch in step) / len(self.steps)

    @property
    def tokens_per_second(self) -> float:
        return self.n_tokens / self.seconds("step_s")

    def predicted_bytes(self) -> int:
        """Of the largest micro-batch."""
        largest = max((batch for step in self.steps for batch in step), key=lambda batch: len(batch[0]))
        shape = (len(largest[0]), int((largest[4] != 0).sum()), int(largest[2].max()) + 1)
        return sum(self.trainer.memory(*shape).values())

    def device_bytes(self) -> dict[str, int]:
        """Of the same micro-batch on each device, as predicted."""
        largest = max((batch for step in self.steps for batch in step), key=lambda batch: len(batch[0]))
        shape = (len(largest[0]), int((largest[4] != 0).sum()), int(largest[2].max()) + 1)
        return {name: sum(parts.values()) for name, parts in self.trainer.device_memory(*shape).items()}


def placed(model: _core.Model, shape: Shape) -> _core.Model:
    """Open the model with the layers of a shape on its devices, shared out evenly."""
    if not shape.device:
        return model
    devices = shape.device.split("+")
    each, more = divmod(shape.layers or model.n_layer + 1, len(devices))
    counts = [each + (i < more) for i in range(len(devices))]
    return _core.Model(model.path, devices=devices, device_layers=counts, exact=shape.precision == "f32")


def make_contender(model: _core.Model, shape: Shape, steps: Sequence[Sequence[Arrays]]) -> Contender:
    """Make one with an adapter on its targets, and warm it up."""
    model = placed(model, shape)
    all_kinds = sorted({linear.kind for linear in model.linears()})
    targets = all_kinds if shape.targets == ALL else shape.targets.split("+")
    adapter = _core.Adapter(model, rank=shape.rank, alpha=shape.rank, targets=targets)
    trainer = _core.Trainer(adapter, context=shape.ctx, threads=shape.threads, precision=shape.precision)
    trainer.recompute_layers = model.n_layer - 1 if shape.recompute else 0
    contender = Contender(shape, trainer, steps)
    contender.run()
    contender.best = []
    return contender


def n_active_params(model: _core.Model) -> int:
    """Return the parameters of the linears that a token passes through: of experts those that it takes."""
    n_used = int(model.metadata().get(f"{model.architecture}.expert_used_count", 1))
    return sum(linear.n_in * linear.n_out * (n_used if linear.routed else linear.n_mat) for linear in model.linears())


def random_batch(rng: np.random.Generator, n_vocab: int, n_tokens: int, n_samples: int) -> Arrays:
    """Return a micro-batch of random tokens, every one of them a target."""
    length = -(-n_tokens // n_samples)
    rows = np.arange(n_tokens, dtype=np.int32)
    tokens = rng.integers(0, n_vocab, n_tokens + 1).astype(np.int32)
    return tokens[:-1], rows % length, rows // length, tokens[1:], np.ones(n_tokens, np.float32)


def random_step(rng: np.random.Generator, n_vocab: int, shape: Shape) -> list[Arrays]:
    return [random_batch(rng, n_vocab, shape.ctx, shape.samples) for _ in range(shape.batch)]


def real_steps(model: _core.Model, path: str, shape: Shape) -> tuple[list[list[Arrays]], dict[str, float]]:
    """Return the first steps of ``ggtune train``, and how well all of them are packed."""
    config = TrainConfig(model=model.path, data=path, ctx=shape.ctx, batch=shape.batch, rank=shape.rank)
    plan = build(config, header_only=True).plan
    steps = [
        [b.arrays for b in plan.micro_batches(0, cursor)] for cursor in range(min(DATA_STEPS, plan.steps_per_epoch))
    ]
    packing = plan.packing()
    return steps, {
        "packing_efficiency": packing.efficiency,
        "micro_batches_per_step": packing.micro_batches_per_step,
    }
