"""Logins to a registry, from the question to the answer."""

import base64
import io
import logging
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_registry import FakeRegistry, Handler

from ggtune.cli import cli
from ggtune.cli.transfer import terminal_report
from ggtune.ollama.manifest import Layer
from ggtune.ollama.registry.client import TransferOptions
from ggtune.ollama.registry.errors import LoginError, RegistryError
from ggtune.ollama.registry.pull import pull_model
from ggtune.ollama.registry.push import push_model
from ggtune.ollama.registry.reference import Reference
from ggtune.ollama.registry.retry import RetryPolicy

pytestmark = pytest.mark.usefixtures("own_home")

SECRET = "hunter2-secret"
OPTIONS = TransferOptions(timeout_s=2, chunk_bytes=1000, retry=RetryPolicy(retries=1, first_wait_s=0.01))


def use(monkeypatch: pytest.MonkeyPatch, username: str = "me", password: str = SECRET) -> None:
    monkeypatch.setenv("GGTUNE_REGISTRY_USERNAME", username)
    monkeypatch.setenv("GGTUNE_REGISTRY_PASSWORD", password)


def everything(server: FakeRegistry, store: Path, empty: Path, name: Reference) -> None:
    push_model(store, name, options=OPTIONS)
    assert "me/chem:v1" in server.manifests
    pull_model(empty, name, options=OPTIONS)
    assert (empty / "manifests" / name.name.manifest_path()).read_bytes() == server.manifests["me/chem:v1"]


@pytest.fixture(params=["basic", "bearer"])
def guarded(request: pytest.FixtureRequest, server: FakeRegistry) -> FakeRegistry:
    server.users["me"] = SECRET
    server.bearer = request.param == "bearer"
    return server


def test_login(
    guarded: FakeRegistry, store: Path, tmp_path: Path, name: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch)
    everything(guarded, store, tmp_path / "empty", name)
    if guarded.bearer:
        # one for looking, one for writing; one for the pull
        assert len(guarded.seen("GET", "/token")) == 3
        assert all("Basic" not in r.headers.get("authorization", "") for r in guarded.requests if "/v2/" in r.path)


@pytest.mark.parametrize(("username", "password"), [("me", "wrong-secret"), ("you", SECRET)])
def test_wrong_password(
    guarded: FakeRegistry,
    store: Path,
    tmp_path: Path,
    name: Reference,
    monkeypatch: pytest.MonkeyPatch,
    username: str,
    password: str,
    waits: list[float],
) -> None:
    use(monkeypatch, username, password)
    message = r"127\.0\.0\.1:\d+ refuses the user name or password from GGTUNE_REGISTRY_USERNAME and GGTUNE_REGISTRY_P"
    for act in (lambda: push_model(store, name), lambda: pull_model(tmp_path / "empty", name)):
        with pytest.raises(LoginError, match=message) as caught:
            act()
        assert password not in str(caught.value)
    assert not waits
    assert not guarded.blobs
    assert not (tmp_path / "empty").exists()


def test_no_login(guarded: FakeRegistry, store: Path, name: Reference) -> None:
    with pytest.raises(LoginError, match=r"asks for a login, and there is none\. Set GGTUNE_REGISTRY_USERNAME"):
        push_model(store, name, options=OPTIONS)


def test_identity_token(server: FakeRegistry, store: Path, tmp_path: Path, name: Reference, own_home: Path) -> None:
    server.users["nobody"] = "x"
    server.bearer = True
    server.identity_token = SECRET
    config = own_home / ".docker" / "config.json"
    config.parent.mkdir()
    config.write_text(f'{{"auths": {{"{server.host}": {{"identitytoken": "{SECRET}"}}}}}}')
    everything(server, store, tmp_path / "empty", name)
    assert not server.seen("GET", "/token")
    server.identity_token = "another"
    with pytest.raises(LoginError, match=r"refuses the user name or password from .*config\.json"):
        pull_model(tmp_path / "empty", name)


