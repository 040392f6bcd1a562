import base64
import shutil
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from ggtune.errors import GgtuneError
from ggtune.ollama import keypair
from ggtune.ollama.keypair import KeyPairAuth, public_key, sign_token_request

pytest.importorskip("cryptography", reason="needs cryptography (the extra hub)")

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from ssh_keys import verify, write_key


@pytest.fixture
def key_path(tmp_path):
    return write_key(tmp_path / "id_ed25519")


def test_the_signature_is_over_method_address_and_empty_body(key_path):
    url = "https://registry.test/token?nonce=x&ts=1"
    header = sign_token_request(key_path, "GET", url)
    assert f"ssh-ed25519 {verify(header, 'GET', url)}" == public_key(key_path)
    for method, other in (("POST", url), ("GET", url.replace("ts=1", "ts=2"))):
        with pytest.raises(InvalidSignature):
            verify(header, method, other)


def test_a_known_answer():
    # the keys of RFC 8032 section 7.1, test 1; the signature is what Go's ed25519.Sign gives (Ed25519 signs without
    # chance); the public key is in the wire form of RFC 8709: string "ssh-ed25519", string of 32 bytes
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    key = ed25519.Ed25519PrivateKey.from_private_bytes(secret)
    header = keypair._sign(key, "GET", "https://registry.test/token?nonce=abc&ts=1700000000")
    blob = b"\0\0\0\x0bssh-ed25519" + b"\0\0\0\x20" + public
    assert header.partition(":")[0] == base64.b64encode(blob).decode()
    assert (
        header.partition(":")[2]
        == "+1xPSq5we9n+1mP6NgMIyO6jFQjtJu82JkkAUIza6vOrMc315yF6q7Vg2rrm6ENLdPbVDaIzvuk2y2AaDQvrAA=="
    )


needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen (openssh-client)")


def ssh_keygen(path, passphrase=""):
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "somebody@somewhere", "-f", path]
    subprocess.run(command, check=True, timeout=60)
    return path


@needs_ssh_keygen
def test_a_key_of_ssh_keygen(tmp_path):
    path = ssh_keygen(tmp_path / "id_ed25519")
    derived = subprocess.run(["ssh-keygen", "-y", "-f", path], check=True, capture_output=True, text=True, timeout=60)
    assert derived.stdout.split()[:2] == path.with_suffix(".pub").read_text().split()[:2] == public_key(path).split()
    assert verify(sign_token_request(path, "GET", "https://x"), "GET", "https://x") == public_key(path).split()[1]


@needs_ssh_keygen
def test_a_key_with_a_passphrase(tmp_path):
    with pytest.raises(GgtuneError, match="has a passphrase"):
        KeyPairAuth(ssh_keygen(tmp_path / "locked", "secret word"))


def test_keys_that_can_not_be_used(tmp_path):
    marker = b"c2VjcmV0IGtleSBtYXRlcmlhbA"
    junk = tmp_path / "junk"
    junk.write_bytes(b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + marker + b"\n-----END OPENSSH PRIVATE KEY-----\n")
    for path, message in (
        (tmp_path / "gone", "there is no such key"),
        (tmp_path, "can't read the key"),
        (junk, "not a private key in OpenSSH's format"),
        (write_key(tmp_path / "ec", ec.generate_private_key(ec.SECP256R1())), "not an Ed25519 key"),
    ):
        with pytest.raises(GgtuneError, match=message) as caught:
            KeyPairAuth(path)
        assert marker.decode() not in str(caught.value)


def test_the_key_is_looked_for_where_ollama_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    service = tmp_path / "service"
    monkeypatch.setattr(keypair, "_SERVICE_KEY", service)
    own = tmp_path / ".ollama" / "id_ed25519"
    assert keypair.default_key() == own
    write_key(service)
    assert keypair.default_key() == service
    own.parent.mkdir()
    write_key(own)
    assert keypair.default_key() == own
    assert KeyPairAuth()._path == own


class TokenServer(ThreadingHTTPServer):
    """Registry and token server in one: it knows one public key, and its tokens are good for a number of requests."""

    def __init__(self, public):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.daemon_threads = True
        self.public = public
        self.realm = f"http://{self.address}/token?given=1"
        self.uses = 100
        self.tokens = {}  # token: requests it is still good for
        self.nonces = set()
        self.queries = []
        self.bodies = []
        self.answer = None  # instead of a token
        self.stalls = False
        self.ended = threading.Event()

    @property
    def address(self):
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # a client that has gone away


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path.startswith("/token"):
            self.token()
        else:
            self.registry()

    def do_PUT(self):
        self.registry()

    def token(self):
        server = self.server
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        server.queries.append(query)
        if server.stalls:
            server.ended.wait()
        if server.answer is not None:
            self.answer(*server.answer)
            return
        try:
            public = verify(self.headers["Authorization"], "GET", f"http://{server.address}{self.path}")
        except (InvalidSignature, ValueError, TypeError):
            self.answer(400, b"bad signature")
            return
        nonce = query["nonce"][0]
        fresh = abs(int(query["ts"][0]) - time.time()) < 60 and nonce not in server.nonces
        server.nonces.add(nonce)
        if public != server.public or not fresh or len(base64.urlsafe_b64decode(nonce + "==")) != 16:
            self.answer(401, b"key not known")
            return
        token = f"token-{len(server.nonces)}"
        server.tokens[token] = server.uses
        self.answer(200, f'{{"token": "{token}"}}'.encode())

    def registry(self):
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if server.tokens.get(token, 0) > 0:
            server.tokens[token] -= 1
            server.bodies.append(body)
            self.answer(200, b"in")
            return
        challenge = f'Bearer realm="{server.realm}",service="a service",scope="repository:me/chem:pull,push b"'
        self.answer(401, WWW_Authenticate=challenge)


