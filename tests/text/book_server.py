"""A Gutendex-compatible server on the loopback device that fails, stalls, repeats and cuts where a test wants it."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Request:
    path: str
    query: dict[str, str]
    headers: dict[str, str]


@dataclass
class Fault:
    """Called with the handler in place of the server, for ``times`` requests whose path starts with ``path``."""

    path: str
    act: "Callable[[Handler], None]"
    times: int


@dataclass
class BookServer:
    """``books`` are entries of the API; their texts lie at ``/text/ID.txt``."""

    page_size: int = 3
    books: list[dict[str, Any]] = field(default_factory=list)
    texts: dict[int, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    pages: dict[str, object] = field(default_factory=dict)  # by number, in place of what the books give
    etag: bool = True
    stopped: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"server_state": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def add(self, number: int, text: bytes | None = None, **changes: Any) -> None:
        """Add a book; ``text`` None gives it one of its own."""
        self.texts[number] = text if text is not None else f"The text of book {number}.\n".encode() * 500
        self.books.append(
            {
                "id": number,
                "title": f"Book {number}",
                "authors": [{"name": f"Writer, A. {number}", "birth_year": 1850, "death_year": 1920}],
                "languages": ["en"],
                "copyright": False,
                "formats": {
                    "text/html": f"{self.url}/html/{number}.html",
                    "text/plain; charset=us-ascii": f"{self.url}/text/{number}.txt",
                },
                **changes,
            }
        )

    def fail(self, path: str, act: "Callable[[Handler], None]", times: int = 1) -> None:
        self.faults.append(Fault(path, act, times))

    def fetched(self) -> list[str]:
        """Return the texts that were asked for."""
        return [request.path for request in self.requests if request.path.startswith("/text/")]

    def page(self, query: dict[str, str]) -> object:
        number = int(query.get("page", "1"))
        if str(number) in self.pages:
            return self.pages[str(number)]
        start = (number - 1) * self.page_size
        more = start + self.page_size < len(self.books)
        rest = "".join(f"&{key}={value}" for key, value in query.items() if key != "page")
        return {
            "count": len(self.books),
            "next": f"{self.url}/books/?page={number + 1}{rest}" if more else None,
            "previous": None,
            "results": self.books[start : start + self.page_size],
        }


class Handler(BaseHTTPRequestHandler):
    server_state: BookServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        state = self.server_state
        state.requests.append(Request(parts.path, query, headers))
        for fault in state.faults:
            if fault.times and parts.path.startswith(fault.path):
                fault.times -= 1
                fault.act(self)
                return
        if parts.path == "/books":
            self.answer(301, b"", location=f"/books/?{parts.query}")
        elif parts.path == "/books/":
            self.answer(200, json.dumps(state.page(query)).encode(), content_type="application/json")
        elif parts.path.startswith("/text/"):
            self.text(state.texts.get(self.number()))
        else:
            self.answer(404, b"not here")

    def number(self) -> int:
        return int(urlsplit(self.path).path.rsplit("/", 1)[1].partition(".")[0])

    def text(self, data: bytes | None, send: int | None = None) -> None:
        """Send a text, or the part that is asked for, of which only the first ``send`` bytes arrive."""
        if data is None:
            self.answer(404, b"not here")
            return
        etag = f'"{len(data)}-{data[:8].hex()}"'
        asked = self.headers.get("Range")
        start, status, headers = 0, 200, {"ETag": etag} if self.server_state.etag else {}
        if asked and self.headers.get("If-Range") == etag:
            start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send_response(status)
        for name, value in {"Content-Type": "text/plain; charset=utf-8", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        part = data[start:]
        self.wfile.write(part if send is None else part[:send])
        if send is not None:
            self.wfile.flush()
            self.close_connection = True

    def answer(self, status: int, body: bytes, *, content_type: str = "text/html", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def stall(self) -> None:
        """Say nothing until the test ends."""
        self.server_state.stopped.wait(20)
        self.close_connection = True
