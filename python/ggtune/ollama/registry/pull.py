"""From a registry into an Ollama store, without Ollama."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from ggtune.ollama.blobs import BlobStore, PartialBlob, partial_blob, store_errors
from ggtune.ollama.manifest import Layer, Manifest
from ggtune.ollama.names import ModelName
from ggtune.ollama.registry.client import MANIFEST_ACCEPT, RegistryClient, TransferOptions
from ggtune.ollama.registry.errors import RegistryError, TransientError
from ggtune.ollama.registry.headers import byte_count
from ggtune.ollama.registry.reference import Reference
from ggtune.ollama.registry.report import Report

_SLOWEST_BYTES = 1 << 10  # fewer in the time that a server may be silent: it drips, and is as good as dead


@dataclass(frozen=True)
class PullResult:
    """A model that is in the store now."""

    name: ModelName
    manifest: Path
    digest: str  # of the manifest
    fetched_bytes: int
    kept_bytes: int  # of blobs that were there, whole or in part


def pull_model(
    store_dir: Path,
    reference: Reference,
    *,
    local_name: ModelName | None = None,
    options: TransferOptions | None = None,
    report: Report | None = None,
) -> PullResult:
    """Fetch what the store lacks of a model, and let it appear as ``local_name`` (its own by default).

    A blob that was fetched in part, also by a program that was killed, is gone on with. Raises :class:`GgtuneError` for
    a registry that fails or gives other bytes than it promised, a model that is not Ollama's, a store that can't be
    written, a full disk; the store then has no new model, and at most blobs that no model uses yet.
    """
    report = report or Report()
    local_name = local_name or reference.name
    with RegistryClient(reference, options or TransferOptions(), report.note) as client, store_errors(store_dir):
        data, digest = _manifest(client, reference)
        manifest = Manifest.parse(data, str(reference.name))
        pull = _Pull(client, BlobStore(store_dir), report)
        pull.blobs(manifest.blobs())
        path = pull.store.write_manifest(local_name, data)
        for layer in manifest.blobs():
            # a server that started meanwhile may have deleted what no manifest named yet
            if not pull.store.path(layer).exists():
                pull.fetch(layer)
    return PullResult(local_name, path, digest, pull.fetched_bytes, pull.kept_bytes)


def _manifest(client: RegistryClient, reference: Reference) -> tuple[bytes, str]:
    """Fetch and check the manifest's bytes, which are kept as they are."""
    answer = client.request(
        "GET", client.url(f"manifests/{reference.name.tag}"), ok=(200, 404), headers={"Accept": MANIFEST_ACCEPT}
    )
    if answer.status == 404:
        raise RegistryError(f"{client.host} has no model {reference.repository}:{reference.name.tag}.")
    digest = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
    promised = answer.headers.get("docker-content-digest", digest)
    if promised.startswith("sha256:") and promised != digest:
        raise RegistryError(f"{client.host} gave another manifest than the one whose digest it named.")
    return answer.content, digest


class _Pull:
    def __init__(self, client: RegistryClient, store: BlobStore, report: Report) -> None:
        self.store = store
        self.fetched_bytes = 0
        self.kept_bytes = 0
        self._client = client
        self._report = report

    def blobs(self, layers: list[Layer]) -> None:
        wanted = [layer for layer in layers if not self._kept(layer)]
        self.store.check_free_space(sum(layer.size - self._partial_bytes(layer) for layer in wanted))
        for layer in wanted:
            self.fetch(layer)

    def _kept(self, layer: Layer) -> bool:
        if not self.store.path(layer).exists():
            return False
        self._report.begin(layer, "checking")
        done = 0

        def on_bytes(n: int) -> None:
            nonlocal done
            done += n
            self._report.at(done)

        if not self.store.holds(layer, on_bytes):
            self._report.end("damaged, so it is fetched again")
            return False
        self.store.path(layer).touch()
        self.kept_bytes += layer.size
        self._report.end("there already")
        return True

    def _partial_bytes(self, layer: Layer) -> int:
        try:
            return min(layer.size, self.store.partial_path(layer).stat().st_size)
        except FileNotFoundError:
            return 0

    def fetch(self, layer: Layer) -> None:
        def on_wait() -> None:
            self._report.note(f"Another process is fetching {layer}; waiting for it.")

        with partial_blob(self.store, layer, on_wait=on_wait) as partial:
            if self.store.holds(layer):  # by that other process
                self.kept_bytes += layer.size
                partial.restart()
                return
            self._report.begin(layer, "fetching")
            resumed_bytes = partial.size
            self._fill(layer, partial)
            if not partial.is_right() and resumed_bytes:
                self._report.note(f"What was there of {layer} is damaged; fetching it anew.")
                resumed_bytes = 0
                partial.restart()
                self._fill(layer, partial)
            if not partial.is_right():
                partial.restart()
                raise _other_bytes(self._client, layer)
            partial.finish()
            self.kept_bytes += resumed_bytes
        self._report.end("fetched")

    def _fill(self, layer: Layer, partial: PartialBlob) -> None:
        retries = self._client.retries()
        self._report.at(partial.size)
        while partial.size < layer.size:
            before = partial.size
            try:
                self._try(layer, partial)
            except TransientError as error:
                if partial.size > before:
                    retries.progressed()
                retries.wait(error)

    def _try(self, layer: Layer, partial: PartialBlob) -> None:
        """Fetch the rest in one request."""
        url = self._client.url(f"blobs/{layer.digest}")
        headers = {"Range": f"bytes={partial.size}-"} if partial.size else {}
        with self._client.stream("GET", url, ok=(200, 206, 404, 416), headers=headers) as response:
            host = response.url.host
            if response.status_code == 404:
                raise RegistryError(f"{host} lacks {layer}, which the model's manifest names.")
            if response.status_code == 416 or (
                response.status_code == 206 and not _goes_on(response.headers, partial.size)
            ):
                partial.restart()
                raise TransientError(f"{host} can't go on within {layer}; it is fetched from its start.")
            if response.status_code == 200 and partial.size:
                partial.restart()
            if byte_count(response.headers, "content-length") not in (None, layer.size - partial.size):
                raise _other_bytes(self._client, layer)
            began, began_at = time.monotonic(), partial.size
            for piece in response.iter_raw():
                if partial.size + len(piece) > layer.size:
                    partial.restart()
                    raise _other_bytes(self._client, layer)
                partial.write(piece)
                self.fetched_bytes += len(piece)
                self._report.at(partial.size)
                now = time.monotonic()
                if now - began > self._client.options.timeout_s:
                    if partial.size - began_at < _SLOWEST_BYTES:
                        raise TransientError(f"{host} hardly sends anything.")
                    began, began_at = now, partial.size
        if partial.size < layer.size:
            raise TransientError(f"{host} ended {layer} early.")


def _goes_on(headers: httpx.Headers, offset: int) -> bool:
    match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]+|\*)", headers.get("content-range", ""))
    return match is not None and int(match[1]) == offset


def _other_bytes(client: RegistryClient, layer: Layer) -> RegistryError:
    return RegistryError(
        f"{client.host} gives other bytes for {layer} than the model's manifest names. They were not kept; the "
        "registry's copy is damaged or was tampered with."
    )