@pytest.fixture
def server(key_path):
    server = TokenServer(public_key(key_path).split()[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def client(server, key_path):
    with httpx.Client(base_url=f"http://{server.address}", auth=KeyPairAuth(key_path), trust_env=False) as client:
        yield client


def test_a_token_is_asked_for_once_and_used_from_then_on(server, client):
    assert client.get("/v2/").text == "in"
    assert client.put("/v2/x", content=b"bytes").text == "in"
    (query,) = server.queries
    assert list(query) == ["given", "nonce", "scope", "service", "ts"]
    assert query["given"] == ["1"]
    assert query["service"] == ["a service"]
    assert query["scope"] == ["repository:me/chem:pull,push", "b"]
    assert server.bodies == [b"", b"bytes"]


def test_a_token_that_is_used_up_is_replaced(server, client):
    server.uses = 1
    for _ in range(3):
        assert client.put("/v2/x", content=b"bytes").text == "in"
    assert len(server.nonces) == 3
    assert server.bodies == [b"bytes"] * 3


class Body:
    """Begins anew whenever it is iterated over."""

    def __iter__(self):
        yield b"by"
        yield b"tes"


def test_a_body_in_pieces_is_sent_again_with_the_token(server, client):
    server.uses = 1
    for _ in range(2):
        assert client.put("/v2/x", content=Body(), headers={"Content-Length": "5"}).text == "in"
    assert server.bodies == [b"bytes"] * 2


def test_hosts_that_the_registry_redirects_to_get_nothing(server, client, key_path):
    other = TokenServer(public_key(key_path).split()[1])
    other.server_close()
    client.get("/v2/")
    elsewhere = httpx.Request("GET", f"http://{other.address}/v2/")
    steps = client.auth.auth_flow(elsewhere)
    assert "Authorization" not in next(steps).headers
    challenge = {"WWW-Authenticate": f'Bearer realm="{other.realm}"'}
    with pytest.raises(StopIteration):
        steps.send(httpx.Response(401, headers=challenge, request=elsewhere))


def test_the_tokens_are_known_as_secrets(server, key_path):
    auth = KeyPairAuth(key_path)
    with httpx.Client(auth=auth, trust_env=False) as client:
        client.get(f"http://{server.address}/v2/")
    assert auth.secrets == list(server.tokens) == ["token-1"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_token_server_that_is_busy_can_be_asked_again(server, client, status):
    server.answer = (status, b"later")
    with pytest.raises(httpx.TransportError, match=f"answered {status} instead of a token"):
        client.get("/v2/")
    server.answer = None
    assert client.get("/v2/").text == "in"


def test_a_token_server_that_stalls(server, client):
    server.stalls = True
    with pytest.raises(httpx.ReadTimeout):
        client.get("/v2/", timeout=0.3)


def test_a_key_that_the_server_does_not_know(server, tmp_path):
    auth = KeyPairAuth(write_key(tmp_path / "other"))
    refusal = pytest.raises(GgtuneError, match=r"no token for the key .*other \(HTTP status 401: key not known\)")
    with httpx.Client(auth=auth, trust_env=False) as client, refusal:
        client.get(f"http://{server.address}/v2/")


@pytest.mark.parametrize("answer", [(200, b"{}"), (200, b"no json"), (200, b'{"token": "a\\nb"}'), (200, b"[1]")])
def test_an_answer_without_a_token(server, client, answer):
    server.answer = answer
    with pytest.raises(GgtuneError, match="without one"):
        client.get("/v2/")


@pytest.mark.parametrize(
    "realm",
    [
        "https://elsewhere.test/token",
        "http://127.0.0.1:1/token",
        "token",
        "",
        "http://[",
        "http://user@{address}/token",
    ],
)
def test_nothing_is_signed_for_another_host(server, client, realm):
    server.realm = realm.format(address=server.address)
    with pytest.raises(GgtuneError, match=r"which is not its own\. .*nothing was sent"):
        client.get("/v2/")
    assert server.queries == []


def flow(key_path, url, realm):
    """The request for a token after a refusal."""
    steps = KeyPairAuth(key_path).auth_flow(httpx.Request("GET", url))
    request = next(steps)
    return steps.send(httpx.Response(401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'}, request=request))


def test_ollamas_own_registry_leaves_tokens_to_another_host(key_path):
    request = flow(key_path, "https://registry.ollama.ai/v2/", "https://ollama.com/token")
    assert request.url.host == "ollama.com"
    verify(request.headers["Authorization"], "GET", str(request.url))


def test_no_signature_goes_out_without_tls(key_path):
    with pytest.raises(GgtuneError, match="without TLS"):
        flow(key_path, "https://registry.test/v2/", "http://registry.test/token")


def test_other_refusals_are_left_to_the_caller(key_path):
    for status, headers in ((401, {}), (401, {"WWW-Authenticate": 'Basic realm="x"'}), (403, {})):
        steps = KeyPairAuth(key_path).auth_flow(httpx.Request("GET", "https://registry.test/v2/"))
        request = next(steps)
        with pytest.raises(StopIteration):
            steps.send(httpx.Response(status, headers=headers, request=request))
