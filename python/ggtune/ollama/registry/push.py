"""From an Ollama store into a registry, without Ollama."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ggtune.errors import GgtuneError
from ggtune.ollama.blobs import BlobStore
from ggtune.ollama.keypair import KeyPairAuth
from ggtune.ollama.manifest import MANIFEST_TYPE, Layer, Manifest
from ggtune.ollama.names import DEFAULT_HOST, ModelName
from ggtune.ollama.registry.client import RegistryClient, TransferOptions
from ggtune.ollama.registry.errors import RegistryError
from ggtune.ollama.registry.headers import byte_count
from ggtune.ollama.registry.reference import Reference
from ggtune.ollama.registry.report import Report
from ggtune.ollama.registry.upload import Upload


@dataclass(frozen=True)
class PushResult:
    """A model that the registry has now."""

    name: ModelName
    digest: str  # of the manifest
    sent_bytes: int
    kept_bytes: int  # of blobs that the registry had, whole or in part


def push_model(
    store_dir: Path,
    reference: Reference,
    *,
    local_name: ModelName | None = None,
    options: TransferOptions | None = None,
    report: Report | None = None,
    auth: KeyPairAuth | None = None,
) -> PushResult:
    """Send what the registry lacks of a model that the store has as ``local_name`` (its own name by default).

    ``auth`` signs in with Ollama's key pair, in place of credentials. The manifest goes last, unchanged. Raises
    :class:`GgtuneError` before anything is sent where the store lacks the model, or a blob of it, or has a damaged one;
    later for a registry that refuses or fails: it has no new model then.
    """
    report = report or Report()
    if reference.name.host == DEFAULT_HOST and auth is None:
        raise GgtuneError(
            f"{reference.name} names no registry: give host:port/namespace/model:tag. "
            "To Ollama's own registry, which asks for Ollama's key pair: ggtune publish ollama."
        )
    store = BlobStore(store_dir)
    local_name = local_name or reference.name
    data = store.read_manifest(local_name)
    manifest = Manifest.parse(data, str(store.manifest_path(local_name)))
    blobs = manifest.blobs()
    _check_present(store, blobs, local_name)
    with RegistryClient(reference, options or TransferOptions(), report.note, auth) as client:
        wanted = []
        for layer in blobs:
            if _has(client, layer):
                report.begin(layer, "sending")
                report.end("there already")
            else:
                wanted.append(layer)
        for layer in wanted:
            _check_content(store, layer, report)
        sent = 0
        for layer in wanted:
            sources = list(_other_repositories(store, reference, layer))
            report.begin(layer, "sending")
            upload = Upload(client, reference.repository, layer, store.path(layer), report)
            sent += upload.run(sources)
            report.end("there already, under another model" if upload.mounted else "sent")
        digest = _put_manifest(client, reference, data)
    kept = max(0, sum(layer.size for layer in blobs) - sent)
    return PushResult(reference.name, digest, sent, kept)


def _check_present(store: BlobStore, blobs: list[Layer], name: ModelName) -> None:
    problems = []
    for layer in blobs:
        path = store.path(layer)
        try:
            size = path.stat().st_size
        except OSError as error:
            problems.append(f"{path}: {error.strerror} ({layer.kind})")
            continue
        if size != layer.size:
            problems.append(f"{path}: has {size} bytes, not the {layer.size} of its manifest ({layer.kind})")
    if problems:
        raise GgtuneError(f"{name} is not whole in this store; nothing was sent. " + "; ".join(problems))


def _check_content(store: BlobStore, layer: Layer, report: Report) -> None:
    done = 0

    def on_bytes(n: int) -> None:
        nonlocal done
        done += n
        report.at(done)

    report.begin(layer, "checking")
    try:
        right = store.holds(layer, on_bytes)
    except OSError as error:
        raise GgtuneError(f"{store.path(layer)}: can't be read: {error.strerror}.") from None
    report.end("")
    if not right:
        raise GgtuneError(
            f"{store.path(layer)}: is damaged: its content does not have the digest of its name. Nothing was sent. "
            "Package or pull the model again."
        )


def _has(client: RegistryClient, layer: Layer) -> bool:
    answer = client.request("HEAD", client.url(f"blobs/{layer.digest}"), ok=(200, 404))
    length = byte_count(answer.headers, "content-length")
    if answer.status == 200 and length not in (None, layer.size):
        raise RegistryError(
            f"{client.host} has {length} bytes under the digest of {layer}, not {layer.size}: its copy is damaged."
        )
    return answer.status == 200


def _other_repositories(store: BlobStore, reference: Reference, layer: Layer) -> Iterator[str]:
    """Models that lie in the same registry, by this store, and share the blob: a base and its adapters."""
    for repository, data in store.manifests(reference.name.host):
        if repository != reference.repository and layer.digest.encode() in data:
            yield repository


def _put_manifest(client: RegistryClient, reference: Reference, data: bytes) -> str:
    url = client.url(f"manifests/{reference.name.tag}")
    answer = client.request("PUT", url, ok=(200, 201, 202), headers={"Content-Type": MANIFEST_TYPE}, content=data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    promised = answer.headers.get("docker-content-digest", digest)
    if promised.startswith("sha256:") and promised != digest:
        raise RegistryError(
            f"{client.host} stored another manifest than it was sent: {promised[:80]!a} instead of {digest}."
        )
    return digest
