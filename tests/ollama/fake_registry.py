"""A small Docker registry on the loopback device, with faults where a test wants them.

It keeps what arrived of a chunk that was cut, and says so when it is asked.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Fault:
    """Called with the handler instead of the registry, for the requests after the first ``skip`` ones."""

    method: str
    pattern: str
    act: "Callable[[Handler], None]"
    times: int
    skip: int


@dataclass
class State:
    blobs: dict[str, bytes] = field(default_factory=dict)  # by "repository@digest"
    manifests: dict[str, bytes] = field(default_factory=dict)  # by "repository:tag"
    uploads: dict[str, bytearray] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    users: dict[str, str] = field(default_factory=dict)  # passwords; none: no login
    bearer: bool = False
    identity_token: str = ""
    tokens: dict[str, str] = field(default_factory=dict)  # token: scope
    token_path: str = "/token"
    realm: str = ""
    smallest_chunk: int = 0


class FakeRegistry(State):
    def __init__(self) -> None:
        super().__init__()
        self.stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"registry": self}))
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fault(
        self, method: str, pattern: str, act: "Callable[[Handler], None]", *, times: int = 1, skip: int = 0
    ) -> None:
        self.faults.append(Fault(method, pattern, act, times, skip))

    def add_blob(self, repository: str, content: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blobs[f"{repository}@{digest}"] = content
        return digest

    def seen(self, method: str, pattern: str) -> list[Request]:
        return [r for r in self.requests if r.method == method and re.search(pattern, r.path)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    registry: FakeRegistry

    # -- faults ------------------------------------------------------------------------------------------------------

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client is gone
            self.close_connection = True

    def answer(self, status: int, headers: dict[str, Any] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | (headers or {})).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, code: str, message: str = "", headers: dict[str, Any] | None = None) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self.answer(status, headers, body)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def stall(self) -> None:
        self.registry.stopped.wait(5)
        self.close_connection = True

    def read_body(self, limit: int | None = None) -> bytes:
        length = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(length if limit is None else min(limit, length))

    # -- the registry ------------------------------------------------------------------------------------------------

    def do(self) -> None:
        registry = self.registry
        self.request_seen = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
        registry.requests.append(self.request_seen)
        for fault in registry.faults:
            if fault.method == self.command and re.search(fault.pattern, self.path):
                if fault.skip > 0:
                    fault.skip -= 1
                elif fault.times > 0:
                    fault.times -= 1
                    fault.act(self)
                    return
        self.serve()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do  # noqa: N815 - called by these names

    def serve(self) -> None:
        """Answer as a registry should."""
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == self.registry.token_path:
            self.give_token()
            return
        match = re.fullmatch(r"/v2/(.+)/(blobs/uploads|blobs|manifests)/(.*)", url.path)
        assert match, self.path
        self.repository, kind, rest = match.groups()
        if not self.allowed():
            self.read_body()
            return
        if kind == "blobs":
            self.serve_blob(rest)
        elif kind == "manifests":
            self.serve_manifest(rest)
        elif rest == "":
            self.begin_upload()
        else:
            self.go_on_with_upload(rest)

    def serve_blob(self, digest: str) -> None:
        content = self.registry.blobs.get(f"{self.repository}@{digest}")
        if content is None:
            self.error(404, "BLOB_UNKNOWN", "blob unknown")
            return
        self.serve_bytes(content)

    def serve_bytes(self, content: bytes) -> None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(match[1]) if match else 0
        if begin >= len(content) > 0:
            self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
            return
        headers = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if match else {}
        if self.command == "HEAD":
            headers["Content-Length"] = str(len(content))
        self.answer(206 if match else 200, headers, content[begin:] if self.command == "GET" else b"")

    def serve_manifest(self, tag: str) -> None:
        key = f"{self.repository}:{tag}"
        if self.command == "PUT":
            body = self.request_seen.body = self.read_body()
            assert self.headers["Content-Type"] == MANIFEST_TYPE
            manifest = json.loads(body)
            for layer in [manifest["config"], *manifest["layers"]]:
                if f"{self.repository}@{layer['digest']}" not in self.registry.blobs:
                    self.error(400, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry")
                    return
            self.registry.manifests[key] = body
            self.answer(201, {"Docker-Content-Digest": f"sha256:{hashlib.sha256(body).hexdigest()}"})
            return
        content = self.registry.manifests.get(key)
        if content is None:
            self.error(404, "MANIFEST_UNKNOWN", "manifest unknown")
            return
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.answer(200, {"Content-Type": MANIFEST_TYPE, "Docker-Content-Digest": digest}, content)

    def begin_upload(self) -> None:
        registry = self.registry
        source = registry.blobs.get(f"{self.query.get('from')}@{self.query.get('mount')}")
        if source is not None:
            registry.add_blob(self.repository, source)
            self.answer(201, {"Location": f"/v2/{self.repository}/blobs/{self.query['mount']}"})
            return
        name = f"u{len(registry.requests)}"
        registry.uploads[name] = bytearray()
        headers = {"OCI-Chunk-Min-Length": registry.smallest_chunk} if registry.smallest_chunk else {}
        self.answer(202, {"Location": self.location(name), "Range": "0-0"} | headers)

    def location(self, name: str) -> str:
        # a signature that has to come back as it is
        return f"/v2/{self.repository}/blobs/uploads/{name}?_state=aGk%3D%2F+x"

    def go_on_with_upload(self, name: str) -> None:
        registry = self.registry
        assert self.query["_state"] == "aGk=/ x", self.path
        upload = registry.uploads.get(name)
        if upload is None:
            self.read_body()
            self.error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
            return
        if self.command == "PATCH":
            length = int(self.headers["Content-Length"])
            match = re.fullmatch(r"(\d+)-(\d+)", self.headers.get("Content-Range", f"0-{length - 1}"))
            assert match
            assert int(match[2]) - int(match[1]) + 1 == length
            if int(match[1]) != len(upload):
                self.read_body()
                self.answer(416, {"Range": f"0-{max(0, len(upload) - 1)}"})
                return
            while length:
                piece = self.rfile.read1(min(length, 65536))
                if not piece:
                    self.close_connection = True
                    return
                upload += piece
                length -= len(piece)
        if self.command == "PUT":
            content = bytes(upload) + self.read_body()
            del registry.uploads[name]
            if f"sha256:{hashlib.sha256(content).hexdigest()}" != self.query["digest"]:
                self.error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
                return
            digest = registry.add_blob(self.repository, content)
            self.answer(201, {"Docker-Content-Digest": digest, "Location": f"/v2/{self.repository}/blobs/{digest}"})
            return
        status = 204 if self.command == "GET" else 202
        self.answer(status, {"Location": self.location(name), "Range": f"0-{max(0, len(upload) - 1)}"})

    # -- logins ------------------------------------------------------------------------------------------------------

    def user(self) -> str | None:
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        if kind != "Basic":
            return None
        name, _, password = base64.b64decode(value).decode().partition(":")
        return name if self.registry.users.get(name) == password else None

    def allowed(self) -> bool:
        registry = self.registry
        if not registry.users:
            return True
        if not registry.bearer:
            if self.user() is None:
                self.error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": 'Basic realm="x, y"'})
                return False
            return True
        actions = "pull" if self.command in ("GET", "HEAD") and "/uploads/" not in self.path else "pull,push"
        scope = f"repository:{self.repository}:{actions}"
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if registry.tokens.get(token) in (scope, scope.replace(":pull", ":pull,push")):
            return True
        realm = registry.realm or f"{registry.url}{registry.token_path}"
        challenge = f'Bearer realm="{realm}",service="fake \\"registry\\"",scope="{scope}"'
        self.error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})
        return False

    def give_token(self) -> None:
        registry = self.registry
        asked = self.query
        if self.command == "POST":
            asked = {name: values[0] for name, values in parse_qs(self.read_body().decode()).items()}
            right = asked.get("grant_type") == "refresh_token" and asked.get("refresh_token") == registry.identity_token
        else:
            right = self.user() is not None
        if not right or asked.get("service") != 'fake "registry"':
            self.error(401, "UNAUTHORIZED")
            return
        token = f"secret-token-{len(registry.tokens)}"
        registry.tokens[token] = asked["scope"]
        self.answer(200, {"Content-Type": "application/json"}, json.dumps({"token": token}).encode())

    def log_message(self, *arguments: object) -> None:
        pass


def status(code: int, **headers: str) -> Callable[[Handler], None]:
    """Make a fault that answers with a status."""

    def act(handler: Handler) -> None:
        handler.read_body()
        handler.answer(code, {name.replace("_", "-"): value for name, value in headers.items()})

    return act
