"""Quick runs on the demo model, good ones and such with a planted fault."""

import csv
import dataclasses
import random
from pathlib import Path

from ggtune.config import TrainConfig
from ggtune.demo import DATA, MODEL
from ggtune.train.session import fine_tune

with DATA.open(newline="", encoding="utf-8") as file:
    ROWS = [(question, answer) for question, answer in list(csv.reader(file))[1:]]


def shuffled(rows: list[tuple[str, str]], seed: int = 3) -> list[tuple[str, str]]:
    answers = [answer for _, answer in rows]
    random.Random(seed).shuffle(answers)
    return [(question, answer) for (question, _), answer in zip(rows, answers, strict=True)]


def train(folder: Path, rows: list[tuple[str, str]] = ROWS, **changes: object) -> Path:
    """Train in ``folder`` and return the run's own."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "answer"), *rows])
    config = TrainConfig(
        model=str(MODEL),
        data=str(folder / "rows.csv"),
        ctx=64,
        batch=8,
        rank=4,
        lr=2e-3,
        epochs=2.0,
        holdout="12",
        save_every="0",
        threads=1,
    )
    config = dataclasses.replace(config, **changes)  # type: ignore[arg-type]
    fine_tune(config, folder / "run", quiet=True)
    return folder / "run"
