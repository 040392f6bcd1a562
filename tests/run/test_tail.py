"""Files that grow: each line once, whatever the writer does between two looks."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggtune.run import tail as tail_module
from ggtune.run.tail import Tail, json_objects


def all_lines(tail: Tail) -> list[bytes]:
    lines = []
    while True:
        look = tail.look()
        lines += look.lines
        if not look.is_more:
            return lines


@given(st.lists(st.binary(max_size=30), max_size=20), st.integers(1, 40))
def test_each_line_comes_once_however_it_is_cut(tmp_path_factory: pytest.TempPathFactory, lines, n) -> None:  # type: ignore[no-untyped-def]
    lines = [line.replace(b"\n", b"") for line in lines]
    path = tmp_path_factory.mktemp("tail") / "file"
    written = b"".join(line + b"\n" for line in lines)
    tail, seen = Tail(path), []
    assert tail.look() == ([], False, False)
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(written), n):
            file.write(written[start : start + n])
            look = tail.look()
            assert not look.began_anew
            seen += look.lines
    assert seen == lines


def test_a_half_written_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one\ntw")
    tail = Tail(path)
    assert tail.look().lines == [b"one"]
    assert tail.look() == ([], False, False)
    with path.open("ab") as file:
        file.write(b"o\n")
    assert tail.look().lines == [b"two"]


@pytest.mark.parametrize("way", ["replaced", "replaced by a longer one", "cut", "written over", "removed"])
def test_a_file_written_anew_is_known(tmp_path: Path, way: str) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(b"1\n2\n3\n")
    tail = Tail(path)
    assert len(tail.look().lines) == 3
    if way.startswith("replaced"):
        other.write_bytes(b"1\n" if way == "replaced" else b"1\n2\n3\n4\n5\n")
        other.replace(path)
    elif way == "cut":
        os.truncate(path, 2)
    elif way == "written over":  # the same file, longer than before, with other bytes
        path.write_bytes(b"a\nb\nc\nd\ne\n")
    else:
        path.unlink()
    look = tail.look()
    assert look.began_anew
    assert look.lines == (path.read_bytes().splitlines() if path.exists() else [])
    assert not tail.look().began_anew


def test_long_files_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "_LOOK_BYTES", 64)
    path = tmp_path / "file"
    lines = [str(i).encode() for i in range(500)]
    path.write_bytes(b"\n".join(lines) + b"\n")
    tail = Tail(path)
    assert tail.look().is_more
    assert all_lines(tail)[-1] == b"499"
    assert all_lines(Tail(path)) == lines


def test_a_line_without_end_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "_LOOK_BYTES", 64)
    monkeypatch.setattr(tail_module, "_LONGEST_LINE", 16)
    path = tmp_path / "file"
    path.write_bytes(b"short\n" + b"x" * 1000 + b"\nafter\n" + b"y" * 20 + b"\nlast\n")
    assert all_lines(Tail(path)) == [b"short", b"after", b"last"]


def test_what_is_no_object_is_passed_over() -> None:
    good = [{"step": 1}, {"step": 2}]
    lines = [json.dumps(value).encode() for value in good]
    assert json_objects(lines) == good
    bad = [b"", b"{", b"3", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}, {"b": 2}', b"1" * 5000]
    assert json_objects([*bad, lines[0], *bad, lines[1]]) == good
    assert json_objects([b'{"step": 1}, {"step": 5}', lines[1]]) == [good[1]]
    assert json_objects([]) == []
