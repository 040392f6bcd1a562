"""What a sweep writes for who wants to look at it: ``results.csv`` and a plot; and what is removed with it."""

import csv
import io
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ggtune.errors import GgtuneError
from ggtune.files import WriteError, replace_text, replacing
from ggtune.run.metrics import read_metrics
from ggtune.run.outputs import EVALUATIONS, Outputs
from ggtune.sweep.sheet import RESULTS, SHEET, Outcome, Results, Sheet, Trial, read_sheet

TABLE, PICTURE = "results.csv", "sweep.png"


def write_table(ranking: Sequence[tuple[Trial, Outcome]], sheet: Sheet, folder: Path) -> list[str]:
    """Write ``results.csv``, the best trial first. A disk that is full is told of, and ends nothing."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    swept = list(sheet.axes)
    rows.writerow(
        ["trial", *swept, "held_out_loss", "best_step", "steps", "total_steps", "elapsed_s", "state", "reason"]
    )
    for trial, outcome in ranking:
        rows.writerow(
            [
                trial.name,
                *(f"{trial.changes[name]:g}" for name in swept),
                "" if outcome.best_held_out is None else repr(outcome.best_held_out),
                "" if outcome.best_step is None else outcome.best_step,
                outcome.steps,
                "" if trial.total_steps is None else trial.total_steps,
                f"{outcome.elapsed_s:.1f}",
                outcome.state,
                outcome.reason,
            ]
        )
    return _attempt(lambda: replace_text(folder / TABLE, text.getvalue()))


def write_pictures(sheet: Sheet, results: Results, folder: Path) -> list[str]:
    """Draw ``sweep.png``. What goes wrong is told of, and ends nothing."""
    from ggtune.sweep.plot import sweep_png

    curves = {trial.name: _curve(folder / trial.name) for trial in sheet.trials}

    def write() -> None:
        data = sweep_png(sheet, results, curves)
        with replacing(folder / PICTURE, needed_bytes=len(data)) as temporary:
            temporary.write_bytes(data)

    return _attempt(write)


def remove_earlier(folder: Path) -> None:
    """Remove a sweep's trials and files."""
    sheet = None
    with suppress(GgtuneError):
        sheet = read_sheet(folder)
    names = [trial.name for trial in sheet.trials] if sheet is not None else []
    for name in (*names, EVALUATIONS):
        if Path(name).name == name and (folder / name).is_dir():
            shutil.rmtree(folder / name)
    for name in (SHEET, RESULTS, TABLE, PICTURE):
        (folder / name).unlink(missing_ok=True)


def _curve(run: Path) -> list[tuple[int, float]]:
    """Return steps and held-out losses of a trial, that before the training too."""
    found: list[tuple[int, float]] = []
    for record in read_metrics(Outputs.folder(run).metrics):
        before, after = record.get("held_out_before"), record.get("held_out_loss")
        found += [(0, before)] if before is not None else []
        found += [(record["step"], after)] if after is not None else []
    return found


def _attempt(write: Callable[[], None]) -> list[str]:
    try:
        write()
    except WriteError as error:
        return [f"warning: {error}"]
    return []
