"""What pages show of a run, as values for JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from ggtune.board.answers import Question
from ggtune.board.live import LiveRun
from ggtune.run.history import is_number
from ggtune.run.progress import format_duration
from ggtune.run.status import RUNNING, RunStatus
from ggtune.system import format_bytes

_SPARK_POINTS = 60  # of a small curve
_SHOWN_SETTINGS = (
    "model", "data", "more_data", "holdout", "template", "system", "rank", "alpha", "lr", "schedule", "epochs",
    "max_steps", "batch", "ctx", "micro_batch_tokens", "dropout", "threads", "seed",
)  # fmt: skip


def row_of(id_: str, name: str, run: LiveRun) -> dict[str, Any]:
    """Return the line of the list."""
    status = run.status
    row: dict[str, Any] = {"id": id_, "name": name, "folder": str(run.folder), "model": run.model, "data": run.data}
    if status is None:
        return {**row, "state": "unreadable", "reason": run.problem, "changed": 0}
    last = run.history.last[-1] if run.history.last else {}
    return {
        **row,
        "state": status.state,
        "reason": status.reason,
        "step": _of(status),
        "share": _share(status),
        "epoch": _epoch(run, status),
        "eta": format_duration(status.eta_s) if status.eta_s is not None else "",
        "loss": _loss(status.smoothed_loss if status.smoothed_loss is not None else status.loss),
        "held_out": _loss(status.held_out_loss),
        "speed": f"{last['tokens_per_second']:.0f}" if is_number(last.get("tokens_per_second")) else "",
        "n_warnings": len(run.warnings),
        "spark": spark(run),
        "is_whole": run.is_whole,
        "changed": round(_changed(run)),
    }


def facts_of(run: LiveRun) -> list[tuple[str, str]]:
    """Return the figures of a run as pairs of name and text."""
    status = run.status
    if status is None:
        return []
    last: Mapping[str, Any] = run.history.last[-1] if run.history.last else {}
    best = run.history.best_held_out
    trend = f"{100 * status.trend:+.1f} % over {status.trend_steps} steps" if status.trend is not None else ""
    memory = status.memory_bytes if status.memory_bytes is not None else last.get("memory_bytes")
    pairs = [
        ("Step", _of(status)),
        ("Epoch", _epoch(run, status)),
        ("Time left", format_duration(status.eta_s) if status.eta_s is not None else ""),
        ("Training so far", format_duration(status.elapsed_s) if status.elapsed_s else ""),
        ("Loss", _loss(status.loss)),
        ("Smoothed", _loss(status.smoothed_loss) + (f" ({trend})" if trend else "")),
        ("Held-out loss", _loss(status.held_out_loss)),
        ("Best held-out", f"{best[1]:.4f} at step {best[0]}" if best is not None else ""),
        ("Learning rate", f"{last['lr']:.3g}" if is_number(last.get("lr")) else ""),
        ("Gradient norm", f"{last['grad_norm']:.3g}" if is_number(last.get("grad_norm")) else ""),
        ("Tokens per second", f"{last['tokens_per_second']:.0f}" if is_number(last.get("tokens_per_second")) else ""),
        ("Memory", format_bytes(memory) if is_number(memory) else ""),
        ("Process", str(status.pid) if status.pid is not None else ""),
    ]
    return [(name, text) for name, text in pairs if text]


def parts_of(run: LiveRun, versions: Mapping[str, int]) -> dict[str, Any]:
    """Return the parts of a run's page that have another version than the page has."""
    changed = {part: version for part, version in run.versions.items() if versions.get(part) != version}
    parts: dict[str, Any] = {"versions": dict(run.versions)}
    if "status" in changed or "figures" in changed:
        parts["facts"] = facts_of(run)
        parts["forecast"] = " ".join(run.forecast())
        parts["settings"] = settings_of(run)
    if "samples" in changed:
        parts["questions"] = [_question(question) for question in run.answers.questions()]
    if "log" in changed:
        parts["log"] = list(run.log)
    if "results" in changed:
        parts["before_after"] = run.results.before_after
        parts["scores"] = run.results.scores
    if "warnings" in changed:
        parts["warnings"] = list(run.warnings)
    return parts


def settings_of(run: LiveRun) -> list[tuple[str, str]]:
    """Return the settings that people look for first, as the user wrote them."""
    shown = []
    for name in _SHOWN_SETTINGS:
        value = run.config.get(name)
        if value not in (None, "", [], 0):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            shown.append((name.replace("_", "-"), text[:500]))
    return shown


def spark(run: LiveRun) -> list[list[list[float]]]:
    """Return a small curve in a square of 100: smoothed loss and held-out loss, lists of (right, down)."""
    points = run.history.points()
    smoothed = [(p["step"], p["smoothed_loss"]) for p in points if "smoothed_loss" in p]
    held_out = [(record["step"], record["held_out_loss"]) for record in run.history.held_out()]
    curves = [_thin(smoothed), _thin(held_out)]
    steps = [step for curve in curves for step, _ in curve]
    losses = [loss for curve in curves for _, loss in curve]
    if not steps or min(steps) == max(steps):
        return []
    left, width = min(steps), max(steps) - min(steps)
    high, height = max(losses), (max(losses) - min(losses)) or 1.0
    if not is_number(height):
        return []
    return [[[round(100 * (x - left) / width, 1), round(100 * (high - y) / height, 1)] for x, y in c] for c in curves]


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _SPARK_POINTS:
        return list(points)
    n = len(points) - 1
    return [points[round(i * n / (_SPARK_POINTS - 1))] for i in range(_SPARK_POINTS)]


def _question(question: Question) -> dict[str, Any]:
    answers = [
        {"step": answer.step, "text": answer.text, "ended": answer.ended, "epoch": answer.epoch}
        for answer in question.answers
    ]
    return {"question": question.text, "reference": question.reference, "answers": answers}


def _of(status: RunStatus) -> str:
    return f"{status.step}/{status.total_steps}" if status.total_steps else str(status.step)


def _share(status: RunStatus) -> float | None:
    if not status.total_steps or status.total_steps < 0:
        return None
    return round(min(1.0, status.step / status.total_steps), 4)


def _epoch(run: LiveRun, status: RunStatus) -> str:
    epochs = run.config.get("epochs")
    return f"{status.epoch:.2f}" + (f" of {epochs:g}" if is_number(epochs) and epochs > 0 else "")


def _loss(value: float | None) -> str:
    return f"{value:.4f}" if value is not None else ""


def _changed(run: LiveRun) -> float:
    """Seconds since 1970 of the last step or state; of a run that goes on, its beginning, so that rows keep places."""
    status = run.status
    names = ("config.json",) if status is not None and status.state == RUNNING else ("metrics.jsonl", "status.json")
    times = []
    for name in names:
        try:
            times.append((run.folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)
