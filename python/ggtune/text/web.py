"""Polite HTTP for public texts: one request at a time, pauses, tries again, files that go on where they were cut."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from ggtune.errors import GgtuneError
from ggtune.files import WriteError
from ggtune.ollama.registry.errors import TransientError
from ggtune.ollama.registry.headers import byte_count
from ggtune.ollama.registry.retry import TRANSIENT_STATUSES, Retries, RetryPolicy, retry_after_s
from ggtune.text.encoding import looks_like_html
from ggtune.version import version

_CONNECT_TIMEOUT_S = 15.0
_MOST_REDIRECTS = 8
_SLOWEST_BYTES = 1 << 10  # fewer in the time that a server may be silent: it drips, and is as good as dead
_HEAD_BYTES = 1 << 12
_TEXT_TYPES = ("text/plain", "application/octet-stream", "binary/octet-stream", "")


class RefusedError(GgtuneError):
    """An answer that will be the same the next time. ``status`` is HTTP's."""

    def __init__(self, message: str, status: int = 200) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class WebOptions:
    """How to speak to servers."""

    timeout_s: float = 60.0  # how long one may be silent
    pause_s: float = 2.0  # between requests
    retry: RetryPolicy = field(default_factory=RetryPolicy)


class Web:
    """A client; a context manager. ``note`` hears of tries that failed."""

    def __init__(self, options: WebOptions, note: Callable[[str], None]) -> None:
        self.options = options
        self.note = note
        self._last = float("-inf")
        headers = {"User-Agent": f"ggtune/{version()} (ggtune text fetch)", "Accept-Encoding": "identity"}
        timeout = httpx.Timeout(options.timeout_s, connect=min(options.timeout_s, _CONNECT_TIMEOUT_S))
        try:
            self._http = httpx.Client(
                timeout=timeout, headers=headers, follow_redirects=True, max_redirects=_MOST_REDIRECTS
            )
        except OSError as error:
            raise GgtuneError(f"The certificates that SSL_CERT_FILE names can't be read: {error.strerror}.") from None
        except (ValueError, ImportError, httpx.InvalidURL):  # whose text may hold the proxy's password
            raise GgtuneError("The proxy in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY can't be used.") from None

    def __enter__(self) -> Web:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, url: httpx.URL, accept: str, most_bytes: int, advice: str) -> tuple[bytes, httpx.URL]:
        """Return a body and where it was, after tries that failed for now.

        Raises :class:`GgtuneError`, with ``advice`` for a refusal.
        """
        retries = Retries(self.options.retry, self.note)
        while True:
            try:
                with self._stream(url, {"Accept": accept}) as response:
                    _check(response)
                    body = bytearray()
                    for piece in self._pieces(response, raw=False):
                        body += piece
                        if len(body) > most_bytes:
                            raise RefusedError(f"{url.host} answered with more than {most_bytes >> 20} MiB.")
                    return bytes(body), response.url
            except TransientError as error:
                retries.wait(error)
            except RefusedError as error:
                raise GgtuneError(f"{error} {advice}") from error

    def download(self, url: str, part: Path) -> None:
        """Fill ``part`` with a text file, going on with what is there of it.

        It is whole in the end: as long as the server said it would be. Raises :class:`RefusedError` for what is not
        there, no text, or empty, and :class:`GgtuneError` after too many tries; ``part`` then stays for the next time.
        """
        retries = Retries(self.options.retry, self.note)
        while True:
            before = _size(part)
            try:
                self._try(url, part)
                return
            except OSError as error:
                raise WriteError(f"can't write {part}: {error.strerror or error}") from error
            except TransientError as error:
                if _size(part) > before:
                    retries.progressed()
                retries.wait(error)

    def _try(self, url: str, part: Path) -> None:
        """Fetch the rest in one request; the validator beside ``part`` says what file the rest is of."""
        validator = _read_validator(part, url)
        have = _size(part) if validator else 0
        headers = {"Accept": "text/plain, */*;q=0.1"}
        if have and validator:
            headers |= {"Range": f"bytes={have}-", "If-Range": validator}
        with self._stream(httpx.URL(url), headers) as response:
            host = response.url.host
            if response.status_code == 416 or (response.status_code == 206 and not _goes_on(response, have)):
                discard(part)
                raise TransientError(f"{host} can't go on within the file; it is fetched from its start.")
            _check(response)
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind not in _TEXT_TYPES:
                raise RefusedError(f"{host} gave {shown(kind)} where a plain text belongs.")
            if response.status_code != 206:
                discard(part)
                have = 0
                _write_validator(part, url, response)
            # a server that compresses unasked is read through that, and can't be gone on with
            encoded = response.headers.get("content-encoding", "identity").lower() not in ("", "identity")
            whole = _whole(response)
            with part.open("ab") as file:
                for piece in self._pieces(response, raw=not encoded):
                    file.write(piece)
                    have += len(piece)
            # httpx has compared what came with Content-Length; a range may end before the file does
            if whole is not None and not encoded and have != whole:
                raise TransientError(f"{host} ended the file early.")
        if not have:
            raise RefusedError(f"{host} gave an empty file.")
        with part.open("rb") as file:
            if looks_like_html(file.read(_HEAD_BYTES)):
                raise RefusedError(f"{host} gave a web page where a plain text belongs.")

    def _pieces(self, response: httpx.Response, *, raw: bool) -> Iterator[bytes]:
        began, n_bytes = time.monotonic(), 0
        for piece in response.iter_raw() if raw else response.iter_bytes():
            yield piece
            n_bytes += len(piece)
            now = time.monotonic()
            if now - began > self.options.timeout_s:
                if n_bytes < _SLOWEST_BYTES:
                    raise TransientError(f"{response.url.host} hardly sends anything.")
                began, n_bytes = now, 0

    @contextmanager
    def _stream(self, url: httpx.URL, headers: dict[str, str]) -> Iterator[httpx.Response]:
        time.sleep(max(0.0, self._last + self.options.pause_s - time.monotonic()))
        host = url.netloc.decode("ascii", "replace")
        try:
            with self._http.stream("GET", url, headers=headers) as response:
                yield response
        except httpx.TooManyRedirects:
            raise RefusedError(f"{host} redirects in a circle.") from None
        except (httpx.UnsupportedProtocol, httpx.DecodingError, httpx.InvalidURL, httpx.LocalProtocolError) as error:
            raise RefusedError(f"{host} gave an answer that can't be used: {shown(str(error))}.") from None
        except httpx.TimeoutException as error:
            limit_s = self.options.timeout_s
            if isinstance(error, httpx.ConnectTimeout):
                limit_s = min(limit_s, _CONNECT_TIMEOUT_S)
            raise TransientError(f"{host} was silent for {limit_s:g} s.") from None
        except httpx.RequestError as error:
            what = "can't be reached" if isinstance(error, httpx.ConnectError) else "broke off the connection"
            raise TransientError(f"{host} {what}: {shown(str(error)) or type(error).__name__}.") from None
        finally:
            self._last = time.monotonic()


