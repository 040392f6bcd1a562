"""Pushing to a registry that misbehaves."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_registry import FakeRegistry, Handler, status

from ggtune.errors import GgtuneError
from ggtune.ollama.manifest import Layer, Manifest
from ggtune.ollama.names import ModelName
from ggtune.ollama.registry.client import RegistryClient, TransferOptions
from ggtune.ollama.registry.errors import LoginError, RegistryError
from ggtune.ollama.registry.push import PushResult, push_model
from ggtune.ollama.registry.reference import Reference
from ggtune.ollama.registry.report import Report
from ggtune.ollama.registry.retry import RetryPolicy
from ggtune.ollama.store import write_model

pytestmark = pytest.mark.usefixtures("own_home")

CHUNK = 1000
OPTIONS = TransferOptions(timeout_s=0.4, chunk_bytes=CHUNK, retry=RetryPolicy(retries=2, first_wait_s=0.01))


def push(store: Path, name: Reference, **others: Any) -> PushResult:
    return push_model(store, name, **{"options": OPTIONS, **others})


def read_manifest(store: Path, name: Reference) -> tuple[bytes, Manifest]:
    data = (store / "manifests" / name.name.manifest_path()).read_bytes()
    return data, Manifest.parse(data, "the test")


def blob_path(store: Path, layer: Layer) -> Path:
    return store / "blobs" / layer.digest.replace(":", "-")


def arrived(server: FakeRegistry, store: Path, name: Reference) -> None:
    """Assert that the registry has all of the model, byte for byte."""
    data, manifest = read_manifest(store, name)
    assert server.manifests[f"me/chem:{name.name.tag}"] == data
    for layer in manifest.blobs():
        assert server.blobs[f"me/chem@{layer.digest}"] == blob_path(store, layer).read_bytes()


def sent_bytes(server: FakeRegistry) -> int:
    return sum(int(request.headers["content-length"]) for request in server.seen("PATCH", ""))


def test_blobs_go_in_chunks_and_the_manifest_last(server: FakeRegistry, store: Path, name: Reference) -> None:
    result = push(store, name)
    arrived(server, store, name)
    data, manifest = read_manifest(store, name)
    total = sum(layer.size for layer in manifest.blobs())
    assert (result.sent_bytes, result.kept_bytes) == (total, 0) == (sent_bytes(server), 0)
    assert result.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert server.requests[-1].method == "PUT"
    assert server.requests[-1].body == data
    size = manifest.layers[0].size
    assert size > 3 * CHUNK
    ranges = [request.headers.get("content-range") for request in server.seen("PATCH", "")]
    expected = [f"{begin}-{min(begin + CHUNK, size) - 1}" for begin in range(0, size, CHUNK)]
    assert ranges == [*expected, None, None, None]
    assert not list((Path.home() / ".local/state/ggtune/uploads").iterdir())


def test_what_is_there_is_not_sent_again(server: FakeRegistry, store: Path, name: Reference) -> None:
    push(store, name)
    server.requests.clear()
    result = push(store, name)
    assert [request.method for request in server.requests] == ["HEAD"] * 4 + ["PUT"]
    assert result.sent_bytes == 0


def test_another_name_in_the_store(server: FakeRegistry, store: Path, name: Reference) -> None:
    other = Reference.parse(f"http://{server.host}/me/chem:v2")
    push(store, other, local_name=name.name)
    assert server.manifests["me/chem:v2"] == read_manifest(store, name)[0]


def test_a_base_under_another_model_is_taken_over(
    server: FakeRegistry, store: Path, name: Reference, model: Path
) -> None:
    push(store, name)
    other = Reference.parse(f"http://{server.host}/me/other")
    write_model(store, other.name, model, system="Another one.")
    server.requests.clear()
    result = push(store, other)
    assert f"me/other@{read_manifest(store, name)[1].layers[0].digest}" in server.blobs
    assert result.sent_bytes == len("Another one.") == sent_bytes(server)


def test_a_registry_that_takes_nothing_over(server: FakeRegistry, store: Path, name: Reference, model: Path) -> None:
    push(store, name)
    other = Reference.parse(f"http://{server.host}/me/other")
    write_model(store, other.name, model)
    for content in list(server.blobs):
        server.blobs[content.replace("me/chem", "gone")] = server.blobs.pop(content)
    push(store, other)
    assert "me/other:latest" in server.manifests
    server.manifests.clear()
    server.blobs.clear()
    server.fault("POST", "mount=", status(403), times=9)
    push(store, other)
    assert "me/other:latest" in server.manifests


# -- interruptions ---------------------------------------------------------------------------------------------------


def cut(handler: Handler) -> None:
    """Take half a chunk, then hang up."""
    name = handler.path.rpartition("/")[2].partition("?")[0]
    handler.registry.uploads[name] += handler.read_body(CHUNK // 2)
    handler.hang_up()


def test_a_chunk_that_is_cut_goes_on_where_it_was_cut(
    server: FakeRegistry, store: Path, name: Reference, waits: list[float]
) -> None:
    server.fault("PATCH", "", cut, skip=1)
    result = push(store, name)
    arrived(server, store, name)
    ranges = [request.headers.get("content-range") for request in server.seen("PATCH", "")]
    assert ranges[:3] == ["0-999", "1000-1999", "1500-2499"]
    assert len(waits) == 1
    assert result.kept_bytes == CHUNK // 2  # sent, but not known to have been


def test_a_later_push_goes_on_where_an_earlier_one_was_killed(
    server: FakeRegistry, store: Path, name: Reference
) -> None:
    class Kill(Report):
        def at(self, done_bytes: int) -> None:
            if done_bytes > 2 * CHUNK and server.seen("PATCH", ""):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push(store, name, report=Kill())
    (saved,) = (Path.home() / ".local/state/ggtune/uploads").iterdir()
    assert saved.stat().st_mode & 0o777 == 0o600
    server.requests.clear()
    push(store, name)
    arrived(server, store, name)
    (upload,) = {request.path for request in server.seen("GET", "/uploads/u")}
    assert server.seen("PATCH", "")[0].path == upload
    assert int(server.seen("PATCH", "")[0].headers["content-range"].partition("-")[0]) >= 2 * CHUNK
    assert not saved.exists()


def test_notes_of_uploads_are_kept_for_a_week(
    server: FakeRegistry, store: Path, name: Reference, own_home: Path
) -> None:
    folder = own_home / ".local/state/ggtune/uploads"
    folder.mkdir(parents=True)
    for path, age_days in ((folder / "old", 8), (folder / "new", 6)):
        path.write_text("{}")
        os.utime(path, (time.time() - age_days * 86400,) * 2)
    push(store, name)
    assert {path.name for path in folder.iterdir()} == {"new"}


def test_an_earlier_upload_that_the_registry_forgot(server: FakeRegistry, store: Path, name: Reference) -> None:
    server.fault("PATCH", "", status(403), skip=2)
    with pytest.raises(RegistryError, match="answered 403: this login has no right"):
        push(store, name)
    server.uploads.clear()
    push(store, name)
    arrived(server, store, name)


def test_an_earlier_upload_of_which_the_registry_has_other_bytes(
    server: FakeRegistry, store: Path, name: Reference, waits: list[float]
) -> None:
    server.fault("PATCH", "", status(403), skip=2)
    with pytest.raises(RegistryError):
        push(store, name)
    for upload in server.uploads.values():
        upload[0] ^= 1
    push(store, name)
    arrived(server, store, name)


@pytest.mark.parametrize("content", [b"", b"{", b'{"location": 1, "offset": 2}', b'{"location": "x", "offset": "y"}'])
def test_a_damaged_note_of_an_earlier_upload(
    server: FakeRegistry, store: Path, name: Reference, content: bytes
) -> None:
    server.fault("PATCH", "", status(403), skip=2)
    with pytest.raises(RegistryError):
        push(store, name)
    (saved,) = (Path.home() / ".local/state/ggtune/uploads").iterdir()
    saved.write_bytes(content)
    push(store, name)
    arrived(server, store, name)


def test_a_home_that_can_not_be_written(
    server: FakeRegistry, store: Path, name: Reference, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_home / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(own_home / "file"))
    push(store, name)
    arrived(server, store, name)


def test_an_upload_that_the_registry_forgets_begins_anew(
    server: FakeRegistry, store: Path, name: Reference, waits: list[float]
) -> None:
    server.fault("PATCH", "", status(404), skip=2)
    push(store, name)
    arrived(server, store, name)
    starts = [request.headers.get("content-range", "").partition("-")[0] for request in server.seen("PATCH", "")]
    assert starts[:4] == ["0", "1000", "2000", "0"]


def test_an_upload_that_is_always_forgotten(
    server: FakeRegistry, store: Path, name: Reference, waits: list[float]
) -> None:
    server.fault("PATCH", "", status(404), skip=1, times=1)
    for _ in range(9):
        server.fault("PATCH", "", status(404), skip=1, times=1)
    with pytest.raises(RegistryError, match=r"no longer knows the upload of model .* Given up after 3 tries"):
        push(store, name)


def test_headers_that_are_no_numbers(server: FakeRegistry, store: Path, name: Reference, waits: list[float]) -> None:
    long = "9" * 9999
    server.fault("HEAD", "", lambda handler: handler.answer(404, {"Content-Length": "0", "Retry-After": long}))
    server.fault("HEAD", "", lambda handler: handler.answer(503, {"Retry-After": "Fri, 01 Jan 99999999 00:00:00 GMT"}))
    location = "/v2/me/chem/blobs/uploads/u?_state=aGk%3D%2F+x"
    server.uploads["u"] = bytearray()
    server.fault("POST", "", status(202, Location=location, OCI_Chunk_Min_Length=long, Range=f"0-{long}"))
    server.fault("PATCH", "", lambda handler: (handler.read_body(), handler.answer(202, {"Range": f"0-{long}"}))[0])
    push(store, name)
    assert server.manifests


def test_a_registry_that_wants_another_part(
    server: FakeRegistry, store: Path, name: Reference, waits: list[float]
) -> None:
    def swallow(handler: Handler) -> None:
        """Store the chunk, and lose the answer."""
        upload = handler.registry.uploads[handler.path.rpartition("/")[2].partition("?")[0]]
        upload += handler.read_body()
        handler.answer(416)

    server.fault("PATCH", "", swallow, skip=1)
    push(store, name)
    arrived(server, store, name)
    starts = [request.headers.get("content-range", "").partition("-")[0] for request in server.seen("PATCH", "")]
    assert starts[:3] == ["0", "1000", "2000"]


def test_the_answer_to_the_last_request_gets_lost(
    server: FakeRegistry, store: Path, name: Reference, waits: list[float]
) -> None:
    def finish_and_hang_up(handler: Handler) -> None:
        handler.answer = lambda *arguments: None  # type: ignore[method-assign]
        handler.serve()
        handler.hang_up()

    server.fault("PUT", "digest=", finish_and_hang_up)
    push(store, name)
    arrived(server, store, name)
    assert len(server.seen("POST", "")) == 4


def test_smaller_chunks_where_a_proxy_limits_them(
    server: FakeRegistry, store: Path, name: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggtune.ollama.registry.upload._SMALLEST_CHUNK_BYTES", 250)
    server.fault("PATCH", "", status(413))
    push(store, name)
    arrived(server, store, name)
    assert server.seen("PATCH", "")[1].headers["content-range"] == "0-249"
    server.blobs.clear()
    server.fault("PATCH", "", status(413), times=9)
    with pytest.raises(RegistryError, match="client_max_body_size"):
        push(store, name)


@pytest.mark.parametrize("code", [400, 405, 501])
def test_a_registry_that_takes_no_chunks(
    server: FakeRegistry, store: Path, name: Reference, waits: list[float], code: int
) -> None:
    def refuse(handler: Handler) -> None:
        handler.read_body()
        handler.error(code, "UNSUPPORTED", "the operation is unsupported")

    server.fault("PATCH", "", refuse, skip=1)
    push(store, name)
    arrived(server, store, name)
    size = str(read_manifest(store, name)[1].layers[0].size)
    assert [r.headers["content-length"] for r in server.seen("PATCH", "")][:3] == [str(CHUNK), str(CHUNK), size]
    server.blobs.clear()
    server.fault("PATCH", "", refuse, times=99)
    with pytest.raises(RegistryError, match=rf"answered {code} \(the operation is unsupported\)\.$"):
        push(store, name)


def test_larger_chunks_where_the_registry_asks_for_them(server: FakeRegistry, store: Path, name: Reference) -> None:
    server.smallest_chunk = 1500
    push(store, name)
    assert server.seen("PATCH", "")[0].headers["content-range"] == "0-1499"


def test_a_signal_waits_for_the_end_of_the_chunk(server: FakeRegistry, store: Path, name: Reference) -> None:
    def interrupt(handler: Handler) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        handler.serve()

    server.fault("PATCH", "", interrupt, skip=1)
    with pytest.raises(KeyboardInterrupt):
        push(store, name)
    assert [len(upload) for upload in server.uploads.values()] == [2 * CHUNK]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    server.requests.clear()
    push(store, name)
    assert server.seen("PATCH", "")[0].headers["content-range"].startswith("2000-")
    arrived(server, store, name)


def test_a_second_signal_acts_at_once(server: FakeRegistry, store: Path, name: Reference) -> None:
    def interrupt(handler: Handler) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        handler.stall()

    server.fault("PATCH", "", interrupt, skip=1)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        push(store, name, options=TransferOptions(timeout_s=5, chunk_bytes=CHUNK))
    assert time.monotonic() - began < 2


# -- a server that is busy, stalls or is dead ------------------------------------------------------------------------


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
@pytest.mark.parametrize(
    ("method", "path"), [("HEAD", ""), ("POST", ""), ("PATCH", ""), ("PUT", "blobs"), ("PUT", "man")]
)
def test_what_fails_for_now_is_tried_again(
    server: FakeRegistry, store: Path, name: Reference, waits: list[float], method: str, path: str, code: int
) -> None:
    server.fault(method, path, status(code))
    push(store, name)
    arrived(server, store, name)
    assert len(waits) == 1


@pytest.mark.parametrize(
    ("method", "path"), [("HEAD", ""), ("POST", ""), ("PATCH", ""), ("PUT", "blobs"), ("PUT", "man")]
)
@pytest.mark.parametrize("fault", [Handler.stall, Handler.hang_up])
def test_a_server_that_stalls_or_hangs_up(
    server: FakeRegistry,
    store: Path,
    name: Reference,
    waits: list[float],
    fault: Callable[[Handler], None],
    method: str,
    path: str,
) -> None:
    server.fault(method, path, fault, times=99)
    options = TransferOptions(timeout_s=0.1, chunk_bytes=CHUNK, retry=RetryPolicy(retries=1, first_wait_s=0.01))
    began = time.monotonic()
    reason = r"was silent for 0\.1 s|broke off the connection"
    with pytest.raises(RegistryError, match=rf"127\.0\.0\.1:\d+ ({reason}).*Given up after 2 tries"):
        push(store, name, options=options)
    assert time.monotonic() - began < 2
    assert not server.manifests
    server.faults.clear()
    push(store, name)
    arrived(server, store, name)


def test_a_dead_server(store: Path, name: Reference, unused_port: int, waits: list[float]) -> None:
    other = Reference.parse(f"http://127.0.0.1:{unused_port}/me/chem:v1")
    notes = []
    report = Report()
    report.note = notes.append  # type: ignore[method-assign]
    with pytest.raises(RegistryError, match=r"can't be reached: .*refused.* Given up after 6 tries"):
        push(store, other, local_name=name.name, options=TransferOptions(), report=report)
    assert len(waits) == len(notes) == 5
    for wait, longest in zip(waits, [0.5, 1, 2, 4, 8], strict=True):
        assert longest / 2 <= wait <= longest
    assert "Trying again in" in notes[0]
    assert "(1 of 5)" in notes[0]


def test_retry_after_is_kept(server: FakeRegistry, store: Path, name: Reference, waits: list[float]) -> None:
    server.fault("HEAD", "", status(429, Retry_After="7"))
    push(store, name)
    assert waits == [7]
    server.fault("HEAD", "", status(503, Retry_After="Fri, 01 Jan 2100 00:00:00 GMT"))
    with pytest.raises(RegistryError, match=r"answered 503\. The server asks to come back in \d+ s"):
        push(store, name)


# -- what a registry may refuse or get wrong -------------------------------------------------------------------------


def test_other_bytes_arrive(server: FakeRegistry, store: Path, name: Reference) -> None:
    def damage(handler: Handler) -> None:
        handler.serve()
        for upload in handler.registry.uploads.values():
            upload[0] ^= 1

    server.fault("PATCH", "", damage)
    with pytest.raises(RegistryError, match=r"answered 400 \(provided digest did not match.*other bytes arrived"):
        push(store, name)
    assert not server.manifests


def test_the_registry_names_another_digest(server: FakeRegistry, store: Path, name: Reference) -> None:
    other = "sha256:" + "0" * 64
    server.fault("PUT", "blobs", status(201, Docker_Content_Digest=other))
    with pytest.raises(RegistryError, match="under another digest"):
        push(store, name)
    server.fault("PUT", "manifests", status(201, Docker_Content_Digest=other))
    with pytest.raises(RegistryError, match="stored another manifest than it was sent"):
        push(store, name)


def test_the_registry_has_a_blob_of_another_size(server: FakeRegistry, store: Path, name: Reference) -> None:
    layer = read_manifest(store, name)[1].layers[0]
    server.blobs[f"me/chem@{layer.digest}"] = b"short"
    with pytest.raises(RegistryError, match=rf"has 5 bytes under the digest of .*, not {layer.size}"):
        push(store, name)


def test_a_refusal_is_shown_as_text_alone(server: FakeRegistry, store: Path, name: Reference) -> None:
    def refuse(handler: Handler) -> None:
        handler.error(405, "UNSUPPORTED", "no \x1b[31mred\x1b[0m\n" + "x" * 1000)

    server.fault("POST", "", refuse)
    with pytest.raises(RegistryError, match=r"answered 405 \(no  \[31mred \[0m x+\)\.$") as caught:
        push(store, name)
    assert len(str(caught.value)) < 400


def test_no_address_to_go_on_at(server: FakeRegistry, store: Path, name: Reference) -> None:
    for location in ("#", "ftp://host/", "//a..b/", "http://h:99999/"):
        server.fault("POST", "", status(202, Location=location))
        with pytest.raises(RegistryError, match="did not say at what address"):
            push(store, name)


def test_a_proxy_that_does_the_tls(own_home: Path) -> None:
    """The registry behind it names itself by http://; that must not send a login over the wire unencrypted."""
    import httpx

    reference = Reference.parse("registry.example:8443/me/m")
    with RegistryClient(reference, TransferOptions(), print) as client:
        here = client.url("blobs/uploads/")
        target = client.target(here, httpx.Headers({"location": "http://registry.example/v2/x?_state=a%3D"}))
        assert str(target) == "https://registry.example:8443/v2/x?_state=a%3D"
        with pytest.raises(RegistryError, match=r"redirects to other\.example without encryption"):
            client.target(here, httpx.Headers({"location": "http://other.example/v2/x"}))


