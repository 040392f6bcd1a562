"""Pulling from a registry that misbehaves."""

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_registry import MANIFEST_TYPE, FakeRegistry, Handler, status

from ggtune.errors import GgtuneError
from ggtune.ollama.manifest import Manifest
from ggtune.ollama.names import ModelName
from ggtune.ollama.registry.client import TransferOptions
from ggtune.ollama.registry.errors import RegistryError
from ggtune.ollama.registry.pull import PullResult, pull_model
from ggtune.ollama.registry.push import push_model
from ggtune.ollama.registry.reference import Reference
from ggtune.ollama.registry.report import Report
from ggtune.ollama.registry.retry import RetryPolicy

OPTIONS = TransferOptions(timeout_s=0.4, retry=RetryPolicy(retries=2, first_wait_s=0.01))


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    return tmp_path / "empty"


@pytest.fixture(autouse=True)
def pushed(server: FakeRegistry, store: Path, name: Reference, own_home: Path) -> Manifest:
    """The registry has the model of ``store``."""
    push_model(store, name)
    server.requests.clear()
    return Manifest.parse(server.manifests["me/chem:v1"], "the test")


def pull(folder: Path, name: Reference, **others: Any) -> PullResult:
    return pull_model(folder, name, **{"options": OPTIONS, **others})


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def nothing_new(folder: Path) -> None:
    """Assert that there is no model, and no blob that is not what its name says."""
    for path, content in files_below(folder).items():
        assert path == f"blobs/sha256-{hashlib.sha256(content).hexdigest()}"


def blob_requests(server: FakeRegistry, digest: str) -> list[str]:
    return [request.headers.get("range", "") for request in server.seen("GET", digest)]


def test_into_an_empty_store(server: FakeRegistry, store: Path, empty: Path, name: Reference, pushed: Manifest) -> None:
    result = pull(empty, name)
    assert files_below(empty) == files_below(store)
    for path in empty.rglob("*"):
        assert path.is_dir() or path.stat().st_mode & 0o777 == 0o644
    assert result.fetched_bytes == sum(layer.size for layer in pushed.blobs())
    assert result.manifest == empty / "manifests" / server.host / "me/chem/v1"
    accept = server.seen("GET", "manifests")[0].headers["accept"]
    assert accept.startswith(MANIFEST_TYPE)
    server.requests.clear()
    again = pull(empty, name)
    assert [request.path.rpartition("/")[2] for request in server.requests] == ["v1"]
    assert (again.fetched_bytes, again.kept_bytes) == (0, result.fetched_bytes)


def test_the_manifest_is_kept_byte_for_byte(server: FakeRegistry, empty: Path, name: Reference) -> None:
    loose = json.dumps(json.loads(server.manifests["me/chem:v1"]), indent=3).encode() + b"\n"
    server.manifests["me/chem:v1"] = loose
    result = pull(empty, name, local_name=ModelName.parse("mine"))
    assert result.manifest == empty / "manifests/registry.ollama.ai/library/mine/latest"
    assert result.manifest.read_bytes() == loose
    assert result.digest == f"sha256:{hashlib.sha256(loose).hexdigest()}"


def test_a_damaged_blob_is_fetched_again(
    server: FakeRegistry, store: Path, empty: Path, name: Reference, pushed: Manifest
) -> None:
    pull(empty, name)
    server.requests.clear()
    for content in (b"short", (empty / "blobs" / pushed.layers[0].digest.replace(":", "-")).read_bytes()[:-1] + b"?"):
        (empty / "blobs" / pushed.layers[0].digest.replace(":", "-")).write_bytes(content)
        pull(empty, name)
        assert files_below(empty) == files_below(store)
    assert len(server.seen("GET", "blobs")) == 2


