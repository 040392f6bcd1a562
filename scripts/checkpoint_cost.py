#!/usr/bin/env python3
"""Time what a checkpoint costs a run: steps that follow one against steps that do not, in turn, in the same run.

    checkpoint_cost.py --model M.gguf --tokens 512 --rank 16 --steps 24
    checkpoint_cost.py --model M.gguf --tokens 256 --rank 8 --window 5 --steps 200 --ctx 128

All steps compute the same number of tokens. The run writes a checkpoint every two windows of ``--window`` steps; a
window holds all of a checkpoint's cost (the copy, and the writing behind it) or none of it. What a pair of windows
differs by is the cost; the median of the pairs is printed with the quartiles beside it. A window has to be longer than
the writing takes.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from ggtune.config import TrainConfig
from ggtune.run.metrics import read_metrics
from ggtune.run.outputs import Outputs
from ggtune.train.session import fine_tune

SHOWN_INTERVAL = 10  # steps between the checkpoints of the share that is printed


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--ctx", type=int, default=512, help="tokens of one sample (default 512)")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of one step (default 512)")
    parser.add_argument("--rank", type=int, default=16, help="LoRA rank (default 16)")
    parser.add_argument("--window", type=int, default=1, help="steps of a window (default 1)")
    parser.add_argument("--steps", type=int, default=24, help="steps in all (default 24)")
    parser.add_argument("--folder", help="where the run writes (default: the system's folder for temporary files)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def measure(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    data = folder / "data.txt"
    n_samples = max(1, args.tokens // args.ctx)
    text = " ".join(f"word{i}" for i in range(args.ctx))  # more tokens than the context, which cuts it
    data.write_text("".join(f"<SFT>{i} {text}\n" for i in range(n_samples)), encoding="utf-8")
    period = 2 * args.window
    n_pairs = max(1, args.steps // period)
    config = TrainConfig(
        model=args.model,
        data=str(data),
        ctx=args.ctx,
        rank=args.rank,
        batch=n_samples,
        micro_batch_tokens=max(args.tokens, args.ctx),
        loss_on="all",
        holdout="0",
        epochs=0,
        max_steps=(n_pairs + 1) * period,
        save_every=str(period),
    )
    outputs = Outputs.folder(folder / "run")
    fine_tune(config, folder / "run", quiet=True)
    records = read_metrics(outputs.metrics)
    ends = {record["step"]: record["elapsed_s"] for record in records}
    tokens = records[-1]["n_tokens"]
    costs, plain = [], []
    for saved in range(period, max(ends), period):  # taken right after the end of that step
        with_s = ends[saved + args.window] - ends[saved]
        without_s = ends[saved + period] - ends[saved + args.window]
        costs.append(with_s - without_s)
        plain.append(without_s)
    low, cost_s, high = statistics.quantiles(costs, n=4) if len(costs) > 1 else costs * 3
    step_s = statistics.median(plain) / args.window
    return {
        "pairs": len(costs),
        "tokens_per_step": tokens,
        "step_s": step_s,
        "cost_s": cost_s,
        "cost_low_s": low,
        "cost_high_s": high,
        "cost_every_10_steps": cost_s / (SHOWN_INTERVAL * step_s),
        "checkpoint_bytes": Outputs.at_step(outputs.checkpoint, max(ends)).stat().st_size,
    }


def main() -> None:
    args = parse_arguments()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = measure(args, Path(folder))
    if args.json:
        print(json.dumps(result))
        return
    print(
        f"{Path(args.model).name}: steps of {args.tokens} tokens, rank {args.rank}, {result['pairs']} pairs of windows"
    )
    print(f"  step                {result['step_s']:.3f} s")
    print(f"  a checkpoint        {result['checkpoint_bytes'] / 1e6:.0f} MB")
    print(
        f"  costs               {1e3 * result['cost_s']:.0f} ms "
        f"(quartiles {1e3 * result['cost_low_s']:.0f} and {1e3 * result['cost_high_s']:.0f})"
    )
    print(f"  every {SHOWN_INTERVAL} steps      {100 * result['cost_every_10_steps']:.2f} % of the time")


if __name__ == "__main__":
    main()
