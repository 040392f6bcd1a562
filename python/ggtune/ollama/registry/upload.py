"""One blob into a registry, chunk by chunk.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-a-blob-in-chunks
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from ggtune.errors import GgtuneError
from ggtune.ollama.manifest import Layer
from ggtune.ollama.registry.client import Answer, RegistryClient
from ggtune.ollama.registry.errors import (
    DigestRefusedError,
    LoginError,
    RegistryError,
    SessionLostError,
    TransientError,
)
from ggtune.ollama.registry.headers import byte_count, parse_url
from ggtune.ollama.registry.report import Report
from ggtune.ollama.registry.session import SavedSession, Session, saved_session

_PIECE_BYTES = 1 << 18
_SMALLEST_CHUNK_BYTES = 1 << 18
_MOST_MOUNTS = 3
_NO_CHUNKS = (400, 405, 411, 501)  # how a registry refuses what it does not know
_SLOWEST_HASH_BYTES_PER_S = 20e6  # a registry may read and hash all of the blob before it answers


class Upload:
    """Sends one blob. Chunks that the registry has are not sent again, not even by a later process."""

    def __init__(self, client: RegistryClient, repository: str, layer: Layer, path: Path, report: Report) -> None:
        self.mounted = False  # the registry had it under another model
        self._client = client
        self._repository = repository
        self._layer = layer
        self._path = path
        self._report = report
        self._chunk_bytes = client.options.chunk_bytes
        self._sent_bytes = 0
        self._resumed = False  # an earlier process sent a part of it

    def run(self, sources: Sequence[str]) -> int:
        """Return the number of bytes sent. ``sources``: repositories of this registry that may have the blob."""
        with saved_session(self._client.host, self._repository, self._layer.digest) as saved:
            session = self._earlier(saved)
            self._resumed = session is not None
            if session is None:
                session = self._mount(sources[:_MOST_MOUNTS]) or self._start()
            if not self.mounted:
                self._send(session, saved)
            saved.done = True
        return self._sent_bytes

    def _earlier(self, saved: SavedSession) -> Session | None:
        session = saved.load()
        if session is None:
            return None
        try:
            return self._asked(session)
        except SessionLostError:
            return None

    def _start(self) -> Session:
        return self._begun(self._client.request("POST", self._client.url("blobs/uploads/"), ok=(202,)))

    def _mount(self, sources: Sequence[str]) -> Session | None:
        """Ask the registry to take the blob over from another repository; it may begin an upload instead."""
        session = None
        for source in sources:
            url = self._client.url("blobs/uploads/").copy_merge_params({"mount": self._layer.digest, "from": source})
            try:
                answer = self._client.request("POST", url, ok=(201, 202, 400, 401, 403, 404, 405))
            except LoginError:  # no right to read that repository
                continue
            if answer.status == 201:
                self.mounted = True
                return Session("", self._layer.size)
            if answer.status == 202:
                session = self._begun(answer)
        return session

    def _begun(self, answer: Answer) -> Session:
        self._chunk_bytes = max(self._chunk_bytes, byte_count(answer.headers, "oci-chunk-min-length") or 0)
        return Session(str(self._client.target(answer.url, answer.headers)), 0)

    def _send(self, session: Session, saved: SavedSession) -> None:
        retries = self._client.retries()
        restarts = self._client.retries()  # progress does not count: a registry may forget again and again
        while True:
            try:
                while session.offset < self._layer.size:
                    with _signals_held_back(self._report):
                        session = self._chunk(session)
                        saved.save(session)
                    retries.progressed()
                self._finish(session)
                return
            except SessionLostError as error:
                restarts.wait(error)
                session = self._start()
            except DigestRefusedError as error:
                if not self._resumed:
                    raise
                self._resumed = False
                restarts.wait(error)
                session = self._start()
            except TransientError as error:
                retries.wait(error)
                try:
                    session = self._asked(session)
                except SessionLostError as lost:
                    restarts.wait(lost)
                    session = self._start()

    def _chunk(self, session: Session) -> Session:
        end = min(session.offset + self._chunk_bytes, self._layer.size)
        part = _FilePart(self._path, session.offset, end, self._report)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(end - session.offset)}
        whole = end - session.offset == self._layer.size
        if not whole:  # a whole blob goes as Docker sends it
            headers["Content-Range"] = f"{session.offset}-{end - 1}"
        url = httpx.URL(session.location)
        ok = (200, 201, 202, 204, 404, 413, 416)
        try:
            answer = self._client.request("PATCH", url, ok=ok, headers=headers, content=part, retry=False)
        except RegistryError as error:
            if error.status not in _NO_CHUNKS or whole:
                raise
            self._chunk_bytes = self._layer.size
            raise SessionLostError(f"{error} Sending {self._layer} in one piece.") from None
        if answer.status == 413:
            if self._chunk_bytes <= _SMALLEST_CHUNK_BYTES:
                raise RegistryError(
                    f"{answer.url.host} takes not even {_SMALLEST_CHUNK_BYTES >> 10} KiB at a time; a proxy before it "
                    "has to allow larger bodies (nginx: client_max_body_size 0)."
                )
            self._chunk_bytes = max(_SMALLEST_CHUNK_BYTES, self._chunk_bytes // 4)
            return self._chunk(session)
        if answer.status == 416:
            raise TransientError(f"{self._client.host} has another part of {self._layer} than was expected.")
        if answer.status == 404:
            raise SessionLostError(f"{self._client.host} no longer knows the upload of {self._layer}.")
        there = _there(answer.headers, end)
        if there is None:
            there = end
        if not session.offset <= there <= end:
            raise SessionLostError(f"{self._client.host} has {there} bytes of {self._layer} after it was sent {end}.")
        if there == session.offset:
            raise TransientError(f"{self._client.host} took nothing of {self._layer}.")
        self._sent_bytes += there - session.offset
        return Session(str(self._next(answer, url)), there)

    def _asked(self, session: Session) -> Session:
        """Ask the registry how much of the blob it has. Raises :class:`SessionLostError` where it does not know."""
        url = parse_url(session.location)
        if url is None:
            raise SessionLostError(f"The address at which {self._layer} goes on is damaged.")
        answer = self._client.request("GET", url, ok=(200, 202, 204, 400, 403, 404, 405, 410, 416))
        if answer.status >= 400:
            raise SessionLostError(f"{self._client.host} no longer knows the upload of {self._layer}.")
        there = _there(answer.headers, session.offset)
        if there is None or there > self._layer.size:
            raise SessionLostError(f"{self._client.host} does not say how much of {self._layer} it has.")
        return Session(str(self._next(answer, url)), there)

    def _next(self, answer: Answer, url: httpx.URL) -> httpx.URL:
        """Where the upload goes on; ``#`` is what registries are set to say for ``ollama pull``, and says nothing."""
        if answer.headers.get("location", "#") == "#":
            return url
        return self._client.target(answer.url, answer.headers)

    def _finish(self, session: Session) -> None:
        url = self._client.with_digest(httpx.URL(session.location), self._layer.digest)
        patience_s = self._client.options.timeout_s + self._layer.size / _SLOWEST_HASH_BYTES_PER_S
        try:
            answer = self._client.request(
                "PUT",
                url,
                ok=(200, 201, 202, 204, 404),
                headers={"Content-Length": "0"},
                timeout_s=patience_s,
            )
        except SessionLostError:
            answer = None
        if answer is None or answer.status == 404:
            # the answer to an earlier try may have been lost
            head = self._client.request("HEAD", self._client.url(f"blobs/{self._layer.digest}"), ok=(200, 404))
            if head.status == 404:
                raise SessionLostError(f"{self._client.host} lost the upload of {self._layer} at its end.")
            return
        digest = answer.headers.get("docker-content-digest", self._layer.digest)
        if digest.startswith("sha256:") and digest != self._layer.digest:
            raise RegistryError(f"{self._client.host} stored {self._layer} under another digest: {digest!a}.")


