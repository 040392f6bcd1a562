#!/usr/bin/env python3
"""Time training steps of a model and hold them against the machine's float32 matrix rate, measured in the same run.

    bench.py --model M.gguf --ctx 256 --rank 4 --batch 1 [--samples 1] [--recompute] [--profile] [--peft] [--json]
    bench.py --model M.gguf --ctx 512 --samples 4 --against ctx=4096,samples=32 --against threads=1
    bench.py --model M.gguf --data train.csv --ctx 256 --rank 4 --batch 8

A step is ``--batch`` micro-batches of ``--ctx`` random tokens, every one of them a target, and one AdamW step. With
``--data`` it is one of ``ggtune train``: ``--batch`` real samples of at most ``--ctx`` tokens, packed, with the loss on
the answers; five different steps are measured.

The matrix rate is that of NumPy's BLAS on 2048 x 2048 x 2048, with the same threads, best of 10, taken in turn with the
steps. The bound is that rate over the floating point operations of a token: 4 per parameter of the linear layers
(forward 2, input gradient 2; 6 with recomputation), and 4 per parameter of the output matrix for a target.

``--against`` measures the same with other settings (ctx, samples, batch, rank, threads, recompute, precision), a step
of one in turn with a step of the other, and prints the ratio. ``--peft`` does so with transformers + PEFT in float32 on
the same shape; it needs torch, transformers and peft, in this Python or in the one given by ``--peft-python``.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peft_peer import PeftPeer

GEMM_SIZE = 2048
GEMM_REPEATS = 10
BLAS_SPIN_S = 0.2  # after a product, threads of the BLAS wait for the next in a tight loop, up to 0.1 s
DATA_STEPS = 5
SETTINGS = ("ctx", "samples", "batch", "rank", "threads", "recompute", "precision")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--data", help="real samples instead of random tokens: what `ggtune train --data` takes")
    parser.add_argument("--ctx", type=int, default=256, help="tokens of one micro-batch (default 256)")
    parser.add_argument("--rank", type=int, default=4, help="LoRA rank (default 4)")
    parser.add_argument("--batch", type=int, default=1, help="micro-batches of a step (default 1)")
    parser.add_argument("--samples", type=int, default=1, help="samples packed into a micro-batch (default 1)")
    parser.add_argument("--steps", type=int, default=5, help="times a step is measured, the best counts (default 5)")
    parser.add_argument("--threads", type=int, help="default: the processors that this process may use")
    parser.add_argument("--recompute", action="store_true", help="keep only the layers' inputs, compute the rest again")
    parser.add_argument("--precision", choices=("auto", "f32"), default="auto", help="f32: no int8 dot products")
    parser.add_argument("--against", action="append", default=[], metavar="NAME=VALUE,...", help="measured in turn")
    parser.add_argument("--profile", action="store_true", help="also the seconds by kind of operation")
    parser.add_argument("--peft", action="store_true", help="time transformers + PEFT (float32) in turn")
    parser.add_argument("--peft-python", default=sys.executable, help="Python that has torch, transformers and peft")
    parser.add_argument("--peft-batch", help="rows x tokens of PEFT's step, such as 4x256 (default: the same as here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


@dataclass(frozen=True)
class Shape:
    """What is measured; the names are those of the options."""

    ctx: int
    samples: int
    batch: int
    rank: int
    threads: int
    recompute: bool
    precision: str

    def changed(self, text: str) -> "Shape":
        """``"ctx=4096,samples=32"`` applied to this one."""
        values: dict[str, Any] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            if name not in SETTINGS or not value:
                sys.exit(f"--against {text}: {part!r} is not one of {', '.join(SETTINGS)} with its value")
            values[name] = value if name == "precision" else bool(int(value)) if name == "recompute" else int(value)
        return replace(self, **values)


@dataclass
class Contender:
    """A shape that is measured: its trainer, its steps, and the best time of each step so far."""

    shape: Shape
    trainer: Any
    steps: list[list[tuple[Any, ...]]]
    best: list[dict[str, float]] = field(default_factory=list)

    def run(self) -> None:
        """Take every step once and keep the best times."""
        times = [self._timed(step) for step in self.steps]
        self.best = [min(pair, key=lambda t: t["step_s"]) for pair in zip(self.best or times, times, strict=True)]

    def _timed(self, step: list[tuple[Any, ...]]) -> dict[str, float]:
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


def micro_batch(rng: Any, n_vocab: int, n_tokens: int, n_samples: int) -> tuple[Any, ...]:
    import numpy as np

    length = -(-n_tokens // n_samples)
    rows = np.arange(n_tokens, dtype=np.int32)
    tokens = rng.integers(0, n_vocab, n_tokens + 1).astype(np.int32)
    return tokens[:-1], rows % length, rows // length, tokens[1:], np.ones(n_tokens, np.float32)


def real_steps(model: Any, path: str, shape: Shape) -> tuple[list[list[tuple[Any, ...]]], dict[str, Any]]:
    """The first steps of ``ggtune train``, and how well all of them are packed."""
    from ggtune.config import TrainConfig
    from ggtune.train.session import make_plan, read_samples

    config = TrainConfig(model=model.path, data=path, ctx=shape.ctx, batch=shape.batch, rank=shape.rank)
    plan = make_plan(config, read_samples(config, model))
    steps = [
        [b.arrays for b in plan.micro_batches(0, cursor)] for cursor in range(min(DATA_STEPS, plan.steps_per_epoch))
    ]
    packing = plan.packing()
    return steps, {
        "packing_efficiency": packing.efficiency,
        "micro_batches_per_step": packing.micro_batches_per_step,
    }


def gemm_flops_per_second(a: Any) -> float:
    start = time.perf_counter()
    a @ a
    return float(2 * GEMM_SIZE**3 / (time.perf_counter() - start))


def peak_bytes() -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(args: argparse.Namespace, shapes: list[Shape]) -> dict[str, Any]:
    import numpy as np

    from ggtune import _core

    model = _core.Model(args.model)
    linears = model.linears()
    targets = sorted({linear.kind for linear in linears})
    rng = np.random.default_rng(0)
    packing: dict[str, Any] = {}
    contenders = []
    peak = 0
    for shape in shapes:
        adapter = _core.Adapter(model, rank=shape.rank, alpha=shape.rank, targets=targets)
        trainer = _core.Trainer(model, adapter, context=shape.ctx, threads=shape.threads, precision=shape.precision)
        trainer.recompute_layers = model.n_layer - 1 if shape.recompute else 0
        if args.data:
            steps, packing = real_steps(model, args.data, shape)
        else:
            batch = [micro_batch(rng, model.n_vocab, shape.ctx, shape.samples) for _ in range(shape.batch)]
            steps = [batch]
        contender = Contender(shape, trainer, steps)
        contender.run()  # to warm up
        contender.best = []
        peak = peak or peak_bytes()  # of the first, before the others take memory
        contenders.append(contender)
    first = contenders[0]
    square = rng.standard_normal((GEMM_SIZE, GEMM_SIZE), dtype=np.float32)
    peer = make_peer(args, first.shape, model) if args.peft else None

    gemm_rate = 0.0
    for _ in range(args.steps):
        for contender in contenders:
            contender.run()
        for _ in range(-(-GEMM_REPEATS // args.steps)):
            gemm_rate = max(gemm_rate, gemm_flops_per_second(square))
        time.sleep(BLAS_SPIN_S)
        if peer is not None:
            peer.step()

    n_linear_params = sum(linear.n_in * linear.n_out for linear in linears)
    head_share = first.n_targets / first.n_tokens
    flops = (6 if first.shape.recompute else 4) * n_linear_params + 4 * head_share * model.n_vocab * model.n_embd
    result: dict[str, Any] = {
        "tokens_per_second": first.tokens_per_second,
        **{name: first.seconds(name) for name in ("step_s", "forward_s", "backward_s")},
        "peak_bytes": peak,
        "predicted_bytes": first.predicted_bytes(),
        "gemm_flops_per_second": gemm_rate,
        "bound_tokens_per_second": gemm_rate / flops,
        "fraction_of_bound": first.tokens_per_second * flops / gemm_rate,
        "tokens_per_step": first.n_tokens,
        **packing,
        **{name: getattr(first.shape, name) for name in SETTINGS},
        "model": Path(args.model).name,
    }
    if args.profile:
        seconds: dict[str, float] = {}
        for _ in range(args.steps):
            for name, value in first.trainer.profile(*first.steps[0][0]).items():
                seconds[name] = min(seconds.get(name, value), value)
        result["profile_s"] = dict(sorted(seconds.items(), key=lambda item: -item[1]))
    if contenders[1:]:
        result["against"] = [
            {
                "settings": text,
                "tokens_per_second": other.tokens_per_second,
                "times_this": other.tokens_per_second / first.tokens_per_second,
            }
            for text, other in zip(args.against, contenders[1:], strict=True)
        ]
    if peer is not None:
        result.update(peer.close())
        result["times_peft"] = first.tokens_per_second / result["peft_tokens_per_second"]
    return result


def make_peer(args: argparse.Namespace, shape: Shape, model: Any) -> PeftPeer:
    rows, tokens = (
        map(int, args.peft_batch.split("x"))
        if args.peft_batch
        else (shape.batch * shape.samples, shape.ctx // shape.samples)
    )
    return PeftPeer(
        args.peft_python,
        model.metadata(),
        n_vocab=model.n_vocab,
        rank=shape.rank,
        rows=rows,
        tokens=tokens,
        threads=shape.threads,
    )


def print_table(r: dict[str, Any]) -> None:
    def line(name: str, text: str) -> None:
        print(f"  {name:<20}{text}")

    if "packing_efficiency" in r:
        work = f"{r['tokens_per_step']:.0f} tokens of {r['batch']} real samples, context {r['ctx']}"
    else:
        work = f"{r['batch']} x {r['ctx']} tokens"
    print(f"{r['model']}: {work}, rank {r['rank']}, {r['threads']} threads")
    line("tokens/s", f"{r['tokens_per_second']:.1f}")
    line("forward, backward", f"{r['forward_s']:.3f} s, {r['backward_s']:.3f} s of {r['step_s']:.3f} s a step")
    line("peak memory", f"{r['peak_bytes'] / 1e9:.2f} GB (predicted {r['predicted_bytes'] / 1e9:.2f} GB)")
    line("f32 matrix rate", f"{r['gemm_flops_per_second'] / 1e9:.0f} GFLOP/s")
    line("bound", f"{r['bound_tokens_per_second']:.1f} tokens/s; reached {r['fraction_of_bound']:.2f} of it")
    if "packing_efficiency" in r:
        line(
            "packing", f"{100 * r['packing_efficiency']:.1f} %, {r['micro_batches_per_step']:.2f} micro-batches a step"
        )
    for other in r.get("against", ()):
        line(other["settings"], f"{other['tokens_per_second']:.1f} tokens/s, {other['times_this']:.3f} times")
    if "times_peft" in r:
        line("PEFT float32", f"{r['peft_tokens_per_second']:.1f} tokens/s, {r['peft_peak_bytes'] / 1e9:.2f} GB")
        line("times PEFT", f"{r['times_peft']:.2f}")
    if "profile_s" in r:
        total = sum(r["profile_s"].values())
        print("  seconds by kind of operation, one micro-batch:")
        for name, seconds in r["profile_s"].items():
            print(f"    {name:<24}{seconds:9.4f}  {100 * seconds / total:5.1f} %")


def main() -> None:
    args = parse_arguments()
    from ggtune.system import available_threads

    args.threads = args.threads or available_threads()
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        os.environ[variable] = str(args.threads)  # read by NumPy's BLAS when it is imported
    shape = Shape(**{name: getattr(args, name) for name in SETTINGS})
    result = measure(args, [shape, *(shape.changed(text) for text in args.against)])
    if args.json:
        print(json.dumps(result))
    else:
        print_table(result)


if __name__ == "__main__":
    main()
