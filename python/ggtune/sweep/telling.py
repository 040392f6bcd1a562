"""What a user is told at the end of a sweep: the table, the best trial, and what can be done with it."""

import math
import shlex
import textwrap

from ggtune.config import flag
from ggtune.run.progress import format_duration
from ggtune.sweep.files import PICTURE, TABLE
from ggtune.sweep.running import SweepResult
from ggtune.sweep.sheet import DIVERGED, FAILED, FINISHED, LEFT, RESULTS, Outcome, Sheet, Trial
from ggtune.sweep.space import described

_REASON_LENGTH = 70  # results.csv has all of it


def table(result: SweepResult) -> list[str]:
    """Return lines of equal columns, the best trial first."""
    swept = list(result.sheet.axes)
    head = ["trial", *(name.replace("_", " ") for name in swept), "held-out", "at step", "steps", "time", ""]
    rows = [head]
    for trial, outcome in result.ranking:
        total = "" if trial.total_steps is None else f"/{trial.total_steps}"
        rows.append(
            [
                trial.name.partition("-")[0],
                *(f"{trial.changes[name]:g}" for name in swept),
                "-" if outcome.best_held_out is None else f"{outcome.best_held_out:.4f}",
                "-" if outcome.best_step is None else str(outcome.best_step),
                f"{outcome.steps}{total}",
                format_duration(outcome.elapsed_s),
                _state(outcome),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head) - 1)]
    return [
        "  ".join([*(text.rjust(n) for text, n in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in rows
    ]


def last_lines(result: SweepResult) -> list[str]:
    """Say which is the best, where it lies, and what to do next."""
    folder = result.folder
    files = [name for name in (TABLE, RESULTS, PICTURE) if (folder / name).exists()]
    lines = ["Written: " + ", ".join(str(folder / name) for name in files)]
    best = result.best
    if best is None:
        return [*lines, "No trial came to a held-out loss: see why above, and start anew with a smaller --lr."]
    trial, outcome = best
    run = shlex.quote(str(folder / trial.name))
    before = outcome.held_out_before
    against = f", {before:.4f} before the training" if before is not None else ""
    lines.append(
        f"Best: {described(trial.changes)}: held-out loss {outcome.best_held_out:.4f} after step {outcome.best_step}"
        f"{against}: {folder / trial.name}"
    )
    if result.closeness is not None:
        lines.append(result.closeness.line())
    if before is not None and outcome.best_held_out is not None and outcome.best_held_out >= before:
        lines.append("No trial got better than the base alone: give more rows, or smaller values of --lr.")
    if outcome.state == LEFT:
        lines.append(
            f"It was left early, and the trials that went on came to no lower loss: ggtune resume {run} goes on."
        )
    lines += [advice for name in result.sheet.axes if (advice := _at_the_edge(result.sheet, trial, name))]
    lines.append(f"Merge it: ggtune export-lora {run} -o merged.gguf")
    lines.append("Then:     ggtune package merged.gguf --name NAME")
    return lines


def _state(outcome: Outcome) -> str:
    if outcome.state in (DIVERGED, FAILED) and outcome.reason:
        return f"{outcome.state}: {textwrap.shorten(outcome.reason, _REASON_LENGTH, placeholder=' ...')}"
    return {FINISHED: "went to its end", LEFT: "left early"}.get(outcome.state, outcome.state)


def _at_the_edge(sheet: Sheet, best: Trial, name: str) -> str:
    """Say where the best value is the lowest or highest of several: beyond it may be a better one."""
    values = sorted({trial.changes[name] for trial in sheet.trials})
    if len(values) < 3 or values[0] < best.changes[name] < values[-1]:
        return ""
    at_top = best.changes[name] == values[-1]
    beyond = values[-1] ** 2 / values[-2] if at_top else values[0] ** 2 / values[1] if values[1] else math.nan
    if not math.isfinite(beyond) or beyond <= 0:
        return ""
    end, way = ("highest", "higher") if at_top else ("lowest", "lower")
    shown = round(beyond) if isinstance(values[0], int) else float(f"{beyond:.2g}")
    return f"Its {flag(name)} is the {end} that was tried: a {way} one, such as {shown:g}, may be better yet."
