"""Whether measuring and asking while training slow the steps between: two runs in turn, again and again.

    python scripts/bench_beside.py --model base.gguf --data rows.csv

One run measures its held-out loss and asks fixed questions every other step, the other one does neither before its end.
The same steps are compared: the ratio of their times in each pair of runs, its median and range over the pairs, and the
seconds that the records of the first run account for apart.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from ggtune.config import TrainConfig
from ggtune.run.metrics import read_metrics
from ggtune.train.session import fine_tune


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    ratios: list[float] = []
    apart = {"eval_s": 0.0, "sample_s": 0.0}
    for pair in range(options.pairs):
        found = {}
        for every in ("2", "0") if pair % 2 else ("0", "2"):
            config = TrainConfig(
                model=options.model,
                data=options.data,
                epochs=0.0,
                max_steps=options.steps,
                eval_every=every,
                sample_every=every,
                holdout="20",
                save_every="0",
                threads=options.threads,
            )
            with tempfile.TemporaryDirectory() as folder:
                fine_tune(config, Path(folder) / "run", quiet=True)
                records = read_metrics(Path(folder) / "run" / "metrics.jsonl")
            found[every] = [record["n_tokens"] / record["tokens_per_second"] for record in records[1:]]
            if every == "2":
                for name in apart:
                    apart[name] += sum(record.get(name, 0.0) for record in records)
        ratios.append(statistics.median(a / b for a, b in zip(found["2"], found["0"], strict=True)))
        print(f"pair {pair}: a step takes {ratios[-1]:.3f} times as long", flush=True)
    seconds = {name: value / options.pairs for name, value in apart.items()}
    print(
        f"Median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}; apart from the steps: "
        f"evaluation {seconds['eval_s']:.2f} s, answers {seconds['sample_s']:.2f} s a run"
    )


if __name__ == "__main__":
    main()
