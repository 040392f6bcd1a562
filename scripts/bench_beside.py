"""Whether measuring and asking while training slow the steps between them: steps in turn, of one run.

    python scripts/bench_beside.py --model base.gguf --data rows.csv

The run measures its held-out loss and asks fixed questions after every other step. The steps that follow are held
against their neighbours, which follow another step, by their seconds per token: the median of the ratios with its
interval of 95 %, and the seconds that the records account for apart. A step that is the best so far has its checkpoint
written in the background, beside the next step: with a rate that learns nothing (--lr 0.05) there is none of that.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np

from ggtune.config import TrainConfig
from ggtune.run.metrics import read_metrics
from ggtune.train.session import fine_tune


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--sample-every", default="2", help="0: no answers between start and end")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    config = TrainConfig(
        model=options.model,
        data=options.data,
        epochs=0.0,
        max_steps=options.steps,
        eval_every="2",
        sample_every=options.sample_every,
        holdout="20",
        lr=options.lr,
        schedule="constant",
        warmup=0.0,
        save_every="0",
        threads=options.threads,
    )
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(config, Path(folder) / "run", quiet=True)
        records = read_metrics(Path(folder) / "run" / "metrics.jsonl")
    cost = [1 / record["tokens_per_second"] for record in records]  # of step i + 1; measured after the even ones
    ratios = [2 * cost[i] / (cost[i - 1] + cost[i + 1]) for i in range(2, len(cost) - 1, 2)]
    rng = np.random.default_rng(0)
    draws = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    n = {name: sum(name in record for record in records) for name in ("eval_s", "sample_s")}
    apart = {name: sum(record.get(name, 0.0) for record in records) / max(1, n[name]) for name in n}
    ratio = f"{statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]"
    print(f"A step after them takes {ratio} times as long as its neighbours")
    step_s = statistics.mean(record["n_tokens"] / record["tokens_per_second"] for record in records)
    print(
        f"A step {step_s:.3f} s; apart: evaluation {apart['eval_s']:.3f} s, answers {apart['sample_s']:.3f} s each time"
    )


if __name__ == "__main__":
    main()