def test_access_token(server: FakeRegistry, store: Path, name: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    server.users["nobody"] = "x"
    server.bearer = True
    monkeypatch.setenv("GGTUNE_REGISTRY_TOKEN", SECRET)
    with pytest.raises(LoginError, match="refuses the token from GGTUNE_REGISTRY_TOKEN") as caught:
        push_model(store, name, options=OPTIONS)
    assert SECRET not in str(caught.value)
    server.tokens[SECRET] = "repository:me/chem:pull,push"
    push_model(store, name, options=OPTIONS)
    assert not server.seen("GET", "/token")


def test_tokens_that_expire(
    server: FakeRegistry, store: Path, name: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch)
    server.users["me"] = SECRET
    server.bearer = True

    def expire(handler: Handler) -> None:
        handler.registry.tokens = dict.fromkeys(handler.registry.tokens, "expired")
        handler.serve()

    server.fault("PATCH", "", expire, skip=1)
    server.fault("PATCH", "", expire, skip=2)
    push_model(store, name, options=OPTIONS)
    assert "me/chem:v1" in server.manifests


@pytest.mark.parametrize(
    ("realm", "message"),
    [
        ("", "names no server that gives out tokens"),
        ("ftp://x/", "names no server that gives out tokens"),
        ("http://127.0.0.1:1/token", "can't be reached"),
    ],
)
def test_wrong_token_servers(
    server: FakeRegistry,
    store: Path,
    name: Reference,
    monkeypatch: pytest.MonkeyPatch,
    realm: str,
    message: str,
    waits: list[float],
) -> None:
    use(monkeypatch)

    def challenge(handler: Handler) -> None:
        handler.error(401, "UNAUTHORIZED", headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})

    server.fault("HEAD", "", challenge, times=9)
    with pytest.raises(RegistryError, match=message):
        push_model(store, name, options=OPTIONS)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"token": 5}', b'{"token": "a\\nb"}', b"[" * 99999])
