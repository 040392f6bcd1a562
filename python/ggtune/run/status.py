"""``status.json`` of a run folder, and what it and the metrics say of a run from outside."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ggtune.errors import GgtuneError
from ggtune.files import replace_text
from ggtune.run.history import is_number
from ggtune.run.lock import ProcessId, holder_of, read_process_id
from ggtune.run.metrics import last_metrics
from ggtune.run.outputs import Outputs
from ggtune.run.watchdog import private_memory
from ggtune.system import format_bytes

RUNNING, FINISHED, INTERRUPTED, FAILED, DEAD = "running", "finished", "interrupted", "failed", "dead"
_TREND_STEPS = 50


def write_status(path: Path, state: str, reason: str, more: Mapping[str, Any]) -> None:
    """Say how a run stands. Raises :class:`ggtune.files.WriteError`."""
    values = {
        "state": state,
        "reason": reason,
        **asdict(ProcessId.own()),
        "written": time.time(),
        "memory_bytes": private_memory(),
        **more,
    }
    replace_text(path, json.dumps(values, indent=2) + "\n")


def read_status_file(path: Path) -> dict[str, Any]:
    """Return what is written, nothing where there is no whole file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


@dataclass(frozen=True)
class RunStatus:
    """How a run stands."""

    folder: Path
    state: str  # RUNNING, FINISHED, INTERRUPTED, FAILED, DEAD
    reason: str
    pid: int | None  # of a run that lives
    step: int
    total_steps: int | None
    epoch: float
    loss: float | None
    smoothed_loss: float | None
    held_out_loss: float | None
    trend: float | None  # change of the mean loss over the last steps, as a share of the mean before
    trend_steps: int
    elapsed_s: float
    eta_s: float | None
    memory_bytes: int | None
    idle_s: float | None  # since the last step was written
    devices: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # layers and predicted bytes; "CPU", too

    @property
    def layers_text(self) -> str:
        """Where the layers lie; "" where all were the CPU's."""
        parts = []
        for name, use in self.devices.items():
            memory = f" ({format_bytes(use['memory_bytes'])} expected)" if "memory_bytes" in use else ""
            parts.append(f"{use.get('layers', 0)} on {name}{memory}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "folder": str(self.folder)}


def read_status(folder: Path, records: Sequence[Mapping[str, Any]] | None = None) -> RunStatus:
    """Look at a run folder. Raises :class:`GgtuneError` where it is none.

    ``records`` are the last of its metrics, with the last one that has a held-out loss, where they are known already.
    """
    outputs = Outputs.folder(folder)
    written = read_status_file(folder / "status.json")
    if not written and not outputs.metrics.exists():
        raise GgtuneError(f"{folder} is no run folder: it has neither status.json nor metrics.jsonl")
    if records is None:
        records = last_metrics(outputs.metrics)
    last: Mapping[str, Any] = records[-1] if records else {}
    state, reason, process = _state(outputs, written)
    total = written.get("total_steps")
    trend, trend_steps = _trend([r["loss"] for r in records if is_number(r.get("loss"))])
    held_out = [r["held_out_loss"] for r in records if is_number(r.get("held_out_loss"))]
    living = process.process() if process is not None else None
    return RunStatus(
        folder=folder,
        state=state,
        reason=reason,
        pid=living.pid if living is not None else None,
        step=int(last.get("step", 0)),
        total_steps=total if isinstance(total, int) else None,
        epoch=_number(last, "epoch") or 0.0,
        loss=_number(last, "loss"),
        smoothed_loss=_number(last, "smoothed_loss"),
        held_out_loss=held_out[-1] if held_out else None,
        trend=trend,
        trend_steps=trend_steps,
        elapsed_s=_number(last, "elapsed_s") or 0.0,
        eta_s=_eta(records, total) if state == RUNNING else None,
        memory_bytes=_resident_bytes(living),
        idle_s=_age_s(outputs.metrics),
        devices=_devices(written.get("devices")),
    )


def _devices(written: Any) -> dict[str, dict[str, int]]:
    if not isinstance(written, dict):
        return {}
    return {
        str(name): {str(key): n for key, n in use.items() if isinstance(n, int)}
        for name, use in written.items()
        if isinstance(use, dict)
    }


def _age_s(path: Path) -> float | None:
    """Seconds since the file was written to."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def _resident_bytes(process: psutil.Process | None) -> int | None:
    try:
        return int(process.memory_info().rss) if process is not None else None
    except psutil.Error:  # it has ended meanwhile
        return None


def _state(outputs: Outputs, written: Mapping[str, Any]) -> tuple[str, str, ProcessId | None]:
    """State, reason, and the process where it lives on this machine."""
    holder = holder_of(outputs.lock)
    state, reason = str(written.get("state", DEAD)), str(written.get("reason", ""))
    if holder is not None:
        return RUNNING, "", holder
    if state == RUNNING:
        last = read_process_id(json.dumps(written))
        if last is not None and last.process() is not None:  # it is at what comes before or after the training
            return RUNNING, reason, last
        return DEAD, "the process is gone without a word: killed, or the machine went down", None
    return state, reason, None


def _number(record: Mapping[str, Any], name: str) -> float | None:
    value = record.get(name)
    return float(value) if is_number(value) else None


def _trend(losses: Sequence[float]) -> tuple[float | None, int]:
    n = min(_TREND_STEPS, len(losses) // 2)
    if n < 1:
        return None, 0
    before, now = sum(losses[-2 * n : -n]), sum(losses[-n:])
    return (now / before - 1 if before > 0 else None), n


def _eta(records: Sequence[Mapping[str, Any]], total: Any) -> float | None:
    timed = [(r["step"], r["elapsed_s"]) for r in records[-_TREND_STEPS:] if is_number(r.get("elapsed_s"))]
    if not isinstance(total, int) or len(timed) < 2 or timed[-1][0] <= timed[0][0]:
        return None
    per_step_s = (timed[-1][1] - timed[0][1]) / (timed[-1][0] - timed[0][0])
    eta_s = max(0.0, per_step_s * (total - timed[-1][0]))
    return float(eta_s) if is_number(eta_s) else None
