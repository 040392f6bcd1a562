"""What a run folder holds, read for a report: files that are missing or damaged are left out, and that is said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggtune.errors import GgtuneError
from ggtune.evaluate.evaluation import EVALUATION, Evaluation, read_evaluation
from ggtune.report.recovered import recovered_card
from ggtune.run.metrics import read_metrics
from ggtune.run.outputs import EVALUATIONS
from ggtune.run.status import RunStatus, read_status, read_status_file
from ggtune.train.data_card import read_data_card

_MOST_JSON_BYTES = 256 << 20
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it. What is not there is empty."""

    folder: Path
    name: str  # among the runs of the report
    status: RunStatus
    written: Mapping[str, Any]  # status.json
    settings: Mapping[str, Any]
    metrics: Rows
    before_after: Rows
    samples: Rows  # answers while training
    evaluations: Sequence[Evaluation]
    comparison: Mapping[str, Any]
    proof: Mapping[str, Any]
    findings: Rows  # of diagnosis.json
    general: Mapping[str, Any]  # general.json: a general text and questions, before and after
    worst_rows: Mapping[str, Any]
    data_card: Mapping[str, Any]
    problems: Sequence[str] = field(default_factory=list)  # files that can't be read

    def setting(self, name: str) -> str:
        """Return a setting as text; "" where it is not known."""
        value = self.settings.get(name)
        return "" if value is None else str(value)


def read_record(folder: Path, name: str = "", *, recover: bool = True) -> RunRecord:
    """Read a run folder, of a run that goes on, too; ``recover``: look at its data where it has no data card.

    Raises :class:`GgtuneError` where it is none.
    """
    if not folder.is_dir():
        raise GgtuneError(f"{folder}: there is no such folder" if not folder.exists() else f"{folder} is no run folder")
    status = read_status(folder)
    problems: list[str] = []
    metrics_file = folder / "metrics.jsonl"
    try:
        metrics = read_metrics(metrics_file)
    except OSError as error:
        raise GgtuneError(f"can't read {metrics_file}: {error.strerror}") from error
    if _n_lines(metrics_file) > len(metrics):
        problems.append(f"metrics.jsonl: of its lines only the first {len(metrics)} can be read")
    return RunRecord(
        folder=folder,
        name=name or folder.resolve().name,
        status=status,
        written=read_status_file(folder / "status.json"),
        settings=_object(folder / "config.json", problems),
        metrics=metrics,
        before_after=_lines(folder / "before_after.jsonl", problems),
        samples=_lines(folder / "samples.jsonl", problems),
        evaluations=_evaluations(folder, problems),
        comparison=_object(folder / "comparison.json", problems),
        proof=_object(folder / "proof.json", problems),
        findings=objects(_object(folder / "diagnosis.json", problems).get("findings")),
        general=_object(folder / "general.json", problems),
        worst_rows=_object(folder / "worst_rows.json", problems),
        data_card=read_data_card(folder) or (recovered_card(folder) if recover else {}),
        problems=problems,
    )


def names_of(folders: Sequence[Path]) -> list[str]:
    """Name runs by as much of their paths' ends as tells them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for n in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-n:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _n_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _object(path: Path, problems: list[str]) -> dict[str, Any]:
    text = _text(path, problems)
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        problems.append(f"{path.name}: not a JSON object")
        return {}
    return values


def _lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Read JSON lines up to the first that is not whole: the last one may be being written."""
    rows = []
    lines = (_text(path, problems) or "").split("\n")
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            if i < len(lines) - 1:
                problems.append(f"{path.name}: line {i + 1} and those behind it can't be read")
            break
        rows.append(row)
    return rows


def _text(path: Path, problems: list[str]) -> str | None:
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            problems.append(f"{path.name}: too large to be read here")
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        problems.append(f"{path.name}: {error.strerror}")
        return None


def objects(values: Any) -> list[dict[str, Any]]:
    """Return the JSON objects in what should be a list of them."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _evaluations(folder: Path, problems: list[str]) -> list[Evaluation]:
    found = []
    for path in sorted(folder.glob(f"{EVALUATIONS}/*/{EVALUATION}")):
        try:
            found.append(read_evaluation(path.parent))
        except GgtuneError as error:
            problems.append(f"evaluation/{path.parent.name}: {error}")
    return found
