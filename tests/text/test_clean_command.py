import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from book_samples import PARAGRAPHS, body, clean_body, modern
from click.testing import Result

from ggtune.cli import text as text_commands
from ggtune.text.clean import KINDS

Ggtune = Callable[..., Result]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "pump.txt"
    path.write_bytes(modern(body()).replace("\n", "\r\n").encode())
    return path


def test_one_file_to_a_file(ggtune: Ggtune, book: Path, tmp_path: Path) -> None:
    result = ggtune("text", "clean", book, "-o", tmp_path / "new" / "clean.txt")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "new" / "clean.txt").read_bytes() == clean_body().encode()
    assert "gutenberg: " in result.output
    assert " lines, " in result.output
    assert "line breaks inside of paragraphs undone" in result.output


def test_folders_keep_their_names(ggtune: Ggtune, tmp_path: Path) -> None:
    for name in ("a.txt", "more/b.TXT", "notes.md", ".hidden/c.txt", "fetch.json"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body())
    result = ggtune("text", "clean", tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert found == ["a.txt", "more/b.TXT", "notes.md"]
    assert (tmp_path / "out" / "more" / "b.TXT").read_text() == clean_body()


def test_a_single_file_into_a_folder_that_is_there(ggtune: Ggtune, book: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert ggtune("text", "clean", book, "-o", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "pump.txt").read_text() == clean_body()


def test_what_was_removed_can_be_read(ggtune: Ggtune, book: Path, tmp_path: Path) -> None:
    result = ggtune("text", "clean", book, "-o", tmp_path / "out.txt", "--removed", tmp_path / "removed.jsonl")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "removed.jsonl").read_text().splitlines()]
    assert [(row["source"], row["kind"], row["line"]) for row in rows] == [
        ("pump.txt", "gutenberg", 1),
        (
            "pump.txt",
            "gutenberg",
            modern(body()).split("\n").index("*** END OF THE PROJECT GUTENBERG EBOOK THE VILLAGE PUMP ***") + 1,
        ),
    ]


def test_bad_files_are_named_together_and_the_others_are_cleaned(ggtune: Ggtune, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text(body())
    (folder / "b.txt").write_bytes(b"%PDF-1.4")
    (folder / "c.txt").write_bytes(b"")
    (folder / "d.txt").write_text("[Illustration]\n")
    result = ggtune("text", "clean", folder, "-o", tmp_path / "out")
    assert result.exit_code == 1
    for message in ("b.txt: is a PDF", "c.txt: the file is empty", "d.txt: nothing is left", "3 of 4 files"):
        assert message in result.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.txt"]


def test_no_source_is_overwritten(ggtune: Ggtune, book: Path, tmp_path: Path) -> None:
    before = book.read_bytes()
    for out in (book, tmp_path, tmp_path / "below"):
        inputs = [book] if out == book else [tmp_path]
        result = ggtune("text", "clean", *inputs, "-o", out)
        assert result.exit_code == 1, out
    assert book.read_bytes() == before
    assert not (tmp_path / "below").exists()


def test_two_files_of_one_name_are_refused(ggtune: Ggtune, tmp_path: Path) -> None:
    for name in ("a/x.txt", "b/x.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("Text.\n")
    result = ggtune("text", "clean", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "would both become" in result.output


def test_missing_inputs_are_named_together(ggtune: Ggtune, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = ggtune("text", "clean", tmp_path / "no.txt", tmp_path / "empty", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "no.txt: there is no such file" in result.output
    assert "empty: this folder has no text file" in result.output


def test_a_missing_package_is_named(
    ggtune: Ggtune, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, arguments in {
        "ftfy": ("clean", book, "-o", tmp_path / "out.txt"),
        "semantic_text_splitter": ("chunk", book, "-o", tmp_path / "out.jsonl"),
        "pyarrow": ("chunk", book, "-o", tmp_path / "out.parquet"),
    }.items():
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            result = ggtune("text", *arguments)
        assert result.exit_code == 1
        assert 'pip install "ggtune[' in result.output
    assert not list(tmp_path.glob("out*"))


def test_the_choices_of_keep_are_all_kinds() -> None:
    assert tuple(KINDS) == text_commands._KINDS


def test_keep(ggtune: Ggtune, book: Path, tmp_path: Path) -> None:
    result = ggtune("text", "clean", book, "-o", tmp_path / "out.txt", "--keep", "gutenberg", "--keep", "wraps")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "out.txt").read_text()
    assert "START OF THE PROJECT" in text
    assert PARAGRAPHS[0] not in text
