"""Every setting of a run reaches the engine, the data or the files: each is changed alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from config_table import BASE, TABLE, Change
from recorded import Seen, train

from ggtune import TrainConfig

CASES = [
    pytest.param(name, change, id=f"{name}-{i}" if i else name)
    for name, changes in TABLE.items()
    for i, change in enumerate(changes)
]


def test_every_field_has_an_entry() -> None:
    assert set(TABLE) == {f.name for f in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize(("name", "change"), CASES)
def test_field(
    name: str,
    change: Change,
    tmp_path: Path,
    base_run: Callable[[dict[str, Any]], Seen],
    settled: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    before = base_run(change.base)
    after = train(tmp_path / "run", settled({**BASE, **change.base, name: change.value}))
    assert not after.error
    change.check(before, after)
    if change.same_adapter is not None:
        assert after.same_adapter(before) == change.same_adapter


def test_force_starts_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    free = psutil.virtual_memory()._replace(available=1 << 20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    for rank, needed in ((4, "tokens at once"), (512, "for an adapter of rank 512")):
        refused = train(tmp_path / "refused", settled({**BASE, "rank": rank, "targets": ("attn_q",), "max_steps": 1}))
        assert "more memory is needed than there is" in refused.error
        assert needed in refused.error
        assert refused.n_steps == 0
    assert train(tmp_path / "run", settled({**BASE, "max_steps": 1, "force": True})).n_steps == 1
