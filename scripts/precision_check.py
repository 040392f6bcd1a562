#!/usr/bin/env python3
"""How far the gradients of `--precision auto` are from those of `--precision f32`, and whether the errors are biased.

    precision_check.py model.gguf [--data train.csv] [--ctx 512] [--rank 16] [--repeats 8] [--threads 2] [--json]

Each repeat has an adapter and a micro-batch of its own: ``--ctx`` random tokens, every one of them a target, or with
``--data`` one that ``ggtune train`` takes in its first steps. The adapter is on all linears, with a random B: with the
zeros that a run starts from, A would have no gradient.

A tensor's difference is the norm of what its two gradients differ by over the norm of the one in float32. Three means
tell whether the differences have a direction: of the targets' log p; of the signed errors, in units of the root mean
square of their tensor's gradient; and of the stretch, which is a gradient's projection on the one in float32, less 1.
Their standard errors are those of the repeats' means: within a repeat one rounding has a part in many errors.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench_steps import ALL, Arrays, Shape, random_batch, real_steps
from ggtune._native import core as _core
from ggtune.data.samples import FloatArray
from ggtune.system import available_threads

B_DEVIATION = 0.02  # the adapter's outputs are then some percent of the layer's
PRECISION, REFERENCE = "auto", "f32"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("--data", help="real micro-batches: what `ggtune train --data` takes")
    parser.add_argument("--ctx", type=int, default=512, help="tokens of the micro-batch, at most (default 512)")
    parser.add_argument("--batch", type=int, default=8, help="samples of --data in a step (default 8)")
    parser.add_argument("--rank", type=int, default=16, help="LoRA rank (default 16)")
    parser.add_argument("--repeats", type=int, default=8, help="at least 2 (default 8)")
    parser.add_argument("--threads", type=int, default=available_threads(), help="default: all that may be used")
    parser.add_argument("--seed", type=int, default=0, help="of adapters and random tokens (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if args.repeats < 2:
        parser.error("--repeats must be at least 2: one has no standard error")
    return args


@dataclass(frozen=True)
class Pass:
    """What one micro-batch gives."""

    loss: float  # mean of the targets
    log_probs: FloatArray  # of the targets
    gradients: dict[str, FloatArray]


@dataclass(frozen=True)
class Difference:
    """Of one adapter tensor's gradient from its reference."""

    name: str  # "blk.0.attn_q.weight.lora_a"
    relative: float  # in norm
    stretch: float  # projection on the reference, less 1
    mean_error: float  # over the reference's root mean square

    @property
    def kind(self) -> str:
        return self.name.split(".")[2]

    @property
    def side(self) -> str:
        return self.name[-1].upper()


def make_adapter(model: _core.Model, rank: int, seed: int) -> _core.Adapter:
    targets = sorted({linear.kind for linear in model.linears()})
    adapter = _core.Adapter(model, rank=rank, alpha=rank, targets=targets, seed=seed)
    rng = np.random.default_rng(seed)
    for name in adapter.tensor_names():
        if name.endswith(".lora_b"):
            adapter.set(name, rng.normal(0, B_DEVIATION, adapter.get(name).shape).astype(np.float32))
    return adapter


def compute(
    model: _core.Model, adapter: _core.Adapter, batch: Arrays, precision: str, args: argparse.Namespace
) -> Pass:
    trainer = _core.Trainer(adapter, context=args.ctx, threads=args.threads, precision=precision)
    result = trainer.accumulate(*batch)
    return Pass(result.loss_sum / result.weight_sum, result.log_probs[batch[4] != 0], trainer.gradients())


def difference(name: str, gradient: FloatArray, reference: FloatArray) -> Difference:
    expected = reference.astype(np.float64)
    errors = gradient - expected
    square = float(np.square(expected).sum())
    rms = math.sqrt(square / expected.size)
    return Difference(
        name,
        relative=math.sqrt(float(np.square(errors).sum()) / square),
        stretch=float((errors * expected).sum()) / square,
        mean_error=float(errors.mean()) / rms,
    )


