"""Kill a run at random moments, go on each time, and compare the end with a run that nobody disturbed.

    python scripts/torture.py --kills 50 --signal KILL
    python scripts/torture.py --kills 50 --signal TERM

Every second kill waits for a checkpoint that is being written. Adapter, moments, state and metrics have to be the same
bit for bit, but for times; exit status 1 where they are not.
"""

import argparse
import dataclasses
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ggtune.demo import DATA, MODEL
from ggtune.run.checkpoint import load_checkpoint, newest_checkpoint
from ggtune.run.lock import holder_of
from ggtune.run.metrics import read_metrics
from ggtune.run.outputs import Outputs

TIMES = ("tokens_per_second", "elapsed_s", "eval_s", "sample_s", "memory_bytes")
GGTUNE = [sys.executable, "-m", "ggtune"]


def start_command(out: Path, steps: int) -> list[str]:
    settings = "--ctx 64 --batch 4 --micro-batch-tokens 64 --rank 4 --dropout 0.1 --lr 2e-3 --threads 1 --holdout 8"
    schedule = f"--epochs 0 --max-steps {steps} --save-every 3 --keep 3"
    paths = ["--model", str(MODEL), "--data", str(DATA), "--out", str(out)]
    return [*GGTUNE, "train", *paths, *settings.split(), *schedule.split()]


def unfinished_writes(out: Path) -> list[Path]:
    return list(out.glob(".checkpoint-*.tmp")) + list(out.glob(".adapter.gguf.*.tmp"))


def is_complete(out: Path, steps: int) -> bool:
    return (
        (out / "adapter.gguf").exists() and (out / f"checkpoint-{steps}.gguf").exists() and not unfinished_writes(out)
    )


def disturb(process: "subprocess.Popen[bytes]", out: Path, number: int, *, in_write: bool, delay_s: float) -> str:
    """Wait for the moment and send the signal; the word is for the count."""
    lock = Outputs.folder(out).lock
    while process.poll() is None:
        holder = holder_of(lock)
        if holder is not None and holder.pid == process.pid:
            break
        time.sleep(0.005)
    time.sleep(delay_s)
    deadline = time.monotonic() + 5
    while in_write and process.poll() is None and not unfinished_writes(out) and time.monotonic() < deadline:
        pass
    if process.poll() is not None:
        return "ended before"
    process.send_signal(number)
    process.wait()
    if number == signal.SIGKILL:
        return "in a write" if unfinished_writes(out) else "elsewhere"
    return f"exit status {process.returncode}"


def compare(out: Path, expected: Path, steps: int) -> list[str]:
    """Say what differs."""
    found, wanted = (load_checkpoint(folder / f"checkpoint-{steps}.gguf") for folder in (out, expected))
    problems = []
    for name, values in wanted.adapter.tensors.items():
        pairs = [(found.adapter.tensors[name], values), *zip(found.moments[name], wanted.moments[name], strict=True)]
        if any(not np.array_equal(a.view(np.uint32), b.view(np.uint32)) for a, b in pairs):
            problems.append(f"{name} differs")
    states = [dataclasses.replace(c.state, elapsed_s=0.0, started="") for c in (found, wanted)]
    problems += [] if states[0] == states[1] else [f"state: {states[0]} instead of {states[1]}"]
    if (out / "adapter.gguf").read_bytes() != (expected / "adapter.gguf").read_bytes():
        problems.append("adapter.gguf differs")
    metrics: list[list[dict[str, Any]]] = [
        [{k: v for k, v in record.items() if k not in TIMES} for record in read_metrics(folder / "metrics.jsonl")]
        for folder in (out, expected)
    ]
    if metrics[0] != metrics[1]:
        problems.append("metrics.jsonl differs")
    if [record["step"] for record in metrics[0]] != list(range(1, steps + 1)):
        problems.append("metrics.jsonl does not have each step once")
    problems += [f"left behind: {path.name}" for path in unfinished_writes(out)]
    return problems


def torture(folder: Path, *, kills: int, steps: int, name: str, window_s: float, seed: int) -> list[str]:
    """Return what is wrong after so many kills."""
    number, chosen = getattr(signal, f"SIG{name}"), random.Random(seed)
    expected, out = folder / "undisturbed", folder / "killed"
    with (folder / "log").open("wb") as log:
        subprocess.run(start_command(expected, steps), stdout=log, stderr=log, check=True)
        moments: Counter[str] = Counter()
        command = start_command(out, steps)
        problems = []
        for n in range(kills):
            with subprocess.Popen(command, stdout=log, stderr=log) as process:
                in_write, delay_s = n % 2 == 1, chosen.uniform(0, window_s)
                moments[disturb(process, out, number, in_write=in_write, delay_s=delay_s)] += 1
            # a run that has written everything no longer answers signals: the interpreter's exit may be killed
            statuses = [0, 128 + number, *([-number] if is_complete(out, steps) else [])]
            if number != signal.SIGKILL and process.returncode not in statuses:
                problems.append(f"exit status {process.returncode}")
            newest_checkpoint(out / "checkpoint-ITERATION.gguf")  # raises where no whole one is left
            command = [*GGTUNE, "resume", str(out)]
        reached = [record["step"] for record in read_metrics(out / "metrics.jsonl")][-1:]
        subprocess.run(command, stdout=log, stderr=log, check=True)
    counts = ", ".join(f"{count} {word}" for word, count in sorted(moments.items()))
    print(f"{kills} times SIG{name}: {counts}; at step {(reached or [0])[0]} of {steps} after the last")
    return problems + compare(out, expected, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--signal", choices=["KILL", "TERM", "INT", "HUP"], default="KILL")
    parser.add_argument("--window", type=float, default=1.0, help="longest wait before a kill, in seconds of training")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        problems = torture(
            Path(folder),
            kills=given.kills,
            steps=given.steps,
            name=given.signal,
            window_s=given.window,
            seed=given.seed,
        )
    for problem in problems:
        print(problem)
    print("different" if problems else "bit-identical: adapter, moments, state, metrics")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
