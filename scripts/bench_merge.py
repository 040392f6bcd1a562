#!/usr/bin/env python3
"""Time and memory of a merge against llama.cpp's quantizer, for the same model and type.

    make_random_model.py f16.gguf VOCAB.gguf tinyllama F16
    bench_merge.py f16.gguf --type Q4_K_M

The model is quantized by ``core.quantize_model``. Then, in turn: quantized again, and merged with a random adapter of
all linears, without a text and with one that scales are fitted to. Each is a process of its own; the shortest time of
each and its peak of resident memory are printed, beside the ratio to the quantizer. Resident memory counts the pages
of files that are mapped into the process too: the quantizer maps its source.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ggtune._native import core
from ggtune.gguf.adapter_file import adapter_content, write_adapter
from ggtune.system import available_threads

PREPARE, QUANTIZE, PLAIN, TEXT = "prepare", "quantize", "merge", "merge with a text"
_SEQUENCE = 128  # tokens


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="F16 model, a GGUF file")
    parser.add_argument("--type", default="Q4_K_M", help="type to quantize to (default Q4_K_M)")
    parser.add_argument("--rank", type=int, default=16, help="LoRA rank (default 16)")
    parser.add_argument("--std", type=float, default=1e-3, help="standard deviation of B's values (default 1e-3)")
    parser.add_argument("--text-tokens", type=int, default=512, help="tokens of the text (default 512)")
    parser.add_argument("--repeat", type=int, default=2, help="times that each is done (default 2)")
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--only", choices=(PREPARE, QUANTIZE, PLAIN, TEXT), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_adapter(model: str, path: Path, rank: int, std: float) -> None:
    """Write an adapter of all linears with a random B."""
    loaded = core.Model(model)
    kinds = sorted({linear.kind for linear in loaded.linears()})
    adapter = core.Adapter(loaded, rank=rank, alpha=float(rank), targets=kinds)
    rng = np.random.default_rng(0)
    for name in adapter.tensor_names():
        if name.endswith(".lora_b"):
            shape = adapter.get(name).shape
            adapter.set(name, np.float32(std) * rng.standard_normal(shape, dtype=np.float32))
    write_adapter(path, adapter_content(adapter, {}))


def work(args: argparse.Namespace, folder: Path) -> None:
    """Do one of them, in this process."""
    started = time.perf_counter()
    output = str(folder / "output.gguf")
    if args.only == PREPARE:
        base = str(folder / "base.gguf")
        core.quantize_model(args.source, base, args.type, threads=args.threads)
        make_adapter(base, folder / "adapter.gguf", args.rank, args.std)
    elif args.only == QUANTIZE:
        core.quantize_model(args.source, output, args.type, threads=args.threads)
    else:
        n_tokens = args.text_tokens if args.only == TEXT else 0
        tokens = np.random.default_rng(0).integers(3, 1000, n_tokens).tolist()
        base, adapter = str(folder / "base.gguf"), str(folder / "adapter.gguf")
        sequences = [i // _SEQUENCE for i in range(n_tokens)]
        core.merge(base, [(adapter, 1.0)], output, tokens=tokens, sequences=sequences, threads=args.threads)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


def measure(what: str, folder: str) -> dict[str, float]:
    """Have one of them done by another process, to which Linux hands down the peak of this one: it stays small."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", what, "--folder", folder]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def main() -> None:
    args = parse_arguments()
    if args.only:
        work(args, Path(args.folder))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        measure(PREPARE, name)
        seconds: dict[str, list[float]] = {QUANTIZE: [], PLAIN: [], TEXT: []}
        peaks = dict.fromkeys(seconds, 0.0)
        for _ in range(args.repeat):
            for what, times in seconds.items():
                found = measure(what, name)
                times.append(found["seconds"])
                peaks[what] = max(peaks[what], found["peak"])
        size = (Path(name) / "base.gguf").stat().st_size
        print(f"{args.type}, {size / 2**20:.0f} MiB, rank {args.rank}, {args.threads} threads")
        for what, times in seconds.items():
            ratio = min(times) / min(seconds[QUANTIZE])
            print(f"{what:20} {min(times):7.2f} s  {ratio:5.2f} times  peak {peaks[what] / 2**20:5.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
