"""Books that a Gutendex server lists: https://gutendex.com describes its API."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from ggtune.errors import GgtuneError
from ggtune.text.web import Web, shown

DEFAULT_SERVER = "https://gutendex.com"

_LARGEST_PAGE_BYTES = 32 << 20
_MOST_PAGES = 10_000


@dataclass(frozen=True)
class Query:
    """What is asked for; empty is anything. ``language`` are codes such as ``en``, or ``en,fr``."""

    topic: str = ""
    language: str = ""
    author: str = ""
    search: str = ""
    copyrighted: bool = False  # also books that are in copyright in the USA

    def parameters(self) -> dict[str, str]:
        """Return the query of the first page."""
        words = " ".join(part for part in (self.author, self.search) if part)
        given = {"topic": self.topic, "languages": self.language, "search": words}
        return {name: value for name, value in given.items() if value}

    def __str__(self) -> str:
        given = {"topic": self.topic, "language": self.language, "author": self.author, "words": self.search}
        return ", ".join(f"{name} {value!r}" for name, value in given.items() if value) or "any book"


@dataclass(frozen=True)
class Book:
    """A book of the catalogue. ``urls`` are addresses of its plain text, the best first."""

    id: int
    title: str
    authors: tuple[str, ...]
    languages: tuple[str, ...]
    urls: tuple[str, ...]
    copyrighted: bool


@dataclass
class Listing:
    """The pages of a query, read one after the other."""

    web: Web
    server: str
    query: Query
    total: int | None = None  # as the server says
    n_repeated: int = 0
    _seen: set[int] = field(default_factory=set)

    def __iter__(self) -> Iterator[Book]:
        """Yield each book once, however often the pages repeat it.

        Raises :class:`GgtuneError` for a server that fails for good or does not answer as Gutendex does.
        """
        url = books_url(self.server).copy_merge_params(self.query.parameters())
        asked: set[str] = set()
        for _ in range(_MOST_PAGES):
            asked.add(str(url))
            page, url = _page(self.web, url)
            if isinstance(page.get("count"), int):
                self.total = page["count"]
            n_new = 0
            for entry in page["results"]:
                book = _book(entry, url)
                if book is None:
                    continue
                if book.id in self._seen:
                    self.n_repeated += 1
                    continue
                self._seen.add(book.id)
                n_new += 1
                if _wanted(book, self.query):
                    yield book
            following = _next(url, page.get("next"))
            if following is None:
                return
            if str(following) in asked or (page["results"] and not n_new):
                self.web.note("The server's pages repeat themselves: that is the end of the list.")
                return
            url = following


def books_url(server: str) -> httpx.URL:
    """Return the address of the list of books. Raises :class:`GgtuneError` for what is no address."""
    try:
        url = httpx.URL(server if "://" in server else f"https://{server}")
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise GgtuneError(f"--server {server}: give an address such as {DEFAULT_SERVER}.")
    path = url.path.rstrip("/")
    return url.copy_with(path=path if path.endswith("/books") else f"{path}/books", query=None, fragment=None)


def _page(web: Web, url: httpx.URL) -> tuple[dict[str, Any], httpx.URL]:
    """Return a page and where it was, redirects followed."""
    server = f"{url.scheme}://{url.netloc.decode()}"
    advice = f"Is {server} a Gutendex server? Open {url} in a browser, or name another by --server."
    answer, found_at = web.get(url, "application/json", _LARGEST_PAGE_BYTES, advice)
    try:
        page = json.loads(answer)
    except (ValueError, RecursionError):
        what = "a web page" if answer.lstrip()[:1] == b"<" else "no JSON" if answer.strip() else "nothing"
        raise GgtuneError(f"{url.host} answered with {what} where a list of books belongs. {advice}") from None
    if not isinstance(page, dict) or not isinstance(page.get("results"), list):
        detail = page.get("detail") if isinstance(page, dict) else None
        said = f" ({shown(str(detail))})" if detail else ""
        raise GgtuneError(f"{url.host} answered with JSON that is no list of books{said}. {advice}")
    return page, found_at


def _next(url: httpx.URL, given: object) -> httpx.URL | None:
    """Return the next page's address on the same server: behind a proxy it may not know its own name."""
    if not isinstance(given, str) or not given:
        return None
    try:
        query = url.join(given).query
    except (httpx.InvalidURL, UnicodeError):
        return None
    return url.copy_with(query=query) if query else None


def _book(entry: object, url: httpx.URL) -> Book | None:
    """None for an entry without a number that can be a file's name."""
    number = entry.get("id") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or type(number) is not int or not 0 < number < 1 << 53:
        return None
    formats = entry.get("formats")
    texts: list[tuple[int, str]] = []
    for kind, address in formats.items() if isinstance(formats, dict) else ():
        if isinstance(address, str) and kind.lower().startswith("text/plain") and not address.endswith(".zip"):
            texts.append((0 if "utf-8" in f"{kind} {address}".lower() else 1, address))
    urls = []
    for _, address in sorted(texts, key=lambda text: text[0]):
        try:
            full = url.join(address)
        except (httpx.InvalidURL, UnicodeError):
            continue
        if full.scheme in ("http", "https") and full.host:
            urls.append(str(full))
    authors = entry.get("authors")
    names = [person.get("name") for person in authors if isinstance(person, dict)] if isinstance(authors, list) else []
    languages = entry.get("languages")
    return Book(
        id=number,
        title=shown(str(entry.get("title") or "")),
        authors=tuple(shown(name) for name in names if isinstance(name, str)),
        languages=tuple(map(str, languages)) if isinstance(languages, list) else (),
        urls=tuple(dict.fromkeys(urls)),
        copyrighted=entry.get("copyright") is True,
    )


def _wanted(book: Book, query: Query) -> bool:
    """Check what the server's search finds more of: an author's name that is in a title."""
    if book.copyrighted and not query.copyrighted:
        return False
    words = _plain(query.author).split()
    return not words or any(all(word in _plain(name) for word in words) for name in book.authors)


def _plain(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(character for character in decomposed if not unicodedata.combining(character)).casefold()