def test_an_upload_on_another_host_gets_no_login(
    server: FakeRegistry, start_registry: Callable[[], FakeRegistry], store: Path, name: Reference, own_home: Path
) -> None:
    elsewhere = start_registry()
    server.users["me"] = "hunter2-secret"
    (own_home / ".netrc").write_text("machine 127.0.0.1 login me password hunter2-secret\n")

    def send_elsewhere(handler: Handler) -> None:
        if not handler.headers.get("Authorization"):
            handler.error(401, "UNAUTHORIZED", headers={"WWW-Authenticate": "Basic"})
            return
        elsewhere.uploads["u"] = bytearray()
        handler.answer(202, {"Location": f"{elsewhere.url}/v2/me/chem/blobs/uploads/u?_state=aGk%3D%2F+x"})

    server.fault("POST", "", send_elsewhere, times=9)
    server.fault("PUT", "manifests", status(201))
    push(store, name)
    assert len(elsewhere.blobs) == 4
    assert elsewhere.requests
    assert not any("authorization" in request.headers for request in elsewhere.requests)


# -- what is wrong here ----------------------------------------------------------------------------------------------


def test_nothing_is_sent_where_a_blob_is_missing_or_cut(server: FakeRegistry, store: Path, name: Reference) -> None:
    model, template, *_ = read_manifest(store, name)[1].blobs()
    blob_path(store, model).unlink()
    with blob_path(store, template).open("ab") as file:
        file.write(b"more")
    with pytest.raises(GgtuneError) as caught:
        push(store, name)
    message = str(caught.value)
    assert f"{blob_path(store, model)}: No such file or directory (model)" in message
    assert f"{blob_path(store, template)}: has {template.size + 4} bytes, not the {template.size}" in message
    assert not server.requests