class _FilePart:
    """Bytes ``begin`` to ``end`` of a file; every iteration begins anew."""

    def __init__(self, path: Path, begin: int, end: int, report: Report) -> None:
        self._path = path
        self._begin = begin
        self._end = end
        self._report = report

    def __iter__(self) -> Iterator[bytes]:
        position = self._begin
        self._report.at(position)
        with self._path.open("rb") as file:
            file.seek(position)
            while position < self._end:
                piece = file.read(min(_PIECE_BYTES, self._end - position))
                if not piece:
                    raise GgtuneError(f"{self._path}: became shorter while it was sent.")
                yield piece
                position += len(piece)
                self._report.at(position)


def _there(headers: httpx.Headers, expected: int) -> int | None:
    """Bytes that the registry has, by its Range header; None where it does not say. ``0-0`` is one byte, or none."""
    match = re.fullmatch(r"(?:bytes=)?0-([0-9]{1,18})", headers.get("range", ""))
    if match is None:
        return None
    there = int(match[1]) + 1
    return 0 if there == 1 and expected != 1 else there


@contextmanager
def _signals_held_back(report: Report) -> Iterator[None]:
    """Let a chunk be finished first: a registry may forget an upload that is cut within one. The second signal acts."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def hold(number: int, frame: FrameType | None) -> None:
        if received:
            restore()
            signal.raise_signal(number)
        received.append(number)
        report.note("Finishing the part that is being sent; once more ends at once.")

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number is not None and callable(signal.getsignal(number)):
                before[number] = signal.signal(number, hold)
    try:
        yield
    finally:
        restore()
        if received:
            signal.raise_signal(received[0])
