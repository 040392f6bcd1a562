"""How well a run stops by itself, and how well its end was foreseen: a table over several seeds.

    python scripts/early_stop.py --model base.gguf --data rows.csv --out runs/

Each run may take --epochs and has --early-stop; its held-out rows, their order and its adapter are those of its seed.
Of each it says where it ended, which step was the best and which one is handed on, and what a curve through the
measurements of its first third would have foreseen for its last one, with its interval of 95 % and how wide that is
beside all that was learned. A run whose folder is there already is not trained again.
"""

import argparse
import itertools
from pathlib import Path

from ggtune.config import TrainConfig
from ggtune.run.metrics import read_metrics
from ggtune.train.chosen import chosen_adapter
from ggtune.train.curve import fit_curve
from ggtune.train.outlook import Clock, measured_losses
from ggtune.train.session import fine_tune


def first_rows(path: Path, n: int, folder: Path) -> Path:
    """Cut a table to its first rows; one line each."""
    with path.open(encoding="utf-8") as file:
        lines = list(itertools.islice(file, n + 1))
    cut = folder / f"{path.stem}-{n}{path.suffix}"
    cut.write_text("".join(lines), encoding="utf-8")
    return cut


def row(seed: int, folder: Path) -> tuple[list[str], bool, bool, float]:
    """A line of the table; whether it stopped in time and was foreseen, and the interval's width."""
    records = read_metrics(folder / "metrics.jsonl")
    points, clock = measured_losses(records), Clock(records)
    after = [(step, loss) for step, loss in points if step]
    end, final = after[-1]
    best, lowest = min(after, key=lambda point: point[1])
    since = sum(step > best for step, _ in after)
    handed_on = chosen_adapter(folder).step
    first = [(step, loss) for step, loss in points if step <= end / 3]
    fit = fit_curve([clock.time(step) for step, _ in first], [loss for _, loss in first])
    learned = points[0][1] - lowest
    texts = [str(seed), str(end), str(best), str(since), str(handed_on), f"{points[0][1]:.3f}", f"{lowest:.3f}"]
    if fit is None:
        return [*texts, f"{final:.3f}", f"{len(first)} points are too few", "", ""], since <= 2, False, float("nan")
    found = fit.predict(clock.time(end))
    inside, width = found.low <= final <= found.high, found.high - found.low
    foreseen = [f"{final:.3f}", f"{found.text(3)} ({len(first)})", "yes" if inside else "NO"]
    return [*texts, *foreseen, f"{width:.2f} ({width / learned:.1f})"], since <= 2 and handed_on == best, inside, width


def main() -> None:
    """Train what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=30.0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--holdout", default="0.1")
    parser.add_argument("--eval-every", default="0.5ep")
    parser.add_argument("--early-stop", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = first_rows(options.data, options.rows, options.out)
    rows = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        folder = options.out / f"{options.model.stem}-{options.lr:g}-{seed}"
        if not (folder / "adapter.gguf").exists():
            config = TrainConfig(
                model=str(options.model),
                data=str(data),
                epochs=options.epochs,
                lr=options.lr,
                holdout=options.holdout,
                eval_every=options.eval_every,
                early_stop=options.early_stop,
                save_every="0",
                keep=1,
                seed=seed,
                threads=options.threads,
            )
            fine_tune(config, folder, quiet=True)
        rows.append(row(seed, folder))
        print(f"seed {seed}: {' '.join(rows[-1][0][1:])}", flush=True)
    names = "seed, ended, best, since, handed on, before, lowest, last, foreseen (points), in, width (of learned)"
    print(f"\n| {names.replace(', ', ' | ')} |")
    print("|" + "---|" * 11)
    for texts, *_ in rows:
        print(f"| {' | '.join(texts)} |")
    in_time, inside = sum(r[1] for r in rows), sum(r[2] for r in rows)
    print(f"\nStopped within two measurements of the best, and handed it on: {in_time} of {len(rows)}.")
    widths = sorted(r[3] for r in rows)
    middle = widths[len(rows) // 2]
    print(f"The last loss was inside of its interval: {inside} of {len(rows)}; median width {middle:.2f}.")


if __name__ == "__main__":
    main()
