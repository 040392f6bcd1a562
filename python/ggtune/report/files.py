"""The files of a report: which there are, and that nothing else is overwritten."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ggtune.errors import GgtuneError
from ggtune.files import WriteError, check_replaceable, replacing
from ggtune.report.markdown import MARK
from ggtune.report.page import GENERATOR
from ggtune.report.plots import PNG_SOFTWARE

_HEAD_BYTES = 4096
_MARKS = {
    ".html": f'<meta name="generator" content="{GENERATOR}',
    ".htm": f'<meta name="generator" content="{GENERATOR}',
    ".md": MARK,
    ".png": PNG_SOFTWARE,
}


def check_ours(path: Path) -> None:
    """Raise :class:`WriteError` where a file is there that no report has written."""
    check_replaceable(path)
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise WriteError(f"can't write {path}: {error.strerror}") from error
    if head and _MARKS[path.suffix.lower()].encode() not in head:
        raise WriteError(f"{path} is there, and it is no report of ggtune's: give another --out, or --overwrite")


def write_files(contents: Mapping[Path, bytes], *, overwrite: bool = False) -> None:
    """Write files that are all made already. Raises :class:`GgtuneError`, before anything is written where it can."""
    for path in contents:
        if path.suffix.lower() not in _MARKS:
            raise GgtuneError(f"{path}: a report is an .html file")
        if overwrite:
            check_replaceable(path)
        else:
            check_ours(path)
    for path, content in contents.items():
        with replacing(path, needed_bytes=len(content)) as temporary:
            temporary.write_bytes(content)
