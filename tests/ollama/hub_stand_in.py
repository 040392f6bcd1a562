"""A stand-in for a Hugging Face hub: the requests that huggingface_hub makes for an upload, and the checks behind them.

Files of more than ``part_bytes`` are asked for in parts, as the hub does above some gigabytes.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LICENSES = ("mit", "apache-2.0", "llama3.2", "other")
SIGNATURE = "X-Signature=0123456789abcdef"


class HubStandIn(ThreadingHTTPServer):
    def __init__(self, token):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.daemon_threads = True
        self.token = token
        self.owners = {"me"}  # to whom the token may write
        self.repositories = {}  # name: {"private": bool, "branches": {name: {path: bytes}}}
        self.objects = {}  # what was uploaded through LFS, by SHA-256
        self.parts = {}
        self.part_bytes = 1 << 62
        self.requests = []  # (method, path)
        self.cuts_uploads = False
        self.stalls = False
        self.ended = threading.Event()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repository, branch="main"):
        return self.repositories[repository]["branches"][branch]

    def add(self, repository, *, private=False):
        self.repositories[repository] = {"private": private, "branches": {"main": {}}}

    def handle_error(self, request, client_address):
        pass  # clients that go away are what some tests are about


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=None, **headers):
        data = json.dumps(body).encode() if body is not None else b""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def route(self):
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path))
        for method, pattern, signed_in, handle in _ROUTES:
            match = re.fullmatch(pattern, path)
            if method == self.command and match:
                if handle != "put_object":
                    self.data = self.body()
                if self.server.stalls:
                    self.server.ended.wait()
                elif signed_in and self.headers["Authorization"] != f"Bearer {self.server.token}":
                    message = "Invalid credentials in Authorization header"
                    self.answer(401, {"error": message}, X_Error_Message=message)
                else:
                    getattr(self, handle)(*map(unquote, match.groups()))
                return
        self.body()
        self.answer(404, {"error": "Not Found"})

    def do_GET(self):
        self.route()

    def do_POST(self):
        self.route()

    def do_PUT(self):
        self.route()

    def validate_yaml(self):
        content = json.loads(self.data)["content"]
        _, header, _ = content.split("---\n", 2)
        fields = yaml.safe_load(header)
        if fields["license"] not in LICENSES:
            self.answer(400, {"errors": [{"message": f'"license" must be one of {LICENSES}'}], "warnings": []})
        else:
            self.answer(200, {"errors": [], "warnings": []})

    def create(self):
        request = json.loads(self.data)
        name = f"{request['organization']}/{request['name']}"
        if request["organization"] not in self.server.owners:
            message = f'You don\'t have the rights to create a model under the namespace "{request["organization"]}"'
            self.answer(403, {"error": message}, X_Error_Message=message)
        elif name in self.server.repositories:
            self.answer(409, {"error": "You already created this model repo", "url": f"{self.server.address}/{name}"})
        else:
            # 1.x asks with "private", 2.x with "visibility"
            self.server.add(name, private=request.get("private") or request.get("visibility") == "private")
            self.answer(200, {"url": f"{self.server.address}/{name}"})

    def info(self, name):
        found = self.server.repositories.get(name)
        if found is None:
            self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        else:
            self.answer(200, {"id": name, "private": found["private"], "sha": "0" * 40, "tags": [], "siblings": []})

    def branch(self, name, branch):
        self.server.repositories[name]["branches"].setdefault(branch, {})
        self.answer(200, {})

    def preupload(self, name, branch):
        there = self.server.repositories[name]["branches"].get(branch)
        if there is None:
            self.answer(404, {"error": f"Invalid rev id: {branch}"}, X_Error_Code="RevisionNotFound")
            return
        files = []
        for file in json.loads(self.data)["files"]:
            mode = "lfs" if file["path"].endswith(".gguf") else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None})
        self.answer(200, {"files": files})

    def lfs_batch(self, name):
        request = json.loads(self.data)
        assert request["operation"] == "upload"
        assert "basic" in request["transfers"]
        self.answer(200, {"transfer": "basic", "objects": [self.lfs_object(asked) for asked in request["objects"]]})

    def lfs_object(self, asked):
        oid, size, address = asked["oid"], asked["size"], self.server.address
        if oid in self.server.objects:
            return {"oid": oid, "size": size}
        upload = {"href": f"{address}/objects/{oid}?{SIGNATURE}"}
        if size > self.server.part_bytes:
            n_parts = -(-size // self.server.part_bytes)
            parts = {str(i): f"{address}/objects/{oid}?part={i}&{SIGNATURE}" for i in range(1, n_parts + 1)}
            upload = {
                "href": f"{address}/complete/{oid}",
                "header": {"chunk_size": str(self.server.part_bytes), **parts},
            }
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": {"href": f"{address}/verify"}}}

    def put_object(self, oid):
        query = parse_qs(urlsplit(self.path).query)
        if self.server.cuts_uploads:
            self.rfile.read(1000)
            self.close_connection = True
            self.connection.close()
            return
        data = self.body()
        if "part" in query:
            self.server.parts.setdefault(oid, {})[int(query["part"][0])] = data
            self.answer(200, ETag=f'"{query["part"][0]}"')
            return
        self.store(oid, data)

    def complete(self, oid):
        numbers = [part["partNumber"] for part in json.loads(self.data)["parts"]]
        parts = self.server.parts.pop(oid)
        self.store(oid, b"".join(parts[number] for number in numbers))

    def store(self, oid, data):
        if hashlib.sha256(data).hexdigest() != oid:
            self.answer(400, {"error": "wrong digest"})
            return
        self.server.objects[oid] = data
        self.answer(200, {})

    def verify(self):
        request = json.loads(self.data)
        found = self.server.objects.get(request["oid"])
        self.answer(200 if found is not None and len(found) == request["size"] else 404, {})

    def commit(self, name, branch):
        lines = [json.loads(line) for line in self.data.splitlines()]
        assert lines[0]["key"] == "header"
        assert lines[0]["value"]["summary"].startswith("Upload with ggtune ")
        files = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile":
                data = self.server.objects[value["oid"]]
                assert len(data) == value["size"]
            else:
                assert line["key"] == "file"
                data = base64.b64decode(value["content"], validate=True)
            files[value["path"]] = data
        self.server.files(name, branch).update(files)
        self.answer(200, {"commitUrl": f"{self.server.address}/{name}/commit/abc", "commitOid": "abc", "success": True})


_NAME = r"([^/]+/[^/]+)"
_ROUTES = [
    ("POST", "/api/validate-yaml", False, "validate_yaml"),
    ("POST", "/api/repos/create", True, "create"),
    ("GET", f"/api/models/{_NAME}", True, "info"),
    ("POST", f"/api/models/{_NAME}/branch/([^/]+)", True, "branch"),
    ("POST", f"/api/models/{_NAME}/preupload/([^/]+)", True, "preupload"),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", True, "lfs_batch"),
    ("PUT", "/objects/([0-9a-f]+)", False, "put_object"),
    ("POST", "/complete/([0-9a-f]+)", False, "complete"),
    ("POST", "/verify", True, "verify"),
    ("POST", f"/api/models/{_NAME}/commit/([^/]+)", True, "commit"),
]


@contextmanager
def running(token):
    server = HubStandIn(token)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
