"""Push and pull against a real ``docker-registry``, which each test starts on the loopback device."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from ggtune.demo import MODEL
from ggtune.errors import GgtuneError
from ggtune.ollama.manifest import Layer, Manifest
from ggtune.ollama.registry.client import TransferOptions
from ggtune.ollama.registry.errors import LoginError, RegistryError
from ggtune.ollama.registry.pull import pull_model
from ggtune.ollama.registry.push import push_model
from ggtune.ollama.registry.reference import Reference
from ggtune.ollama.registry.report import Report
from ggtune.ollama.registry.retry import RetryPolicy
from ggtune.ollama.store import write_model

pytestmark = [
    pytest.mark.usefixtures("own_home"),
    pytest.mark.skipif(
        shutil.which("docker-registry") is None,
        reason="docker-registry is not installed (apt-get install docker-registry)",
    ),
]

PASSWORD = "correct horse"
# htpasswd -nbB tester 'correct horse': bcrypt, the only kind that the registry takes
HTPASSWD = "tester:$2a$04$o3CIHk6PKX0UFNDUHMZFLO7pIlfQ3Qj6c5VFatVyq9VU6s2l6Jo.m\n"
GOLDEN = Path(__file__).parents[1] / "golden"
OPTIONS = TransferOptions(timeout_s=20, retry=RetryPolicy(retries=2, first_wait_s=0.01))

Start = Callable[..., str]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a registry; returns its host. What it has is kept between two starts."""
    processes = []

    def begin(*, login: bool = False) -> str:
        data = tmp_path / "registry"
        data.mkdir(exist_ok=True)
        lines = [
            "version: 0.1",
            "log: {level: info}",
            f"storage: {{filesystem: {{rootdirectory: {data}}}}}",
            # the second line is what ollama pull needs (docs/registry.md)
            "http:",
            "  addr: 127.0.0.1:0",
            '  secret: "of all tests"',
            '  headers: {Location: ["#"]}',
        ]
        if login:
            (data / "htpasswd").write_text(HTPASSWD)
            lines += ["auth:", f"  htpasswd: {{realm: tests, path: {data / 'htpasswd'}}}"]
        config, log = data / "config.yml", data / "log"
        config.write_text("\n".join(lines) + "\n")
        with log.open("wb") as output:
            command = ["docker-registry", "serve", config]
            processes.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))
        deadline = time.monotonic() + 20
        while not (match := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text())):
            assert processes[-1].poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        return match[1]

    yield begin
    for process in processes:
        process.terminate()
        process.wait()


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written(store: Path, host: str, name: str = "me/chem:v1", model: Path = MODEL, **others: object) -> Reference:
    reference = Reference.parse(f"http://{host}/{name}")
    write_model(store, reference.name, model, **others)  # type: ignore[arg-type]
    return reference


def manifest_of(store: Path, name: Reference) -> Manifest:
    return Manifest.parse((store / "manifests" / name.name.manifest_path()).read_bytes(), "the test")


@pytest.mark.parametrize("login", [False, True])
def test_there_and_back(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, login: bool) -> None:
    host = start(login=login)
    if login:
        monkeypatch.setenv("GGTUNE_REGISTRY_USERNAME", "tester")
        monkeypatch.setenv("GGTUNE_REGISTRY_PASSWORD", PASSWORD)
    store, empty = tmp_path / "store", tmp_path / "empty"
    name = written(store, host, template="{{ .Prompt }}", system="x", params={"stop": ["</s>"]})
    total = sum(layer.size for layer in manifest_of(store, name).blobs())
    first = push_model(store, name, options=TransferOptions(chunk_bytes=1 << 20))
    assert (first.sent_bytes, first.kept_bytes) == (total, 0)
    again = push_model(store, name, options=OPTIONS)
    assert (again.sent_bytes, again.kept_bytes) == (0, total)
    result = pull_model(empty, name, options=OPTIONS)
    assert files_below(empty) == files_below(store)
    assert result.digest == first.digest
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in empty.rglob("*") if path.is_file())
    blob = empty / "blobs" / manifest_of(empty, name).layers[0].digest.replace(":", "-")
    assert blob.read_bytes() == MODEL.read_bytes()


