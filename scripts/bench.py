#!/usr/bin/env python3
"""Time training steps of a model and hold them against the machine's float32 matrix rate, measured in the same run.

    bench.py --model M.gguf --ctx 256 --rank 4 --batch 1 [--samples 1] [--recompute] [--profile] [--peft] [--json]
    bench.py --model M.gguf --ctx 512 --samples 4 --against ctx=4096,samples=32 --against threads=1
    bench.py --model M.gguf --ctx 512 --rank 16 --against precision=f32 --against-cpu avx512vnni --peft-dtype f32,bf16
    bench.py --model M.gguf --data train.csv --ctx 256 --rank 4 --batch 8

A step is ``--batch`` micro-batches of ``--ctx`` random tokens, every one of them a target, and one AdamW step. With
``--data`` it is one of ``ggtune train``: ``--batch`` real samples of at most ``--ctx`` tokens, packed, with the loss on
the answers; five different steps are measured.

The matrix rate is that of NumPy's BLAS on 2048 x 2048 x 2048, with one thread and with the same threads, best of 10,
taken in turn with the steps; beside it stands what the CPU's matrix unit reaches on bf16 tiles that stay in the L1
cache, where it has one. The bound is the float32 rate over the floating point operations of a token: 4 per parameter
of the linear layers (forward 2, input gradient 2; 6 with recomputation), of the experts of a mixture only those that a
token takes, and 4 per parameter of the output matrix for a target.

All else is measured in turn with that, a step of one after a step of the other, and printed with the ratio:
``--against`` the same with other settings (ctx, samples, batch, rank, targets, threads, recompute, precision, device,
layers): ``--device CUDA0 --against device=`` times a device against the CPU;
``--against-cpu`` the same in a second process with the kernels of a lesser CPU, which the environment variable
GGTUNE_CPU names; ``--peft`` transformers + PEFT in float32 on the same shape, ``--peft-dtype`` in other types too
(bf16: the adapter stays float32, as PEFT makes it; bf16-all: it does not). They need torch, transformers and peft, in
this Python or in the one given by ``--peft-python``.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench_steps import ALL, SETTINGS, Contender, Shape, make_contender, n_active_params, random_step, real_steps
from ggtune._native import core as _core
from ggtune.system import available_threads, peak_memory
from machine_rate import MachineRate
from peer_process import PeerProcess
from peft_peer import DTYPES, PeftPeer

RATE_REPEATS = 10
SPIN_S = 0.2  # threads of a BLAS, of OpenMP or of ggml wait for more work in a tight loop, up to 0.1 s


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--data", help="real samples instead of random tokens: what `ggtune train --data` takes")
    parser.add_argument("--ctx", type=int, default=256, help="tokens of one micro-batch (default 256)")
    parser.add_argument("--rank", type=int, default=4, help="LoRA rank (default 4)")
    parser.add_argument("--targets", default=ALL, help="kinds of linears with an adapter, joined by + (default all)")
    parser.add_argument("--batch", type=int, default=1, help="micro-batches of a step (default 1)")
    parser.add_argument("--samples", type=int, default=1, help="samples packed into a micro-batch (default 1)")
    parser.add_argument("--steps", type=int, default=5, help="times a step is measured, the best counts (default 5)")
    parser.add_argument("--threads", type=int, help="default: the processors that this process may use")
    parser.add_argument("--recompute", action="store_true", help="keep only the layers' inputs, compute the rest again")
    parser.add_argument("--precision", choices=("auto", "f32"), default="auto", help="as of `ggtune train`")
    parser.add_argument("--device", default="", help="device of the layers, several joined by + (default: the CPU)")
    parser.add_argument("--layers", type=int, default=0, help="so many of the last layers on it (default: all)")
    parser.add_argument("--against", action="append", default=[], metavar="NAME=VALUE,...", help="measured in turn")
    parser.add_argument("--against-cpu", action="append", default=[], metavar="NAME", help="value of GGTUNE_CPU")
    parser.add_argument("--profile", action="store_true", help="also the seconds by kind of operation")
    parser.add_argument("--peft", action="store_true", help="time transformers + PEFT (float32) in turn")
    parser.add_argument(
        "--peft-dtype",
        type=peft_dtypes,
        action="extend",
        default=[],
        metavar="TYPE,...",
        help=f"the same in these types: {', '.join(DTYPES)}",
    )
    parser.add_argument("--peft-python", default=sys.executable, help="Python that has torch, transformers and peft")
    parser.add_argument("--peft-batch", help="rows x tokens of PEFT's step, such as 4x256 (default: the same as here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--as-peer", action="store_true", help=argparse.SUPPRESS)  # how --against-cpu starts it
    args = parser.parse_args()
    if args.peft and "f32" not in args.peft_dtype:
        args.peft_dtype.insert(0, "f32")
    return args


def peft_dtypes(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in DTYPES]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(DTYPES)}")
    return names


class CpuPeer:
    """The same benchmark in a process with the kernels of the CPU ``name``."""

    def __init__(self, args: argparse.Namespace, shape: Shape, name: str) -> None:
        self.name = name
        self.tokens_per_second = 0.0
        self.peak_bytes = 0
        data = ["--data", args.data] if args.data else []
        command = [sys.executable, __file__, "--as-peer", "--model", args.model, *data, *shape.options()]
        self._process = PeerProcess(command, {"GGTUNE_CPU": name})

    def step(self) -> None:
        """Take every step once."""
        self.tokens_per_second, self.peak_bytes = self._process.step()

    def close(self) -> None:
        """End the process."""
        self._process.close()


def serve(contender: Contender) -> None:
    """Be the process of a :class:`CpuPeer`."""
    print("ready", flush=True)
    for _ in sys.stdin:
        contender.run()
        print(json.dumps([contender.tokens_per_second, peak_memory()]), flush=True)


def make_contenders(
    args: argparse.Namespace, model: _core.Model, shapes: list[Shape]
) -> tuple[list[Contender], dict[str, float], int]:
    """Return them, how well real samples are packed, and the peak memory of the first alone."""
    rng = np.random.default_rng(0)
    packing: dict[str, float] = {}
    contenders = []
    peak = 0
    for shape in shapes:
        if args.data:
            steps, packing = real_steps(model, args.data, shape)
        else:
            steps = [random_step(rng, model.n_vocab, shape)]
        contenders.append(make_contender(model, shape, steps))
        peak = peak or peak_memory()
    return contenders, packing, peak


def make_peft_peer(args: argparse.Namespace, dtype: str, shape: Shape) -> PeftPeer:
    model = _core.Model(args.model, header_only=True)
    rows, tokens = (
        map(int, args.peft_batch.split("x"))
        if args.peft_batch
        else (shape.batch * shape.samples, shape.ctx // shape.samples)
    )
    return PeftPeer(
        args.peft_python,
        dtype,
        model.metadata(),
        n_vocab=model.n_vocab,
        rank=shape.rank,
        rows=rows,
        tokens=tokens,
        threads=shape.threads,
    )


def measure(args: argparse.Namespace, shapes: list[Shape]) -> dict[str, Any]:
    # the processes first: the peak memory of a new one starts with what its parent holds
    rates = [MachineRate(threads, sys.executable) for threads in sorted({1, shapes[0].threads})]
    cpu_peers = [CpuPeer(args, shapes[0], name) for name in args.against_cpu]
    peft_peers = [make_peft_peer(args, dtype, shapes[0]) for dtype in args.peft_dtype]
    peers: list[CpuPeer | PeftPeer] = [*cpu_peers, *peft_peers]
    model = _core.Model(args.model)
    contenders, packing, peak = make_contenders(args, model, shapes)
    first = contenders[0]

    turns = [contender.run for contender in contenders]
    turns += [rate.measure for rate in rates for _ in range(-(-RATE_REPEATS // args.steps))]
    turns += [peer.step for peer in peers]
    for _ in range(args.steps):
        for turn in turns:
            turn()
            time.sleep(SPIN_S)
    for rate in rates:
        rate.close()
    for peer in peers:
        peer.close()

    n_linear_params = n_active_params(model)
    head_share = first.n_targets / first.n_tokens
    flops = (6 if first.shape.recompute else 4) * n_linear_params + 4 * head_share * model.n_vocab * model.n_embd
    f32_rate = rates[-1].f32

    def compared(tokens_per_second: float) -> dict[str, float]:
        return {
            "tokens_per_second": tokens_per_second,
            "times_this": tokens_per_second / first.tokens_per_second,
        }

    result: dict[str, Any] = {
        "tokens_per_second": first.tokens_per_second,
        **{name: first.seconds(name) for name in ("step_s", "forward_s", "backward_s")},
        "peak_bytes": peak,
        "predicted_bytes": first.predicted_bytes(),
        "device_bytes": first.device_bytes(),
        "rates": [
            {"threads": r.threads, "f32_flops_per_second": r.f32, "matrix_unit_flops_per_second": r.matrix_unit}
            for r in rates
        ],
        "bound_tokens_per_second": f32_rate / flops,
        "fraction_of_bound": first.tokens_per_second * flops / f32_rate,
        "tokens_per_step": first.n_tokens,
        **packing,
        **{name: getattr(first.shape, name) for name in SETTINGS},
        "model": Path(args.model).name,
        "against": [
            {"settings": text, **compared(other.tokens_per_second)}
            for text, other in zip(args.against, contenders[1:], strict=True)
        ],
        "against_cpu": [
            {"cpu": peer.name, **compared(peer.tokens_per_second), "peak_bytes": peer.peak_bytes} for peer in cpu_peers
        ],
        "peft": [
            {"dtype": peer.dtype, **compared(peer.tokens_per_second), "peak_bytes": peer.peak_bytes}
            for peer in peft_peers
        ],
    }
    if args.profile:
        seconds: dict[str, float] = {}
        for _ in range(args.steps):
            for name, value in first.trainer.profile(*first.steps[0][0]).items():
                seconds[name] = min(seconds.get(name, value), value)
        result["profile_s"] = dict(sorted(seconds.items(), key=lambda item: -item[1]))
    return result


def print_table(r: dict[str, Any]) -> None:
    def line(name: str, text: str) -> None:
        print(f"  {name:<24}{text}")

    def per_threads(key: str) -> str:
        texts = [
            f"{each[key] / 1e9:.0f} GFLOP/s ({each['threads']} thread{'s' if each['threads'] > 1 else ''})"
            for each in reversed(r["rates"])
            if each[key]
        ]
        return ", ".join(texts) or "none"

    if "packing_efficiency" in r:
        work = f"{r['tokens_per_step']:.0f} tokens of {r['batch']} real samples, context {r['ctx']}"
    else:
        work = f"{r['batch']} x {r['ctx']} tokens"
    print(f"{r['model']}: {work}, rank {r['rank']}, {r['threads']} threads")
    line("tokens/s", f"{r['tokens_per_second']:.1f}")
    line("forward, backward", f"{r['forward_s']:.3f} s, {r['backward_s']:.3f} s of {r['step_s']:.3f} s a step")
    line("peak memory", f"{r['peak_bytes'] / 1e9:.2f} GB (predicted {r['predicted_bytes'] / 1e9:.2f} GB)")
    for name, n_bytes in r["device_bytes"].items():
        line(f"memory of {name}", f"{n_bytes / 1e9:.2f} GB (predicted)")
    line("f32 matrix rate", per_threads("f32_flops_per_second"))
    line("bf16 matrix unit", per_threads("matrix_unit_flops_per_second"))
    line("bound", f"{r['bound_tokens_per_second']:.1f} tokens/s; reached {r['fraction_of_bound']:.2f} of it")
    if "packing_efficiency" in r:
        line(
            "packing", f"{100 * r['packing_efficiency']:.1f} %, {r['micro_batches_per_step']:.2f} micro-batches a step"
        )
    for other in r["against"]:
        line(other["settings"], f"{other['tokens_per_second']:.1f} tokens/s, {other['times_this']:.3f} times this")
    peers = [(f"GGTUNE_CPU={peer['cpu']}", peer) for peer in r["against_cpu"]]
    peers += [(f"PEFT {peer['dtype']}", peer) for peer in r["peft"]]
    for name, peer in peers:
        line(
            name,
            f"{peer['tokens_per_second']:.1f} tokens/s, {peer['peak_bytes'] / 1e9:.2f} GB; "
            f"this is {1 / peer['times_this']:.2f} times that",
        )
    if "profile_s" in r:
        total = sum(r["profile_s"].values())
        print("  seconds by kind of operation, one micro-batch:")
        for name, seconds in r["profile_s"].items():
            print(f"    {name:<22}{seconds:9.4f}  {100 * seconds / total:5.1f} %")


def main() -> None:
    args = parse_arguments()
    args.threads = args.threads or available_threads()
    shape = Shape(**{name: getattr(args, name) for name in SETTINGS})
    if args.as_peer:
        model = _core.Model(args.model)
        (contender,), _, _ = make_contenders(args, model, [shape])
        serve(contender)
        return
    result = measure(args, [shape, *(shape.changed(text) for text in args.against)])
    if args.json:
        print(json.dumps(result))
    else:
        print_table(result)


if __name__ == "__main__":
    main()
