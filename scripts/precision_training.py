#!/usr/bin/env python3
"""Train one adapter with `--precision auto` and one with `--precision f32`, and compare their held-out losses.

    precision_training.py wordnet-10m-q4_k_m.gguf --data chemistry-train.csv --epochs 1
    precision_training.py smollm2-135m-instruct-q4_1.gguf --data chemistry-train.csv --steps 36

Both runs take the same samples in the same order and start from the same adapter; what is not given here is as of
``ggtune train``. Each loss is measured with the precision of its run. The adapter of auto's is also measured in
float32: what then is left of the difference comes from the training alone.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ggtune.config import TrainConfig
from ggtune.gguf.adapter_file import read_adapter
from ggtune.train.build import build
from ggtune.train.result import Result
from ggtune.train.session import fine_tune

PRECISION, REFERENCE = "auto", "f32"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("--data", required=True, help="what `ggtune train --data` takes")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over the data (default 1)")
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps at most (default: no limit)")
    parser.add_argument("--holdout", default="every:20", help="as of `ggtune train` (default every:20)")
    parser.add_argument("--ctx", type=int, default=512, help="tokens of the longest sample (default 512)")
    parser.add_argument("--batch", type=int, default=8, help="samples per step (default 8)")
    parser.add_argument("--rank", type=int, default=16, help="LoRA rank (default 16)")
    parser.add_argument("--lr", type=float, help="peak learning rate (default: that of `ggtune train`)")
    parser.add_argument("--threads", type=int, default=0, help="default: the processors that may be used")
    parser.add_argument("--seed", type=int, default=0, help="of adapter and order (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def train_config(args: argparse.Namespace) -> TrainConfig:
    return TrainConfig(
        model=args.model,
        data=args.data,
        epochs=args.epochs,
        max_steps=args.steps,
        holdout=args.holdout,
        ctx=args.ctx,
        batch=args.batch,
        rank=args.rank,
        threads=args.threads,
        seed=args.seed,
        save_every="0",
        precision=PRECISION,
        **({} if args.lr is None else {"lr": args.lr}),
    )


def held_out_loss(config: TrainConfig, adapter: Path) -> float:
    """Compute it as a run with ``config`` would have, with the adapter of another one."""
    built = build(config)
    for name, values in read_adapter(adapter).tensors.items():
        built.adapter.set(name, values)
    results = [built.engine.evaluate(*batch.arrays) for batch in built.plan.held_out]
    return sum(result.loss_sum for result in results) / sum(result.weight_sum for result in results)


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    config = train_config(args)
    configs = {precision: replace(config, precision=precision) for precision in (PRECISION, REFERENCE)}
    results: dict[str, Result] = {
        precision: fine_tune(each, folder / precision, quiet=True) for precision, each in configs.items()
    }
    given, reference = results[PRECISION], results[REFERENCE]
    if given.held_out_loss is None or reference.held_out_loss is None:
        raise SystemExit("no sample was held out")
    moved = held_out_loss(configs[REFERENCE], given.adapter)
    return {
        "model": Path(args.model).name,
        "data": Path(args.data).name,
        "steps": given.steps,
        "before": {precision: result.held_out_before for precision, result in results.items()},
        "after": {precision: result.held_out_loss for precision, result in results.items()},
        "seconds": {precision: result.seconds for precision, result in results.items()},
        "difference": given.held_out_loss / reference.held_out_loss - 1,
        f"{PRECISION}_measured_in_{REFERENCE}": moved,
        "difference_of_training": moved / reference.held_out_loss - 1,
    }


def print_table(r: dict[str, Any]) -> None:
    print(f"{r['model']}: {r['steps']} steps on {r['data']}, held-out loss")
    print(f"  {'precision':<24}{'before':>10}{'after':>10}{'of f32':>12}{'time':>10}")
    differences = {PRECISION: f"{100 * r['difference']:+.3f} %", REFERENCE: ""}
    for precision, difference in differences.items():
        before, after, seconds = (r[key][precision] for key in ("before", "after", "seconds"))
        print(f"  {precision:<24}{before:>10.5f}{after:>10.5f}{difference:>12}{seconds:>8.1f} s")
    moved = r[f"{PRECISION}_measured_in_{REFERENCE}"]
    training = f"{100 * r['difference_of_training']:+.3f} %"
    print(f"  {f'{PRECISION}, measured in {REFERENCE}':<24}{'':>10}{moved:>10.5f}{training:>12}")


def main() -> None:
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        result = compare(args, Path(folder))
    if args.json:
        print(json.dumps(result))
    else:
        print_table(result)


if __name__ == "__main__":
    main()