def _check(response: httpx.Response) -> None:
    status, host = response.status_code, response.url.host
    if status in (200, 206):
        return
    if status in TRANSIENT_STATUSES:
        raise TransientError(f"{host} answered {status}.", retry_after_s(response.headers.get("retry-after")))
    reason = {
        401: "it asks for a login",
        403: "it refuses this program or address: wait for a day, or use another server",
        404: "it does not have that",
        410: "it does not have that any more",
    }.get(status, "that is nothing that can be used")
    raise RefusedError(f"{host} answered {status}: {reason}.", status)


def _whole(response: httpx.Response) -> int | None:
    """Return how long the file is, where the answer says it."""
    if response.status_code == 206:
        total = response.headers.get("content-range", "").rpartition("/")[2]
        return int(total) if total.isdecimal() else None
    return byte_count(response.headers, "content-length")


def _goes_on(response: httpx.Response, offset: int) -> bool:
    match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]+|\*)", response.headers.get("content-range", ""))
    return match is not None and int(match[1]) == offset


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def discard(part: Path) -> None:
    """Forget a file that was begun."""
    part.unlink(missing_ok=True)
    _validator_file(part).unlink(missing_ok=True)


def _write_validator(part: Path, url: str, response: httpx.Response) -> None:
    """Remember what RFC 9110 (13.1.5) lets a range be asked for by: a strong ETag, else the date."""
    etag = response.headers.get("etag", "")
    validator = etag if etag.startswith('"') else response.headers.get("last-modified", "")
    if validator and response.headers.get("content-encoding", "identity") in ("", "identity"):
        _validator_file(part).write_text(f"{url}\n{validator}\n", encoding="utf-8")


def _read_validator(part: Path, url: str) -> str | None:
    try:
        lines = _validator_file(part).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return lines[1] if len(lines) == 2 and lines[0] == url and lines[1].isascii() else None


def shown(text: str) -> str:
    """Make a server's text fit to be printed: one line, not too long."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]
