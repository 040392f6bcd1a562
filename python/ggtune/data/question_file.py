"""Files of questions to ask a model: a line each, or whatever format the training's data may have."""

from collections.abc import Iterator
from pathlib import Path

from ggtune.data.conversation import Conversation
from ggtune.data.readers.reader import ReadOptions
from ggtune.data.sources import open_source
from ggtune.errors import DataError

_LINES = ("", ".txt", ".md")  # suffixes of files with a question on each line


def questions_in(path: Path, options: ReadOptions) -> Iterator[tuple[int, str, str | None]]:
    """Give row or line, question, and the answer that stands beside it. Raises :class:`DataError`."""
    if path.suffix.lower() in _LINES:
        try:
            yield from question_lines(path.read_bytes(), str(path))
        except OSError as error:
            raise DataError(f"{path}: can't be read: {error.strerror or error}") from error
        return
    source = open_source(path, options)
    for item in source.items:
        if not isinstance(item, Conversation):
            raise DataError(f"{path}: holds texts, no questions: give a .txt file with a question on each line")
        asked = [turn.text for turn in item.turns if turn.role == "user"]
        answers = [turn.text for turn in item.turns if turn.role == "assistant"]
        if asked:
            yield item.row, asked[-1], answers[-1] if answers else None
    source.findings.check(path, options)


def question_lines(content: bytes, name: str) -> Iterator[tuple[int, str, None]]:
    """Give the lines that are not blank. ``name`` is that of their file, for :class:`DataError`."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}: line {line} can't be read as UTF-8 text") from error
    yield from ((i, line.strip(), None) for i, line in enumerate(text.splitlines(), start=1) if line.strip())
