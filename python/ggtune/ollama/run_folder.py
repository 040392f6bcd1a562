"""What of a run's folder is packaged: the merged model, or the base with the adapter."""

from __future__ import annotations

import json
from pathlib import Path

from ggtune.errors import GgtuneError


def packaged_files(run: Path, *, with_adapter: bool = True) -> tuple[Path, list[tuple[Path, float]]]:
    """Find model and adapters (file, factor) of the run in the folder ``run``, as ``train`` and ``run`` write it.

    Where it has a merged model that is all; else it is the base that ``config.json`` names, and ``adapter.gguf``;
    without ``with_adapter`` always the base alone. Raises :class:`GgtuneError` for a folder without a run, and for a
    base that is gone.
    """
    merged, adapter, config = run / "model.gguf", run / "adapter.gguf", run / "config.json"
    if with_adapter and merged.is_file():
        return merged, []
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
    return base, [(adapter, 1.0)] if with_adapter else []


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