def test_token_servers_that_give_none(
    server: FakeRegistry, store: Path, name: Reference, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    use(monkeypatch)
    server.users["me"] = SECRET
    server.bearer = True
    server.fault("GET", "/token", lambda handler: handler.answer(200, {}, body))
    with pytest.raises(RegistryError, match="gave an answer without a token"):
        push_model(store, name, options=OPTIONS)


def test_a_token_server_that_is_busy(
    server: FakeRegistry, store: Path, name: Reference, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    use(monkeypatch)
    server.users["me"] = SECRET
    server.bearer = True
    server.fault("GET", "/token", lambda handler: handler.answer(503, {"Retry-After": "3"}))
    push_model(store, name, options=OPTIONS)
    assert waits == [3]


@pytest.mark.parametrize("kind", ["password", "identity token"])
def test_a_token_server_that_stalls(
    server: FakeRegistry, store: Path, name: Reference, monkeypatch: pytest.MonkeyPatch, own_home: Path, kind: str
) -> None:
    server.users["me"] = SECRET
    server.bearer = True
    if kind == "password":
        use(monkeypatch)
    else:
        (own_home / ".docker").mkdir()
        config = own_home / ".docker" / "config.json"
        config.write_text(f'{{"auths": {{"{server.host}": {{"identitytoken": "{SECRET}"}}}}}}')
    server.fault("GET", "/token", Handler.stall)
    server.fault("POST", "/token", Handler.stall)
    with pytest.raises(RegistryError, match=r"was silent for 0\.1 s"):
        push_model(store, name, options=TransferOptions(timeout_s=0.1, retry=RetryPolicy(retries=0)))


def test_logins_of_other_kinds(server: FakeRegistry, store: Path, name: Reference) -> None:
    server.fault("HEAD", "", lambda handler: handler.error(401, "", headers={"WWW-Authenticate": "Negotiate"}))
    with pytest.raises(LoginError, match="another kind than Basic and Bearer: 'negotiate'"):
        push_model(store, name, options=OPTIONS)


def test_no_secret_in_logs_and_errors(
    guarded: FakeRegistry,
    store: Path,
    tmp_path: Path,
    name: Reference,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not even where a server sends back what it was sent."""
    caplog.set_level(logging.DEBUG)
    use(monkeypatch)
    everything(guarded, store, tmp_path / "empty", name)
    basic = base64.b64encode(f"me:{SECRET}".encode()).decode()

    def echo(handler: Handler) -> None:
        handler.error(405, "UNSUPPORTED", f"you sent {handler.headers['Authorization']}, so {SECRET} and {basic}")

    guarded.fault("GET", "manifests", lambda handler: handler.serve())
    guarded.fault("GET", "manifests", echo)
    shutil.rmtree(tmp_path / "empty")
    for _ in range(2):
        try:
            pull_model(tmp_path / "empty", name, options=OPTIONS)
        except RegistryError as error:
            message = str(error)
    assert "405 (you sent" in message
    shown = caplog.text + message
    assert caplog.records
    for secret in (SECRET, basic, *guarded.tokens):
        assert secret not in shown


# -- the command line ------------------------------------------------------------------------------------------------


def ggtune(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_commands(server: FakeRegistry, store: Path, tmp_path: Path, name: Reference) -> None:
    done = ggtune("push", name.name, "--insecure", "--store", store)
    assert done.exit_code == 0, done.output
    assert "model sha256:" in done.stdout
    assert f"Pushed {name.name} (" in done.stdout
    done = ggtune("pull", f"http://{name.name}", "--as", "mine:x", "--store", tmp_path / "empty")
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("  ollama run mine:x\n")
    assert (tmp_path / "empty/manifests/registry.ollama.ai/library/mine/x").is_file()
    done = ggtune("push", f"http://{server.host}/me/two", "--from", "mine:x", "--store", tmp_path / "empty")
    assert done.exit_code == 0, done.output
    assert "there already, under another model" not in done.stdout  # this store knows of no other one there
    assert "me/two:latest" in server.manifests


def test_the_default_store(
    server: FakeRegistry, store: Path, tmp_path: Path, name: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    assert ggtune("push", name.name, "--insecure").exit_code == 0
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "empty"))
    assert ggtune("pull", name.name, "--insecure").exit_code == 0
    assert (tmp_path / "empty/manifests" / name.name.manifest_path()).is_file()


def test_errors_of_commands(
    server: FakeRegistry, store: Path, tmp_path: Path, name: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, password="wrong-secret")
    server.users["me"] = SECRET
    for arguments in (
        ["push", name.name, "--insecure", "--store", store],
        ["pull", name.name, "--insecure", "--store", tmp_path / "empty"],
    ):
        done = ggtune(*arguments)
        assert done.exit_code == 1
        assert done.stderr.startswith(f"Error: {server.host} refuses the user name or password")
        assert "wrong-secret" not in done.output
    done = ggtune("pull", f"me:{SECRET}@{server.host}/me/chem", "--store", tmp_path / "empty")
    assert done.exit_code == 1
    assert SECRET not in done.output
    done = ggtune("pull", name.name, "--store", tmp_path / "empty")
    assert done.exit_code == 1
    assert "does not speak TLS. For plain HTTP give --insecure" in done.stderr
    assert not (tmp_path / "empty").exists()


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    layer = Layer("application/vnd.ollama.image.model", "sha256:" + "a" * 64, 1 << 30)
    with terminal_report() as report:
        report.begin(layer, "sending")
        report.at(1 << 29)
        time.sleep(0.15)
        report.at(3 << 28)
        report.note("Trying again.")
        report.end("sent")
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "sending model sha256:aaaaaaaaaaaa:  75%" in shown
    assert "768M/1.00G" in shown
    assert "Trying again.\n" in shown
    assert capsys.readouterr().out == "model sha256:aaaaaaaaaaaa (1.0 GiB): sent\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_on_a_full_disk(server: FakeRegistry, store: Path, tmp_path: Path, name: Reference) -> None:
    push_model(store, name, options=OPTIONS)
    server.fault("GET", "blobs", lambda handler: handler.hang_up())
    command = [sys.executable, "-m", "ggtune", "pull", str(name.name), "--insecure", "--store", str(tmp_path / "empty")]
    with Path("/dev/full").open("w") as full:
        subprocess.run(command, stdout=full, stderr=full, check=False)
    assert (tmp_path / "empty/manifests" / name.name.manifest_path()).is_file()


def test_help_names_the_variables() -> None:
    for command in ("push", "pull"):
        text = ggtune(command, "--help").stdout
        for word in ("GGTUNE_REGISTRY_USERNAME", "GGTUNE_REGISTRY_PASSWORD", "DOCKER_CONFIG", "netrc", "SSL_CERT_FILE"):
            assert word in text
        assert "--password" not in text


# -- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls_server(server: FakeRegistry, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The fake registry over TLS: host, and its certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)

    class Listening(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, address: object) -> None:  # a client that does not trust it
            assert isinstance(sys.exc_info()[1], OSError)

    class Tls(Handler):
        registry = server

        def setup(self) -> None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

        def finish(self) -> None:
            super().finish()
            self.request.close()

    listening = Listening(("127.0.0.1", 0), Tls)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"localhost:{listening.server_address[1]}", certificate
    listening.shutdown()
    listening.server_close()
    thread.join()


def test_a_ca_of_its_own(
    tls_server: tuple[str, Path], store: Path, name: Reference, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    host, certificate = tls_server
    reference = Reference.parse(f"{host}/me/chem:v1")
    with pytest.raises(
        RegistryError, match=r"its certificate is not trusted \(self.signed certificate\).*SSL_CERT_FILE"
    ):
        push_model(store, reference, local_name=name.name, options=OPTIONS)
    assert not waits
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    push_model(store, reference, local_name=name.name, options=OPTIONS)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate) + "x")
    with pytest.raises(Exception, match=r"certificates that SSL_CERT_FILE names can't be read: No such file"):
        push_model(store, reference, local_name=name.name, options=OPTIONS)


def test_a_password_never_goes_unencrypted_to_a_token_server(
    tls_server: tuple[str, Path],
    server: FakeRegistry,
    store: Path,
    name: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host, certificate = tls_server
    use(monkeypatch)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server.users["me"] = SECRET
    server.bearer = True  # whose realm is the http:// address
    with pytest.raises(RegistryError, match=r"wants the password to go to 127\.0\.0\.1 unencrypted"):
        push_model(store, Reference.parse(f"{host}/me/chem:v1"), local_name=name.name, options=OPTIONS)
    assert not server.seen("GET", "/token")
