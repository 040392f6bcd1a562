"""The board as a web application, and the server that answers for it."""

import errno
import importlib.resources
import secrets
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ggtune.board.collection import Collection, Entry
from ggtune.board.figures import Figures
from ggtune.board.guard import Guard, is_loopback, may_stop, names_of
from ggtune.board.live import LiveRun, as_json
from ggtune.board.views import parts_of
from ggtune.errors import GgtuneError
from ggtune.run.stopping import ask_to_stop

_STATIC = {
    "board.css": "text/css",
    "page.js": "text/javascript",
    "list.js": "text/javascript",
    "run.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_UNDER_WAY_S = 2  # for answers that are under way when the board ends
_END_S = 10.0  # for the server after that


class Pages:
    """The answers, from a collection of runs. ``token`` None: nothing can be stopped."""

    def __init__(self, collection: Collection, token: str | None) -> None:
        self._collection = collection
        self._token = token
        self._figures = Figures()
        self._born = secrets.token_hex(8)  # numbers of changes mean nothing to another board
        static = importlib.resources.files("ggtune.board") / "static"
        self._files = {name: (static / name).read_bytes() for name in (*_STATIC, "list.html", "run.html")}

    def routes(self) -> list[Route]:
        """Return what is answered."""
        return [
            Route("/", self._page("list.html")),
            Route("/run/{id}", self._page("run.html")),
            Route("/static/{name}", self.static),
            Route("/api/runs", self.runs),
            Route("/api/run/{id}", self.run),
            Route("/api/run/{id}/stop", self.stop, methods=["POST"]),
            Route("/figure/{id}/{key}.svg", self.figure),
        ]

    def _page(self, name: str):  # type: ignore[no-untyped-def]
        def page(request: Request) -> Response:
            self._collection.asked()
            return Response(self._files[name], media_type="text/html")

        return page

    def static(self, request: Request) -> Response:
        """Return a style sheet or a script."""
        name = request.path_params["name"]
        if name not in _STATIC:
            return Response("Not Found", 404, media_type="text/plain")
        return Response(self._files[name], media_type=_STATIC[name])

    def runs(self, request: Request) -> Response:
        """Return the lines of the list that have changed since the number ``since`` of this board."""
        self._collection.asked()
        since = _number(request.query_params.get("since"))
        changes = self._collection.changes(since if request.query_params.get("born") == self._born else 0)
        return _json({**changes, "born": self._born})

    def run(self, request: Request) -> Response:
        """Return the parts of a run's page that have other versions than those in the question."""
        self._collection.asked()
        entry = self._entry(request)
        if entry is None:
            return _json({"error": "This run is not on the board any more."}, 404)
        birth = f"{self._born}-{entry.stamp}"
        known = {}
        if request.query_params.get("born") == birth:
            known = {part: _number(request.query_params.get(part)) for part in LiveRun.PARTS}
        with entry.lock:
            entry.run.look_at_results()
            parts = parts_of(entry.run, known)
        if "figures" in parts["versions"] and parts["versions"]["figures"] != known.get("figures"):
            parts["figures"] = [[plot.key, plot.title] for plot in self._figures.plots(entry)]
        return _json({**parts, "row": entry.row, "born": birth, "can_stop": self._token is not None})

    def figure(self, request: Request) -> Response:
        """Return a curve."""
        entry = self._entry(request)
        key = request.path_params["key"]
        svg = self._figures.svg(entry, key, _number(request.query_params.get("width"))) if entry is not None else None
        if svg is None:
            return Response("Not Found", 404, media_type="text/plain")
        # its style stands in it; as an image it runs no scripts
        policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
        return Response(svg, media_type="image/svg+xml", headers=policy)

    def stop(self, request: Request) -> Response:
        """Tell a run to end, as `ggtune stop` does."""
        if refusal := may_stop(request, self._token):
            return _json({"error": refusal}, 403)
        entry = self._entry(request)
        if entry is None:
            return _json({"error": "This run is not on the board any more."}, 404)
        try:
            pid = ask_to_stop(entry.run.folder)
        except GgtuneError as error:
            return _json({"error": str(error)}, 409)
        return _json({"told": f"Process {pid} has been told to stop: it saves its last whole step."}, 202)

    def _entry(self, request: Request) -> Entry | None:
        return self._collection.entry(request.path_params["id"])


def _json(value: object, status: int = 200) -> Response:
    return Response(as_json(value), status, media_type="application/json")


def _number(text: str | None) -> int:
    """Read a number of a question; what is none counts as 0."""
    return int(text) if text is not None and text.isdecimal() and len(text) < 16 else 0


@dataclass
class Board:
    """A board that listens; hold it by a ``with``. ``url`` is where it is, ``stop_url`` that with the token, if any."""

    folders: Sequence[Path]
    host: str
    port: int
    token: str | None = None

    def __enter__(self) -> "Board":
        self._socket = _listen(self.host, self.port)
        self.port = self._socket.getsockname()[1]
        self._collection = Collection(self.folders)
        app = Starlette(routes=Pages(self._collection, self.token).routes())
        config = uvicorn.Config(
            Guard(app, names_of(self.host)),
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=_UNDER_WAY_S,
        )
        self._server = uvicorn.Server(config)
        # beside the main thread, whose signals are then ours
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="server", daemon=True)
        self._collection.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=_END_S)
        self._collection.end()
        self._socket.close()

    @property
    def url(self) -> str:
        """The address for a browser on this machine."""
        host = self.host if self.host not in ("0.0.0.0", "::", "") else "127.0.0.1"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    @property
    def stop_url(self) -> str:
        """The address with the token, in a part that browsers send to nobody."""
        return f"{self.url}#token={self.token}" if self.token is not None else self.url

    @property
    def is_open_to_others(self) -> bool:
        """Other machines reach it."""
        return not is_loopback(self.host)

    def wait(self, seconds: float) -> bool:
        """Wait, at most so long, for its end; True where it has ended by itself."""
        self._thread.join(timeout=seconds)
        return not self._thread.is_alive()


def _listen(host: str, port: int) -> socket.socket:
    """Take the port. Raises :class:`GgtuneError` where that can't be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise GgtuneError(f"--host {host}: {reason}. Give a name or an address of this machine.") from error
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        advice = {
            errno.EADDRINUSE: "something listens there already. Give another by --port, or --port 0 for any free one.",
            errno.EACCES: "this user may not take it. Give one above 1023 by --port.",
            errno.EADDRNOTAVAIL: "this machine has no such address. Give one that it has by --host.",
        }.get(error.errno or 0, f"{error.strerror or error}.")
        raise GgtuneError(f"can't take port {port} of {host}: {advice}") from error
    return listening
