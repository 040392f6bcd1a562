"""Records as ``metrics.jsonl`` holds them, made without training."""

import json
import math
import random
from pathlib import Path


def records(n, *, per_epoch=50, spike=(), dropped=(), diverged_after=None, held_out=True, old=False, only=(), seed=0):
    """``n`` steps of a loss that falls from 3.2 to 0.8.

    ``old``: without the fields that came later; ``only``: these fields, as each more is a figure more.
    """
    noise = random.Random(seed)
    made, average = [], 0.0
    for step in range(1, n + 1):
        loss = 0.8 + 2.4 * math.exp(-4 * step / n) + noise.gauss(0, 0.1)
        if diverged_after is not None and step > diverged_after:
            loss = 1.0 + 0.5 * (step - diverged_after)
        if step in spike:
            loss *= 40
        average = 0.9 * average + 0.1 * loss
        record = {
            "step": step,
            "epoch": step / per_epoch,
            "loss": loss,
            "smoothed_loss": average / (1 - 0.9**step),
            "lr": 2e-4 * (1 - step / (n + 1)),
            "grad_norm": 1 + noise.random(),
            "tokens_per_second": 300 + noise.random(),
            "elapsed_s": 2.0 * step,
        }
        if not old:
            record |= {"memory_bytes": (1 << 30) + step * 1000}
        if step in dropped:
            record |= {"loss": None, "grad_norm": None, "dropped": "loss not finite"}
        if held_out and step % per_epoch == 0:
            record["held_out_loss"] = 1.0 + 2 * math.exp(-4 * step / n) + 0.3 * (step / n) ** 3
            if not old:
                record |= {"held_out_scores": {"token_accuracy": 0.2 + 0.5 * step / n}, "eval_s": 1.5}
        made.append({key: record[key] for key in ("step", "epoch", *only) if key in record} if only else record)
    return made


def write_lines(path: Path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
