"""A stand-in for a running Ollama: its blob and create endpoints, with the checks that the real server makes.

Written after Ollama's ``server/routes.go`` and ``server/create.go``: digests are computed from what arrived,
``create`` looks for each blob, file names must be relative paths, and errors come as ``{"error": ...}``, in the stream
or with an HTTP status.
"""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_NAME = re.compile(
    r"([A-Za-z0-9_][\w.:-]*/)?([A-Za-z0-9_][\w-]*/)?[A-Za-z0-9_][\w.-]{0,79}(:[A-Za-z0-9_][\w.-]{0,79})?"
)


class OllamaStandIn(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.daemon_threads = True
        self.blobs = {}  # digest: bytes
        self.models = {}  # name: the request that made it
        self.requests = []  # (method, path)
        self.refuses_adapters = False
        self.cuts_uploads = False
        self.stops_after = None  # number of lines after which the answer of create ends
        self.stalls = False  # in the middle of create's answer
        self.ended = threading.Event()
        self.fails_with = None  # an error in create's stream

    @property
    def address(self):
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # clients that go away are what some tests are about


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def _answer(self, status, body=None):
        data = json.dumps(body).encode() if body is not None else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_HEAD(self):
        self.server.requests.append(("HEAD", self.path))
        self._answer(200 if self.path.removeprefix("/api/blobs/") in self.server.blobs else 404)

    def do_POST(self):
        self.server.requests.append(("POST", self.path))
        if self.path == "/api/create":
            self._create(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        elif self.path.startswith("/api/blobs/"):
            self._blob(self.path.removeprefix("/api/blobs/"))
        else:
            self._answer(404, {"error": "not found"})

    def _blob(self, digest):
        size = int(self.headers["Content-Length"])
        if self.server.cuts_uploads:
            self.rfile.read(size // 2)
            self.close_connection = True
            self.connection.close()
            return
        data = self.rfile.read(size)
        found = "sha256:" + hashlib.sha256(data).hexdigest()
        if found != digest:
            self._answer(400, {"error": f"digest mismatch, expected {digest!r}, got {found!r}"})
            return
        self.server.blobs[digest] = data
        self._answer(201)

    def _create(self, request):
        if not _NAME.fullmatch(request["model"]) or request["model"].startswith("refused"):
            self._answer(400, {"error": "invalid model name"})
            return
        if request.get("adapters") and self.server.refuses_adapters:
            self._answer(400, {"error": "LoRA adapters are no longer supported"})
            return
        named = {**request.get("files", {}), **request.get("adapters", {})}
        for path, digest in named.items():
            if path.startswith("/") or set(path) & set("\\:") or ".." in path.split("/"):
                self._answer(400, {"error": f"file path must be relative: {path}"})
                return
            if digest not in self.server.blobs:
                self._answer(400, {"error": f"blob not found for {path} (digest {digest})"})
                return
        if not request.get("files") and not request.get("from"):
            self._answer(400, {"error": "neither 'from' or 'files' was specified"})
            return
        lines = [{"status": "parsing GGUF"}]
        if self.server.fails_with is not None:
            lines.append({"error": self.server.fails_with})
        else:
            lines += [{"status": "creating new layer"}, {"status": "writing manifest"}, {"status": "success"}]
        self._stream(lines, request)

    def _stream(self, lines, request):
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for number, line in enumerate(lines):
            if number == self.server.stops_after:
                return
            if line == {"status": "success"}:
                self.server.models[request["model"]] = request
            self.wfile.write(json.dumps(line).encode() + b"\n")
            self.wfile.flush()
            if self.server.stalls:
                self.server.ended.wait()


@contextmanager
def running():
    server = OllamaStandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