def test_nothing_is_sent_where_a_blob_is_damaged(server: FakeRegistry, store: Path, name: Reference) -> None:
    path = blob_path(store, read_manifest(store, name)[1].layers[0])
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(GgtuneError, match=rf"{path}: is damaged.*Nothing was sent"):
        push(store, name)
    assert {request.method for request in server.requests} == {"HEAD"}


def test_a_model_that_the_store_lacks(store: Path, server: FakeRegistry) -> None:
    other = Reference.parse(f"http://{server.host}/me/none")
    with pytest.raises(GgtuneError, match=rf"has no model {server.host}/me/none"):
        push(store, other)
    with pytest.raises(GgtuneError, match="has no model me/none"):
        push(store, other, local_name=ModelName.parse("me/none"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: [], "no JSON object"),
        (lambda m: m | {"schemaVersion": 1}, "not a Docker manifest of version 2"),
        (lambda m: m | {"mediaType": "application/vnd.oci.image.manifest.v1+json"}, "an OCI image"),
        (lambda m: m | {"mediaType": "application/vnd.oci.image.index.v1+json"}, "an index"),
        (lambda m: {"schemaVersion": 2, "manifests": []}, "an index"),
        (lambda m: m | {"layers": []}, "lists no layers"),
        (lambda m: m | {"layers": m["layers"][1:]}, "not a model of Ollama"),
        (lambda m: m | {"layers": [m["config"]]}, "not a model of Ollama, but some other image"),
        (lambda m: m | {"config": None}, "without media type"),
        (lambda m: m | {"config": m["config"] | {"digest": "sha256:../../x"}}, "without media type"),
        (lambda m: m | {"config": m["config"] | {"digest": "sha256:" + "A" * 64}}, "without media type"),
        (lambda m: m | {"config": m["config"] | {"size": -1}}, "without media type"),
        (lambda m: m | {"config": m["config"] | {"size": True}}, "without media type"),
        (lambda m: m | {"layers": m["layers"] + [m["layers"][0] | {"size": 1}]}, "two sizes"),
    ],
)
def test_a_manifest_that_is_not_ollamas(
    server: FakeRegistry, store: Path, name: Reference, change: Callable[[Any], Any], message: str
) -> None:
    path = store / "manifests" / name.name.manifest_path()
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))
    with pytest.raises(GgtuneError, match=message):
        push(store, name)
    assert not server.requests


