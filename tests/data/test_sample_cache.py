"""Token samples kept from one run to the next: a hit gives the same, any change of what they follow from is seen."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggtune import _core
from ggtune.data import sample_cache, store
from ggtune.data.dataset import Dataset
from ggtune.data.load import load_samples
from ggtune.data.readers.reader import ReadOptions
from ggtune.data.shapes import Columns
from ggtune.demo import MODEL
from ggtune.setting_texts import DataPart

NOW = datetime.datetime(2026, 3, 4, 5, 6, 7)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that keeps small data, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GGTUNE_CACHE")
    monkeypatch.setattr(sample_cache, "_LEAST_S", 0.0)
    monkeypatch.setattr(sample_cache, "_LEAST_BYTES", 0)
    return tmp_path / "cache/ggtune/tokens"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each time that samples are made, not found."""
    calls: list[str] = []
    load = load_samples.__globals__["_Loader"].load

    def counted(self: Any) -> Dataset:
        calls.append("made")
        data: Dataset = load(self)
        return data

    monkeypatch.setattr(load_samples.__globals__["_Loader"], "load", counted)
    return calls


def data_file(folder: Path, n: int = 40, name: str = "x.jsonl") -> Path:
    path = folder / name
    rows: list[dict[str, Any]] = [
        {"question": f"What is {i % 7}?", "answer": f"It is {i}." + " very" * (i % 5)} for i in range(n)
    ]
    rows += [rows[0], {"question": "Empty?", "answer": ""}, {"question": "Long?", "answer": "very " * 100}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n{\n")
    return path


def content(data: Dataset) -> list[Any]:
    samples = [(s.tokens.tolist(), s.weights.tolist(), s.n_prompt, s.row) for s in data.samples]
    sizes = [data.samples.lengths.tolist(), data.samples.n_targets.tolist(), data.samples.rows.tolist()]
    return [samples, sizes, data.groups.tolist(), data.report, data.template.name if data.template else None]


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("in_file", [False, True])
def test_a_hit_gives_the_same(
    in_file: bool,
    folder: Path,
    made: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    demo_model: _core.Model,
) -> None:
    if in_file:
        monkeypatch.setattr(store, "IN_MEMORY_TOKENS", 100)
        monkeypatch.setattr(sample_cache, "IN_MEMORY_TOKENS", 100)
    path = data_file(tmp_path)
    first, again = (
        load_samples(path, demo_model, context=24, skip_bad=True, prompt_weight=0.25, drop=["duplicate"], now=NOW)
        for _ in range(2)
    )
    assert made == ["made"]
    assert content(again) == content(first)
    report = first.report
    assert all((report.doubts, report.dropped, report.cut_rows, report.empty_rows, report.bad_rows))
    assert isinstance(again.samples.tokens, store.FileValues) is in_file
    assert len(entries(folder)) == 1
    assert again.samples.take(np.array([3, 1]))[0].row == first.samples[3].row


def _same_size_and_time(path: Path) -> None:
    about = path.stat()
    path.write_text(path.read_text().replace("It is 3.", "It is 4."))
    assert path.stat().st_size == about.st_size
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], None]] = {
    "size": lambda path: path.write_text(path.read_text() + '{"question": "More?", "answer": "Yes, more."}\n') and None,
    "content": _same_size_and_time,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_are_read(
    change: str, folder: Path, made: list[str], tmp_path: Path, demo_model: _core.Model
) -> None:
    path = data_file(tmp_path)
    load_samples(path, demo_model, context=64, skip_bad=True)
    CHANGES[change](path)
    changed = load_samples(path, demo_model, context=64, skip_bad=True)
    assert len(made) == 2
    made.clear()
    assert content(load_samples(path, demo_model, context=64, skip_bad=True)) == content(changed)
    assert not made


def test_a_byte_anywhere_in_the_data_counts(
    folder: Path, made: list[str], tmp_path: Path, demo_model: _core.Model
) -> None:
    """Not only in blocks here and there, with the size and the time of before; the time alone is no change."""
    path = data_file(tmp_path, 4000)
    load_samples(path, demo_model, context=64, skip_bad=True)
    os.utime(path, ns=(1, 2))
    load_samples(path, demo_model, context=64, skip_bad=True)
    assert len(made) == 1
    text = path.read_bytes()
    for at in range(100_000, len(text), len(text) // 7):
        at = text.index(b"It is ", at) + 4
        path.write_bytes(text[:at] + b"z" + text[at + 1 :])
        os.utime(path, ns=(1, 2))
        made.clear()
        load_samples(path, demo_model, context=64, skip_bad=True)
        assert made, at


OPTIONS: list[dict[str, Any]] = [
    {"context": 32},
    {"template": "alpaca"},
    {"template": "jinja:{{ messages[0].content }}: {% for m in messages[1:] %}{{ m.content + '</s>' }}{% endfor %}"},
    {"system": "Be brief."},
    {"loss_on": "all"},
    {"learn": "last"},
    {"prompt_weight": 0.5},
    {"too_long": "skip"},
    {"drop": ("duplicate",)},
    {"read": ReadOptions(columns=Columns("answer", "question"), skip_bad=True)},
    {"read": ReadOptions(format="jsonl", skip_bad=True)},
    {"read": ReadOptions(encoding="utf-8", skip_bad=True)},
    {"overlapping_samples": True},
]


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_each_option_is_part_of_the_key(
    option: dict[str, Any], folder: Path, made: list[str], tmp_path: Path, demo_model: _core.Model
) -> None:
    path = data_file(tmp_path)
    load_samples(path, demo_model, context=64, skip_bad=True)
    options = {"context": 64, "skip_bad": True, **option}
    found = load_samples(path, demo_model, **options)
    assert len(made) == 2
    assert content(load_samples(path, demo_model, **options)) == content(found)
    assert len(made) == 2


def test_parts_are_part_of_the_key(folder: Path, made: list[str], tmp_path: Path, demo_model: _core.Model) -> None:
    path, other = str(data_file(tmp_path)), str(data_file(tmp_path, 5, "y.jsonl"))
    parts = [
        [DataPart(path)],
        [DataPart(path, weight=0.5)],
        [DataPart(path, repeat=2)],
        [DataPart(path), DataPart(other)],
        [DataPart(other), DataPart(path)],
    ]
    for part in parts:
        load_samples(part, demo_model, context=64, skip_bad=True)
    assert len(made) == len(parts) == len(entries(folder))


def test_model_and_code_are_part_of_the_key(
    folder: Path, made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_model: _core.Model
) -> None:
    path = data_file(tmp_path)
    load_samples(path, demo_model, context=64, skip_bad=True)
    copied = tmp_path / "copy.gguf"
    shutil.copyfile(MODEL, copied)
    load_samples(path, _core.Model(str(copied), vocab_only=True), context=64, skip_bad=True)
    assert len(made) == 1  # the same model by another name
    content = copied.read_bytes()
    copied.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    load_samples(path, _core.Model(str(copied), vocab_only=True), context=64, skip_bad=True)
    assert len(made) == 2
    monkeypatch.setattr(sample_cache, "_code", lambda: "another version")
    load_samples(path, demo_model, context=64, skip_bad=True)
    assert len(made) == 3


def test_dates_count_as_far_as_the_template_writes_them() -> None:
    later = NOW + datetime.timedelta(hours=2)
    tomorrow = NOW + datetime.timedelta(days=1)
    source = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"
    assert sample_cache._dates(source, NOW) == sample_cache._dates(source, later) == ["04 Mar 2026"]
    assert sample_cache._dates(source, tomorrow) == ["05 Mar 2026"]
    assert sample_cache._dates("{{ strftime_now(form) }}", NOW) != sample_cache._dates(
        "{{ strftime_now(form) }}", later
    )
    assert sample_cache._dates("{{ messages }}", NOW) == []


@pytest.mark.parametrize("damage", ["cut", "tokens", "groups", "description", "empty", "magic"])
def test_damaged_entries_are_made_anew(
    damage: str, folder: Path, made: list[str], tmp_path: Path, demo_model: _core.Model
) -> None:
    path = data_file(tmp_path)
    first = load_samples(path, demo_model, context=64, skip_bad=True)
    (entry,) = entries(folder)
    whole = entry.read_bytes()
    n_tokens = 4 * int(first.samples.lengths.sum())
    description = whole.index(b'{"arrays"')
    at = {"tokens": n_tokens // 2, "groups": description - 1, "description": description + 30, "magic": 0}.get(damage)
    if at is None:
        entry.write_bytes(b"" if damage == "empty" else whole[:-100])
    else:
        entry.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    again = load_samples(path, demo_model, context=64, skip_bad=True)
    assert len(made) == 2
    assert content(again) == content(first)
    assert entry.read_bytes() == whole


def test_writers_at_the_same_time(folder: Path, tmp_path: Path, demo_model: _core.Model) -> None:
    path = data_file(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(load_samples, path, demo_model, context=64, skip_bad=True) for _ in range(12)]
        found = [content(job.result()) for job in jobs]
    assert all(one == found[0] for one in found)
    assert [entry.suffix for entry in entries(folder)] == [""]


def test_the_oldest_are_removed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_model: _core.Model
) -> None:
    def load(n: int) -> Path:
        before = set(entries(folder))
        load_samples(path, demo_model, context=n, skip_bad=True)
        (new,) = set(entries(folder)) - before
        return new

    path = data_file(tmp_path)
    first, second = load(60), load(61)
    for n, entry in enumerate((first, second)):
        os.utime(entry, ns=(n, n))
    unfinished = folder / "x.part"
    unfinished.write_bytes(b"x")
    os.utime(unfinished, ns=(0, 0))
    load_samples(path, demo_model, context=60, skip_bad=True)  # used: newer than the second now
    monkeypatch.setattr(sample_cache, "_MOST_BYTES", int(2.5 * first.stat().st_size))
    third = load(62)
    assert entries(folder) == sorted([first, third])
    monkeypatch.setattr(sample_cache, "_MOST_BYTES", 1000)
    load_samples(path, demo_model, context=63, skip_bad=True)
    assert not entries(folder)  # what is too large alone is not written


def test_what_is_not_kept(
    folder: Path, made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_model: _core.Model
) -> None:
    path = data_file(tmp_path)
    monkeypatch.setattr(sample_cache, "_LEAST_S", 60.0)
    load_samples(path, demo_model, context=64, skip_bad=True)
    monkeypatch.setattr(sample_cache, "_LEAST_S", 0.0)
    monkeypatch.setenv("GGTUNE_CACHE", "off")
    load_samples(path, demo_model, context=64, skip_bad=True)
    monkeypatch.delenv("GGTUNE_CACHE")
    monkeypatch.setattr(sample_cache, "_LEAST_BYTES", 1 << 18)
    load_samples(path, demo_model, context=64, skip_bad=True)
    assert len(made) == 3
    assert not entries(folder)
    monkeypatch.setattr(sample_cache, "_LEAST_BYTES", 0)
    folder.parent.mkdir(parents=True)
    folder.write_text("no folder")
    load_samples(path, demo_model, context=64, skip_bad=True)
    assert len(made) == 4
