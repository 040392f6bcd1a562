"""Books from a Gutendex server into a folder, each once, gone on with after any interruption."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ggtune.errors import GgtuneError
from ggtune.files import check_writable, replace_text, replacing
from ggtune.ollama.registry.errors import RegistryError
from ggtune.run.lock import try_flock
from ggtune.text.catalog import Book, Listing, Query
from ggtune.text.web import RefusedError, Web, WebOptions, discard, shown

STATE_FILE = "fetch.json"
"""In the folder: what each file is, and where it is from."""

_PARTS = ".fetch"  # folder of files that were begun
_MOST_FAILURES = 3  # books in a row that can't be had: it is the server, not the book
_TITLE_CHARACTERS = 60


@dataclass
class FetchResult:
    """What a call did. ``books`` are the files that the query has in the folder now."""

    books: list[Path] = field(default_factory=list)
    n_fetched: int = 0
    n_kept: int = 0
    n_bytes: int = 0  # fetched
    skipped: list[str] = field(default_factory=list)  # each a book and why
    problem: str | None = None  # why there are fewer than wanted


def fetch_books(
    folder: Path,
    server: str,
    query: Query,
    count: int,
    *,
    options: WebOptions | None = None,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[FetchResult, Book, Path], None] = lambda result, book, path: None,
) -> FetchResult:
    """Let a folder have ``count`` books of a query; those that it has are not fetched again.

    ``note`` hears of failures and waits, ``progress`` of each book that is there. What can't be had is skipped, and the
    next one taken. Raises :class:`GgtuneError` for a server that gives no list, a folder that can't be written or that
    another process is filling.
    """
    check_writable(folder)
    result = FetchResult()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder), Web(options or WebOptions(), note) as web:
        state = _State(folder)
        listing = Listing(web, server, query)
        n_failed = 0
        for book in listing:
            path = state.file_of(book.id)
            if path is not None:
                result.n_kept += 1
            elif not book.urls:
                result.skipped.append(f"{_called(book)}: there is no plain text of it.")
                continue
            else:
                try:
                    path = _fetch(web, folder, state, book)
                except (RefusedError, RegistryError) as error:
                    n_failed += 1
                    result.skipped.append(f"{_called(book)}: {error}")
                    note(f"Skipped {_called(book)}: {error}")
                    if n_failed == _MOST_FAILURES:
                        result.problem = (
                            f"{n_failed} books in a row could not be had. The same command goes on from here."
                        )
                        return result
                    continue
                n_failed = 0
                result.n_fetched += 1
                result.n_bytes += path.stat().st_size
            result.books.append(path)
            progress(result, book, path)
            if len(result.books) == count:
                return result
        if not result.books and not result.skipped:
            result.problem = f"The server has nothing for {query}. Try another topic or language."
        else:
            total = f" ({listing.total} in its list)" if listing.total is not None else ""
            result.problem = f"The server has no more for {query}{total}."
    return result


def _fetch(web: Web, folder: Path, state: _State, book: Book) -> Path:
    part = folder / _PARTS / f"{book.id}.part"
    part.parent.mkdir(exist_ok=True)
    refusal: RefusedError | None = None
    for url in book.urls:
        try:
            web.download(url, part)
        except RefusedError as error:
            discard(part)
            refusal = error
            continue
        path = folder / _file_name(book)
        data = part.read_bytes()
        with replacing(path) as temporary:
            part.replace(temporary)
        discard(part)
        state.add(book, path, url, data)
        return path
    assert refusal is not None
    raise refusal


class _State:
    """The file that says which books the folder has."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / STATE_FILE
        self._books: dict[str, dict[str, Any]] = {}
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            raise GgtuneError(f"{self._path}: can't be read: {error}.") from error
        try:
            books = json.loads(text)["books"]
            self._books = {str(int(key)): dict(value) for key, value in books.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise GgtuneError(
                f"{self._path}: is no list of fetched books. Remove it, and what is there is fetched anew."
            ) from error

    def file_of(self, number: int) -> Path | None:
        """Return the file of a book where it is there, and as long as it was."""
        entry = self._books.get(str(number), {})
        name, n_bytes = entry.get("file"), entry.get("bytes")
        if not isinstance(name, str) or Path(name).name != name:
            return None
        path = self._folder / name
        return path if path.is_file() and path.stat().st_size == n_bytes else None

    def add(self, book: Book, path: Path, url: str, data: bytes) -> None:
        """Remember a file. Raises :class:`ggtune.files.WriteError`."""
        entry = {key: value for key, value in asdict(book).items() if key not in ("id", "urls")}
        digest = hashlib.sha256(data).hexdigest()
        self._books[str(book.id)] = {"file": path.name, "bytes": len(data), "sha256": digest, "url": url, **entry}
        replace_text(self._path, json.dumps({"books": self._books}, ensure_ascii=False, indent=1) + "\n")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / _PARTS / "lock"
    path.parent.mkdir(exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if try_flock(handle) is False:
            raise GgtuneError(f"Another process is fetching into {folder}. Wait for it, or name another folder.")
        yield
    finally:
        os.close(handle)


def _file_name(book: Book) -> str:
    plain = unicodedata.normalize("NFKD", book.title).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain)[:_TITLE_CHARACTERS].strip("-")
    return f"{book.id}-{words}.txt" if words else f"{book.id}.txt"


def _called(book: Book) -> str:
    return f"{book.id} ({shown(book.title)[:_TITLE_CHARACTERS]})" if book.title else str(book.id)