def test_ollamas_own_registry_takes_no_docker_login(store: Path) -> None:
    with pytest.raises(GgtuneError, match="give host:port/namespace/model:tag"):
        push(store, Reference.parse("me/chem"))


@pytest.mark.parametrize("host", ["h:abc", "a..b:5000", "xn--:5", "127.0.0.1:0", "127.0.0.1:99999", "a" * 70 + ".b"])
def test_hosts_that_are_none(store: Path, name: Reference, host: str) -> None:
    with pytest.raises(RegistryError, match="is no host that can be connected to"):
        push(store, Reference.parse(f"{host}/me/chem"), local_name=name.name)


@pytest.mark.parametrize(
    "wrong", ["h:1/Me/chem", "h:1/me/Chem", "h:1/me/-c", "h:1/me/c..d", "ftp://h:1/me/chem", "h:1/m:t"]
)
def test_names_that_are_refused(wrong: str) -> None:
    with pytest.raises(GgtuneError):
        Reference.parse(wrong)


def test_a_password_in_a_name_is_not_repeated() -> None:
    for text in ("https://me:hunter2@host/me/chem", "me:hunter2@host:5000/me/chem"):
        with pytest.raises(GgtuneError, match="has no user and no password in it") as caught:
            Reference.parse(text)
        assert "hunter2" not in str(caught.value)


def test_a_proxy_whose_address_is_none(store: Path, name: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "")
    for address in ("foo://me:hunter2@x", "http://me:hunter2@x:port", "socks5://me:hunter2@x"):
        monkeypatch.setenv("HTTP_PROXY", address)
        with pytest.raises(GgtuneError, match="The proxy in HTTP_PROXY") as caught:
            push(store, name)
        assert "hunter2" not in str(caught.value)


def test_a_login_that_lacks_the_right(server: FakeRegistry, store: Path, name: Reference) -> None:
    server.fault("POST", "", lambda handler: handler.error(403, "DENIED", "requested access is denied"))
    with pytest.raises(RegistryError, match=r"answered 403 \(requested access is denied\): this login has no right"):
        push(store, name)
    server.users["me"] = "x"
    with pytest.raises(LoginError, match="asks for a login, and there is none"):
        push(store, name)
