"""Every setting of a run reaches the engine, the data or the files: each is changed alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
