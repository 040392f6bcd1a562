"""What tests write into run folders."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

GGTUNE = [sys.executable, "-m", "ggtune"]
WriteRun = Callable[..., Path]


def line(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step, "epoch": step / 20, "loss": 3 - step / 100, "smoothed_loss": 3 - step / 110, "lr": 2e-4,
        "grad_norm": 1.5, "n_tokens": 100, "tokens_per_second": 250.0, "elapsed_s": 2.0 * step, **more,
    }  # fmt: skip


def append(path: Path, *records: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