def micro_batches(args: argparse.Namespace, model: _core.Model) -> list[Arrays]:
    """Return one for each repeat; real ones come again where there are fewer."""
    if args.data:
        shape = Shape(args.ctx, 1, args.batch, args.rank, ALL, args.threads, recompute=False, precision=PRECISION)
        batches = [batch for step in real_steps(model, args.data, shape)[0] for batch in step]
        return [batches[i % len(batches)] for i in range(args.repeats)]
    rng = np.random.default_rng(args.seed)
    return [random_batch(rng, model.n_vocab, args.ctx, 1) for _ in range(args.repeats)]


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    array = np.fromiter(values, np.float64)
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(array.size))


def compare(args: argparse.Namespace) -> dict[str, Any]:
    model = _core.Model(args.model)
    losses = []
    log_prob_errors = []
    repeats: list[list[Difference]] = []
    batches = micro_batches(args, model)
    for i, batch in enumerate(batches):
        adapter = make_adapter(model, args.rank, args.seed + i)
        given = compute(model, adapter, batch, PRECISION, args)
        reference = compute(model, adapter, batch, REFERENCE, args)
        losses.append((given.loss, reference.loss))
        log_prob_errors.append(float((given.log_probs - reference.log_probs).mean()))
        repeats.append(
            [difference(name, given.gradients[name], gradient) for name, gradient in reference.gradients.items()]
        )

    tensors = [tensor for repeat in repeats for tensor in repeat]
    largest = max(tensors, key=lambda tensor: tensor.relative)
    by_kind: dict[str, dict[str, dict[str, float]]] = {}
    for kind in dict.fromkeys(tensor.kind for tensor in tensors):
        for side in "AB":
            some = [tensor.relative for tensor in tensors if (tensor.kind, tensor.side) == (kind, side)]
            by_kind.setdefault(kind, {})[side] = {"median": statistics.median(some), "largest": max(some)}
    given_loss, reference_loss = (statistics.mean(each) for each in zip(*losses, strict=True))
    return {
        "model": Path(args.model).name,
        "repeats": args.repeats,
        "n_tokens": sum(len(batch[0]) for batch in batches),
        "n_targets": sum(int((batch[4] != 0).sum()) for batch in batches),
        "rank": args.rank,
        "loss": {PRECISION: given_loss, REFERENCE: reference_loss},
        "loss_difference": given_loss / reference_loss - 1,
        "n_tensors": len(repeats[0]),
        "median": statistics.median(tensor.relative for tensor in tensors),
        "largest": largest.relative,
        "largest_tensor": largest.name,
        "by_kind": by_kind,
        "log_prob_error": mean_and_error(log_prob_errors),
        "signed_error": mean_and_error(statistics.mean(tensor.mean_error for tensor in repeat) for repeat in repeats),
        "stretch": mean_and_error(statistics.mean(tensor.stretch for tensor in repeat) for repeat in repeats),
    }


def print_table(r: dict[str, Any]) -> None:
    def line(name: str, text: str) -> None:
        print(f"  {name:<26}{text}")

    def mean(pair: tuple[float, float]) -> str:
        return f"{pair[0]:+.1e} +- {pair[1]:.1e} ({abs(pair[0]) / pair[1] if pair[1] else 0:.1f} standard errors)"

    losses = " and ".join(f"{loss:.6f} ({name})" for name, loss in r["loss"].items())
    print(f"{r['model']}: {r['repeats']} repeats, {r['n_tokens']} tokens, {r['n_targets']} targets, rank {r['rank']}")
    line("loss", f"{losses}, {100 * r['loss_difference']:+.4f} %")
    line("gradients", f"median difference {100 * r['median']:.3f} %, largest {100 * r['largest']:.3f} %")
    line(f"of {r['n_tensors']} tensors", f"({r['largest_tensor']})")
    line("log p of a target", mean(r["log_prob_error"]))
    line("signed error", mean(r["signed_error"]))
    line("stretch", mean(r["stretch"]))
    print(f"  {'median, largest by kind':<26}{'A':<20}{'B':<20}")
    for kind, sides in r["by_kind"].items():
        texts = [f"{100 * side['median']:.3f} %, {100 * side['largest']:.3f} %" for side in sides.values()]
        print(f"    {kind:<24}{texts[0]:<20}{texts[1]:<20}".rstrip())


def main() -> None:
    args = parse_arguments()
    result = compare(args)
    if args.json:
        print(json.dumps(result))
    else:
        print_table(result)


if __name__ == "__main__":
    main()