def test_a_blob_deleted_meanwhile_is_fetched_again(
    server: FakeRegistry, store: Path, empty: Path, name: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that starts between the blobs and the manifest deletes what no manifest names."""
    mkdir = Path.mkdir

    def mkdir_then_prune(path: Path, *arguments: Any, **keywords: Any) -> None:
        mkdir(path, *arguments, **keywords)
        if "manifests" in path.parts:
            for blob in (empty / "blobs").iterdir():
                blob.unlink()

    monkeypatch.setattr(Path, "mkdir", mkdir_then_prune)
    pull(empty, name)
    assert files_below(empty) == files_below(store)


# -- interruptions ---------------------------------------------------------------------------------------------------


def cut(handler: Handler) -> None:
    """Send half of what is asked for, then hang up."""
    real = handler.wfile.write

    def half(body: Any) -> int:
        if len(body) > 1000:
            real(body[: len(body) // 2])
            handler.wfile.flush()
            handler.hang_up()
            return 0
        return real(body)

    handler.wfile.write = half  # type: ignore[method-assign]
    handler.serve()


def test_a_connection_that_is_cut_is_gone_on_with(
    server: FakeRegistry, store: Path, empty: Path, name: Reference, pushed: Manifest, waits: list[float]
) -> None:
    model = pushed.layers[0]
    server.fault("GET", model.digest, cut, times=2)
    result = pull(empty, name)
    half, quarter = model.size // 2, (model.size - model.size // 2) // 2
    assert blob_requests(server, model.digest) == ["", f"bytes={half}-", f"bytes={half + quarter}-"]
    assert files_below(empty) == files_below(store)
    assert result.fetched_bytes == sum(layer.size for layer in pushed.blobs())
    assert len(waits) == 2
    assert max(waits) <= 0.01  # each made progress


def interrupted(server: FakeRegistry, empty: Path, name: Reference, digest: str) -> Path:
    """Leave half a blob; returns its path."""

    class Interrupt(Report):
        def note(self, text: str) -> None:
            raise KeyboardInterrupt

    server.fault("GET", digest, cut)
    with pytest.raises(KeyboardInterrupt):
        pull(empty, name, report=Interrupt())
    server.requests.clear()
    return empty / "blobs" / f"{digest.replace(':', '-')}-ggtune-partial"


def test_a_later_pull_goes_on(
    server: FakeRegistry, store: Path, empty: Path, name: Reference, pushed: Manifest
) -> None:
    model = pushed.layers[0]
    partial = interrupted(server, empty, name, model.digest)
    assert set(files_below(empty)) == {f"blobs/{partial.name}"}
    size = partial.stat().st_size
    assert size == model.size // 2
    result = pull(empty, name)
    assert blob_requests(server, model.digest) == [f"bytes={size}-"]
    assert files_below(empty) == files_below(store)
    assert result.kept_bytes == size
    assert result.fetched_bytes == sum(layer.size for layer in pushed.blobs()) - size


def test_an_interruption_while_the_half_is_read_keeps_it(
    server: FakeRegistry, empty: Path, name: Reference, pushed: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = interrupted(server, empty, name, pushed.layers[0].digest)
    content = partial.read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ggtune.ollama.blobs.PartialBlob.__init__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pull(empty, name)
    assert partial.read_bytes() == content


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: path.write_bytes(path.read_bytes() * 3),
        lambda path: path.write_bytes(b"\0" * 2 * path.stat().st_size),
    ],
)
def test_a_damaged_half_is_thrown_away(
    server: FakeRegistry,
    store: Path,
    empty: Path,
    name: Reference,
    pushed: Manifest,
    damage: Callable[[Path], object],
    waits: list[float],
) -> None:
    damage(interrupted(server, empty, name, pushed.layers[0].digest))
    pull(empty, name)
    assert files_below(empty) == files_below(store)
    assert blob_requests(server, pushed.layers[0].digest)[-1] == ""


def test_a_whole_one_that_was_not_renamed(
    server: FakeRegistry, store: Path, empty: Path, name: Reference, pushed: Manifest
) -> None:
    model = pushed.layers[0]
    partial = interrupted(server, empty, name, model.digest)
    partial.write_bytes((store / "blobs" / model.digest.replace(":", "-")).read_bytes())
    pull(empty, name)
    assert blob_requests(server, model.digest) == []
    assert files_below(empty) == files_below(store)


def without_range(handler: Handler) -> None:
    del handler.headers["Range"]
    handler.serve()


@pytest.mark.parametrize(
    "act",
    [
        without_range,
        status(416),
        lambda handler: handler.answer(206, {"Content-Range": "bytes 0-9/10"}, b"0123456789"),
        lambda handler: handler.answer(206, {}, b"0123456789"),
    ],
)
def test_a_registry_that_can_not_go_on(
    server: FakeRegistry,
    store: Path,
    empty: Path,
    name: Reference,
    pushed: Manifest,
    act: Callable[[Handler], None],
    waits: list[float],
) -> None:
    digest = pushed.layers[0].digest
    interrupted(server, empty, name, digest)
    server.fault("GET", digest, act)
    pull(empty, name)
    assert files_below(empty) == files_below(store)


def test_two_at_once_fetch_each_blob_once(server: FakeRegistry, store: Path, empty: Path, name: Reference) -> None:
    def slowly(handler: Handler) -> None:
        time.sleep(0.05)
        handler.serve()

    server.fault("GET", "blobs", slowly, times=99)
    failures = []

    def work() -> None:
        try:
            pull(empty, name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert files_below(empty) == files_below(store)
    assert len(server.seen("GET", "blobs")) == 4


# -- what a registry may get wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda c: c[:-1] + b"?", lambda c: c + b"more", lambda c: c[:-9], lambda c: b""])
@pytest.mark.parametrize("kind", [0, 1])
def test_other_bytes_are_not_kept(
    server: FakeRegistry,
    empty: Path,
    name: Reference,
    pushed: Manifest,
    change: Callable[[bytes], bytes],
    kind: int,
    waits: list[float],
) -> None:
    key = f"me/chem@{pushed.layers[kind].digest}"
    server.blobs[key] = change(server.blobs[key])
    with pytest.raises(RegistryError, match=r"gives other bytes for (model|template) sha256:\w+ than"):
        pull(empty, name)
    nothing_new(empty)


def test_more_bytes_than_were_said(server: FakeRegistry, empty: Path, name: Reference, pushed: Manifest) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while True:
            handler.wfile.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")

    server.fault("GET", pushed.layers[0].digest, endless)
    with pytest.raises(RegistryError, match="gives other bytes"):
        pull(empty, name)
    assert not empty.exists()


def test_a_manifest_of_another_digest(server: FakeRegistry, empty: Path, name: Reference) -> None:
    def other(handler: Handler) -> None:
        handler.answer(200, {"Docker-Content-Digest": "sha256:" + "0" * 64}, server.manifests["me/chem:v1"])

    server.fault("GET", "manifests", other)
    with pytest.raises(RegistryError, match="gave another manifest than the one whose digest it named"):
        pull(empty, name)
    assert not empty.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"schemaVersion": 2, "manifests": []}', "an index of several images"),
        (b'{"mediaType": "application/vnd.oci.image.manifest.v1+json"}', "an OCI image, which Ollama can't use"),
        (b'{"schemaVersion": 1, "fsLayers": []}', "not a Docker manifest of version 2"),
    ],
)
def test_a_manifest_that_is_not_ollamas(
    server: FakeRegistry, empty: Path, name: Reference, content: bytes, message: str
) -> None:
    server.manifests["me/chem:v1"] = content
    with pytest.raises(GgtuneError, match=rf"{server.host}/me/chem:v1: .*{message}"):
        pull(empty, name)
    assert not empty.exists()


def test_a_huge_manifest(server: FakeRegistry, empty: Path, name: Reference) -> None:
    server.manifests["me/chem:v1"] = b" " * (5 << 20)
    with pytest.raises(RegistryError, match="more than 4 MiB"):
        pull(empty, name)


def test_no_such_model(server: FakeRegistry, empty: Path) -> None:
    with pytest.raises(RegistryError, match=rf"{server.host} has no model me/chem:v2\."):
        pull(empty, Reference.parse(f"http://{server.host}/me/chem:v2"))
    assert not empty.exists()


def test_a_blob_that_the_registry_lacks(server: FakeRegistry, empty: Path, name: Reference, pushed: Manifest) -> None:
    del server.blobs[f"me/chem@{pushed.layers[0].digest}"]
    with pytest.raises(RegistryError, match=r"lacks model sha256:\w+, which the model's manifest names"):
        pull(empty, name)
    assert not empty.exists()


def test_blobs_on_another_host_get_no_login(
    server: FakeRegistry,
    start_registry: Callable[[], FakeRegistry],
    store: Path,
    empty: Path,
    name: Reference,
    monkeypatch: pytest.MonkeyPatch,
    pushed: Manifest,
    waits: list[float],
) -> None:
    elsewhere = start_registry()
    elsewhere.blobs = server.blobs
    server.users["me"] = "hunter2"
    monkeypatch.setenv("GGTUNE_REGISTRY_USERNAME", "me")
    monkeypatch.setenv("GGTUNE_REGISTRY_PASSWORD", "hunter2")

    def redirect(handler: Handler) -> None:
        assert handler.headers["Authorization"].startswith("Basic ")
        handler.answer(307, {"Location": f"{elsewhere.url}{handler.path}?X-Signature=abc"})

    server.fault("GET", "blobs", redirect, times=99)
    elsewhere.fault("GET", pushed.layers[0].digest, cut)
    pull(empty, name)
    assert files_below(empty) == files_below(store)
    assert len(elsewhere.requests) == 5
    assert not any("authorization" in request.headers for request in elsewhere.requests)
    assert blob_requests(elsewhere, pushed.layers[0].digest)[1].startswith("bytes=")
    # not even where that host asks for it
    elsewhere.users["me"] = "hunter2"
    shutil.rmtree(empty)
    with pytest.raises(RegistryError, match="answered 401") as caught:
        pull(empty, name)
    assert not any("authorization" in request.headers for request in elsewhere.requests)
    assert "X-Signature" not in str(caught.value)


def test_redirects_in_a_circle(server: FakeRegistry, empty: Path, name: Reference) -> None:
    server.fault("GET", "manifests", lambda handler: handler.answer(307, {"Location": handler.path}), times=99)
    with pytest.raises(RegistryError, match="redirects in a circle"):
        pull(empty, name)


# -- a server that stalls or is dead ---------------------------------------------------------------------------------


def drip(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "4000000")
    handler.end_headers()
    for _ in range(100):
        time.sleep(0.02)
        handler.wfile.write(b"x")
    handler.hang_up()


def stall_within(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"x")
    handler.stall()


@pytest.mark.parametrize("fault", [Handler.stall, Handler.hang_up, stall_within])
@pytest.mark.parametrize("path", ["manifests", "blobs"])
def test_a_server_that_stalls_or_hangs_up(
    server: FakeRegistry, empty: Path, name: Reference, fault: Callable[[Handler], None], path: str, waits: list[float]
) -> None:
    server.fault("GET", path, fault, times=99)
    options = TransferOptions(timeout_s=0.1, retry=RetryPolicy(retries=1, first_wait_s=0.01))
    began = time.monotonic()
    reason = r"was silent for 0\.1 s|broke off the connection"
    with pytest.raises(RegistryError, match=rf"127\.0\.0\.1:\d+ ({reason}).*Given up after"):
        pull(empty, name, options=options)
    assert time.monotonic() - began < 2


def test_a_server_that_drips(
    server: FakeRegistry, empty: Path, name: Reference, pushed: Manifest, waits: list[float]
) -> None:
    manifest = json.loads(server.manifests["me/chem:v1"])
    manifest["layers"][0]["size"] = 4_000_000
    server.manifests["me/chem:v1"] = json.dumps(manifest).encode()
    server.fault("GET", pushed.layers[0].digest, drip, times=99)
    with pytest.raises(RegistryError, match="hardly sends anything"):
        pull(empty, name, options=TransferOptions(timeout_s=0.1, retry=RetryPolicy(retries=0)))


def test_a_dead_server(empty: Path, unused_port: int, waits: list[float]) -> None:
    with pytest.raises(RegistryError, match="can't be reached"):
        pull(empty, Reference.parse(f"http://127.0.0.1:{unused_port}/me/chem"))
    assert not empty.exists()
    assert len(waits) == 2


# -- the store's disk ------------------------------------------------------------------------------------------------


def test_too_little_space_is_seen_before_anything_is_fetched(
    server: FakeRegistry, empty: Path, name: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(GgtuneError, match=r"empty: .* too little room: 16\.0 MiB needed .*, 1000 B free"):
        pull(empty, name)
    assert not server.seen("GET", "blobs")
    assert not empty.exists()


def test_a_disk_that_is_really_full(
    server: FakeRegistry,
    make_disk: Callable[[str], Path],
    name: Reference,
    pushed: Manifest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = os.urandom(1 << 20)
    manifest = json.loads(server.manifests["me/chem:v1"])
    digest = server.add_blob("me/chem", content)
    manifest["layers"].append({"mediaType": "application/vnd.ollama.image.license", "digest": digest, "size": 1 << 20})
    server.manifests["me/chem:v1"] = json.dumps(manifest).encode()
    disk = make_disk("512k")
    monkeypatch.setattr("ggtune.ollama.blobs.free_bytes", lambda _: 1 << 40)
    with pytest.raises(GgtuneError, match=r"can't write to this Ollama store: No space left on device"):
        pull(disk / "store", name)
    nothing_new(disk / "store")


def test_a_disk_that_fails_at_the_end(
    server: FakeRegistry, empty: Path, name: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(GgtuneError, match="No space left on device"):
        pull(empty, name)
    assert not empty.exists()


def test_a_store_that_is_a_file(empty: Path, name: Reference) -> None:
    empty.write_text("x")
    with pytest.raises(GgtuneError, match="can't write to this Ollama store"):
        pull(empty, name)
    assert empty.read_text() == "x"


def test_the_old_model_stays_where_the_new_one_fails(
    server: FakeRegistry, empty: Path, name: Reference, pushed: Manifest, waits: list[float]
) -> None:
    pull(empty, name)
    before = files_below(empty)
    manifest = json.loads(server.manifests["me/chem:v1"])
    manifest["layers"][1]["digest"] = server.add_blob("me/chem", b"A new template.")
    manifest["layers"][1]["size"] = len(b"A new template.")
    server.manifests["me/chem:v1"] = json.dumps(manifest).encode()
    server.fault("GET", "blobs", status(500), times=99)
    with pytest.raises(RegistryError, match="answered 500"):
        pull(empty, name)
    assert files_below(empty) == before