def test_a_base_is_sent_once_for_all_of_its_adapters(start: Start, tmp_path: Path) -> None:
    host = start()
    store, empty = tmp_path / "store", tmp_path / "empty"
    base, adapter = GOLDEN / "llama.gguf", GOLDEN / "llama-lora.gguf"
    one = written(store, host, "me/one", base, adapter=adapter)
    two = written(store, host, "me/two", base, adapter=adapter, system="Another one.")
    assert len(list((store / "blobs").iterdir())) == 4
    push_model(store, one, options=OPTIONS)
    second = push_model(store, two, options=OPTIONS)
    assert second.sent_bytes == len("Another one.")
    pull_model(empty, one, options=OPTIONS)
    fetched = pull_model(empty, two, options=OPTIONS).fetched_bytes
    assert fetched == len("Another one.")
    assert files_below(empty) == files_below(store)
    kinds = [layer.media_type for layer in manifest_of(empty, one).layers]
    assert kinds == ["application/vnd.ollama.image.model", "application/vnd.ollama.image.adapter"]


def test_wrong_password(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = start(login=True)
    name = written(tmp_path / "store", host, model=GOLDEN / "llama.gguf")
    with pytest.raises(LoginError, match="asks for a login, and there is none"):
        push_model(tmp_path / "store", name, options=OPTIONS)
    monkeypatch.setenv("GGTUNE_REGISTRY_USERNAME", "tester")
    monkeypatch.setenv("GGTUNE_REGISTRY_PASSWORD", "wrong horse")
    with pytest.raises(LoginError, match="refuses the user name or password") as caught:
        push_model(tmp_path / "store", name, options=OPTIONS)
    assert "wrong horse" not in str(caught.value)


# a process that ends itself by the signal SIGNAL: before its third chunk, or with a blob fetched in part
PUSH = """
import functools, os
from ggtune.cli import main
from ggtune.ollama.registry import client, upload

client.TransferOptions = functools.partial(client.TransferOptions, chunk_bytes=1 << 20)
send, chunks = upload.Upload._chunk, []

def interrupted(self, session):
    chunks.append(session)
    if len(chunks) == 3:
        os.kill(os.getpid(), SIGNAL)
    return send(self, session)

upload.Upload._chunk = interrupted
main()
"""
PULL = """
import contextlib, os
from ggtune.cli import main, transfer
from ggtune.ollama.registry.report import Report

class Interrupt(Report):
    def at(self, done_bytes):
        if done_bytes > 3 << 20:
            os.kill(os.getpid(), SIGNAL)

transfer.terminal_report = lambda: contextlib.nullcontext(Interrupt())
main()
"""


def run_until(number: int, script: str, name: Reference, store: Path) -> tuple[int, str]:
    """Return the exit status of a process that a signal ends, and what it said."""
    command = [sys.executable, "-c", script.replace("SIGNAL", str(int(number)))]
    command += ["push" if script is PUSH else "pull", str(name.name), "--insecure", "--store", str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("number", "exit_status", "chunks"), [(signal.SIGINT, 130, 3), (signal.SIGTERM, 143, 3), (signal.SIGKILL, -9, 2)]
)
def test_a_push_that_is_interrupted_is_gone_on_with(
    start: Start, tmp_path: Path, number: int, exit_status: int, chunks: int
) -> None:
    host = start()
    store, empty = tmp_path / "store", tmp_path / "empty"
    name = written(store, host)
    status, said = run_until(number, PUSH, name, store)
    assert status == exit_status
    if number != signal.SIGKILL:
        assert "Finishing the part that is being sent" in said
        assert said.endswith("The same command goes on from here.\nInterrupted.\n")
    total = sum(layer.size for layer in manifest_of(store, name).blobs())
    result = push_model(store, name, options=OPTIONS)
    assert result.kept_bytes == chunks << 20
    assert result.sent_bytes == total - (chunks << 20)
    pull_model(empty, name, options=OPTIONS)
    assert files_below(empty) == files_below(store)


def test_a_chunk_that_is_cut_is_sent_again(start: Start, tmp_path: Path) -> None:
    """This registry forgets an upload that is cut within a chunk: it begins anew, and ends well."""
    host = start()
    store = tmp_path / "store"
    name = written(store, host)
    notes = []

    class Cut(Report):
        doing = ""

        def begin(self, layer: Layer, doing: str) -> None:
            self.doing = doing

        def at(self, done_bytes: int) -> None:
            if self.doing == "sending" and done_bytes > 5 << 20:
                self.doing = "sending on"
                raise httpx.WriteError("cut")

        def note(self, text: str) -> None:
            notes.append(text)

    push_model(store, name, options=TransferOptions(chunk_bytes=1 << 20, retry=OPTIONS.retry), report=Cut())
    assert ["cut" in notes[0], "no longer knows the upload" in notes[1], len(notes)] == [True, True, 2]
    pull_model(tmp_path / "empty", name, options=OPTIONS)
    assert files_below(tmp_path / "empty") == files_below(store)


@pytest.mark.parametrize(("number", "exit_status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_pull_that_is_interrupted_is_gone_on_with(
    start: Start, tmp_path: Path, number: int, exit_status: int
) -> None:
    host = start()
    store, empty = tmp_path / "store", tmp_path / "empty"
    name = written(store, host)
    push_model(store, name, options=OPTIONS)
    assert run_until(number, PULL, name, empty)[0] == exit_status
    (partial,) = empty.glob("blobs/*-ggtune-partial")
    assert not list(empty.glob("manifests/**/v1"))
    size = partial.stat().st_size
    assert 3 << 20 < size < MODEL.stat().st_size
    result = pull_model(empty, name, options=OPTIONS)
    assert result.kept_bytes == size
    assert files_below(empty) == files_below(store)


def test_a_blob_that_was_damaged_in_the_registry(start: Start, tmp_path: Path) -> None:
    host = start()
    store, empty = tmp_path / "store", tmp_path / "empty"
    name = written(store, host, model=GOLDEN / "llama.gguf")
    push_model(store, name, options=OPTIONS)
    digest = manifest_of(store, name).layers[0].digest.removeprefix("sha256:")
    (data,) = (tmp_path / "registry").glob(f"docker/registry/v2/blobs/sha256/*/{digest}/data")
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    with pytest.raises(RegistryError, match="gives other bytes for model"):
        pull_model(empty, name, options=OPTIONS)
    assert not list(empty.glob("manifests/**/v1"))
    assert not any(hashlib.sha256(c).hexdigest() not in p for p, c in files_below(empty).items())
    data.unlink()
    with pytest.raises(RegistryError, match="lacks model"):
        pull_model(empty, name, options=OPTIONS)


def test_what_is_no_model(start: Start, tmp_path: Path) -> None:
    host = start()
    name = written(tmp_path / "store", host, model=GOLDEN / "llama.gguf")
    push_model(tmp_path / "store", name, options=OPTIONS)
    with pytest.raises(RegistryError, match=f"{host} has no model me/chem:v2"):
        pull_model(tmp_path / "empty", Reference.parse(f"http://{host}/me/chem:v2"), options=OPTIONS)
    index_type = "application/vnd.oci.image.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "mediaType": index_type, "manifests": []})
    url = f"http://{host}/v2/me/chem/manifests/index"
    httpx.put(url, content=index, headers={"Content-Type": index_type}).raise_for_status()
    with pytest.raises(GgtuneError, match="an index of several images"):
        pull_model(tmp_path / "empty", Reference.parse(f"http://{host}/me/chem:index"), options=OPTIONS)
    assert not (tmp_path / "empty").exists()
