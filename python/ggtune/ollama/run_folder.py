"""What of a run's folder is packaged: the merged model, or the base with the adapter."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ggtune.errors import GgtuneError
from ggtune.train.chosen import Which, adapter_of_run


@dataclass(frozen=True)
class RunFiles:
    """What of a run is packaged."""

    model: Path
    adapters: list[tuple[Path, float]]  # file, factor
    reason: str = ""  # why this adapter; "" where there is nothing to say


def packaged_files(run: Path, *, with_adapter: bool = True, which: Which = "auto") -> RunFiles:
    """Find model and adapters of the run in the folder ``run``, as ``train`` and ``run`` write it.

    Where it has a merged model that is all; else, or where ``which`` names a step, it is the base that ``config.json``
    names, and the adapter of that step (:func:`~ggtune.train.chosen.chosen_adapter`); without ``with_adapter`` always
    the base alone. Raises :class:`GgtuneError` for a folder without a run, and for a base that is gone.
    """
    merged, config = run / "model.gguf", run / "config.json"
    if with_adapter and which == "auto" and merged.is_file():
        return RunFiles(merged, [])
    adapter, reason = adapter_of_run(run, which) if with_adapter else (run / "adapter.gguf", "")
    if with_adapter and not adapter.is_file():
        raise GgtuneError(
            f"{run}: holds neither model.gguf nor adapter.gguf. Give a model file, or the folder of a run."
        )
    base = _base(run, config)
    if not base.is_file():
        raise GgtuneError(
            f"{base}: there is no such file, but the run was trained on it. Say where it is: "
            f"ggtune package --model BASE --lora {adapter}"
        )
    return RunFiles(base, [(adapter, 1.0)] if with_adapter else [], reason)


def _base(run: Path, config: Path) -> Path:
    """Return the base's path, seen from here where the run was started in another folder."""
    base = Path(str(_read(config).get("model") or ""))
    status = run / "status.json"
    if base.is_absolute() or base.exists() or not status.is_file():
        return base
    return Path(str(_read(status).get("working_folder") or ".")) / base


def _read(path: Path) -> dict[str, object]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise GgtuneError(f"can't read {path}: {error}") from error
    if not isinstance(values, dict):
        raise GgtuneError(f"{path} has no settings in it")
    return values
