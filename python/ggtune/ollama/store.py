"""Write a model into an Ollama store: blobs named by their SHA-256, and a manifest that lists them.

The order matters to a running server, which lists a manifest as soon as it is there and at its start deletes blobs that
no manifest names: every blob is complete before the manifest appears, and is looked for once more after it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ggtune.errors import GgtuneError, ModelError
from ggtune.files import WriteError, check_writable, free_bytes, replacing
from ggtune.ollama.gguf_header import GgufHeader, read_header
from ggtune.ollama.names import ModelName
from ggtune.ollama.parameters import Parameters, check_parameters
from ggtune.system import format_bytes

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_TYPE = "application/vnd.ollama.image."  # followed by model, adapter, template, system, license, params, messages

_CHUNK_BYTES = 4 << 20
_RESERVE_BYTES = 16 << 20  # left free on the store's disk, for the manifest and everybody else

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all; each byte is hashed once, and written once where it is new."""


@dataclass(frozen=True)
class Layer:
    """One blob as the manifest names it."""

    media_type: str
    digest: str  # "sha256:<64 hex digits>"
    size: int  # bytes

    def as_json(self) -> dict[str, str | int]:
        """Make the manifest's entry."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class StoredModel:
    """A model that is in the store."""

    name: ModelName
    manifest: Path
    config: Layer
    layers: tuple[Layer, ...]
    written_bytes: int  # of blobs that were not there yet
    repaired: tuple[Path, ...]  # blobs whose content had not matched their name


@dataclass(frozen=True)
class _Content:
    """A layer's bytes, in memory or in a file, before they are a blob."""

    layer: Layer
    source: Path | bytes


def default_store() -> Path:
    """``$OLLAMA_MODELS``, else ``~/.ollama/models``; Ollama's Linux service has one of its own."""
    configured = os.environ.get("OLLAMA_MODELS", "").strip()
    return Path(configured) if configured else Path.home() / ".ollama" / "models"


def write_model(
    store_dir: Path,
    name: ModelName | str,
    gguf_path: Path,
    *,
    template: str | None = None,
    system: str | None = None,
    license: str | Sequence[str] | None = None,  # noqa: A002 - the layer's name
    params: Parameters | None = None,
    messages: Sequence[tuple[str, str]] = (),
    adapter: Path | None = None,
    progress: Progress | None = None,
) -> StoredModel:
    """Put a GGUF model (and a LoRA adapter) into the store under ``name``, replacing what had that name.

    ``template`` is Go text/template; ``params`` as in :mod:`ggtune.ollama.parameters`; each ``license`` text is a layer
    of its own; ``messages`` are (role, text). The GGUF's bytes are copied unchanged. Raises :class:`GgtuneError` for a
    bad name or parameter, an unusable file, a store that can't be written, a full disk; the store then has no new model
    and no half-written file.
    """
    name = ModelName.parse(name) if isinstance(name, str) else name
    header = read_header(gguf_path)
    check_model_files(gguf_path, header, adapter)
    checked_params = check_parameters(params or {})
    licenses = [license] if isinstance(license, str) else license or []
    texts = [("template", template), ("system", system), *(("license", text) for text in licenses)]
    sources: list[tuple[str, Path | bytes]] = [("model", gguf_path)]
    sources += [("adapter", adapter)] if adapter else []
    sources += [(kind, text.encode()) for kind, text in texts if text]
    sources += [("params", _compact_json(checked_params))] if checked_params else []
    said = [{"role": role, "content": text} for role, text in messages]
    sources += [("messages", _compact_json(said))] if said else []

    total = sum(source.stat().st_size for _, source in sources if isinstance(source, Path))
    count = _Counter(progress, 2 * total)
    with _user_errors(store_dir):
        store_dir = store_dir.absolute()
        blobs = store_dir / "blobs"
        manifest_path = store_dir / "manifests" / name.manifest_path()
        contents = [_describe(LAYER_TYPE + kind, source, count) for kind, source in sources]
        contents.append(_describe(CONFIG_TYPE, _compact_json(_config(header)), count))
        # the same text can stand in two layers: one blob
        by_digest = {content.layer.digest: content for content in contents}
        missing = [content for content in by_digest.values() if not _blob_path(blobs, content.layer).exists()]
        _check_free_space(store_dir, sum(content.layer.size for content in missing))
        repaired = tuple(path for content in by_digest.values() if (path := _put(blobs, content, count)) is not None)
        layers = tuple(content.layer for content in contents[:-1])
        manifest = _manifest(contents[-1].layer, layers)
        # in the store's root: a file in the tag's folder would be listed as a model
        beside = replacing(manifest_path, needed_bytes=len(manifest), folder=store_dir, prefix=".manifest-", mode=0o644)
        with beside as temporary:
            temporary.write_bytes(manifest)
        for content in by_digest.values():
            # a server that started meanwhile may have deleted what no manifest named yet
            if not _blob_path(blobs, content.layer).exists():
                _put(blobs, content, count)
    return StoredModel(
        name=name,
        manifest=manifest_path,
        config=contents[-1].layer,
        layers=layers,
        written_bytes=sum(content.layer.size for content in missing),
        repaired=repaired,
    )


def check_store(store_dir: Path, name: ModelName, needed_bytes: int) -> None:
    """Raise as :func:`write_model` would for a store that can't be written or is too full; writes nothing."""
    with _user_errors(store_dir):
        for folder in (store_dir / "blobs", (store_dir / "manifests" / name.manifest_path()).parent):
            check_writable(folder)
        _check_free_space(store_dir, needed_bytes)


def check_model_files(gguf_path: Path, header: GgufHeader, adapter: Path | None) -> None:
    """Raise :class:`ModelError` where the model is none, or the adapter no LoRA for it: Ollama checks neither."""
    if header.kind == "adapter":
        raise ModelError(
            f"{gguf_path}: an adapter, not a model. Merge it first: ggtune export-lora. Or give its base with it: "
            f"ggtune package --model BASE --lora {gguf_path}"
        )
    if adapter is None:
        return
    found = read_header(adapter)
    if found.kind != "adapter" or found.adapter_kind != "lora":
        kinds = f"general.type {found.kind}, adapter.type {found.adapter_kind}"
        raise ModelError(f"{adapter}: not a LoRA adapter ({kinds}).")
    if found.architecture != header.architecture:
        raise ModelError(
            f"{adapter}: an adapter for a {found.architecture} model, but {gguf_path} is a {header.architecture} model."
        )


class _Counter:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress = progress
        self.total = total
        self.done = 0

    def add(self, n_bytes: int) -> None:
        self.done += n_bytes
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)


def _chunks(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _describe(media_type: str, source: Path | bytes, count: _Counter) -> _Content:
    digest = hashlib.sha256()
    size = 0
    for chunk in _chunks(source):
        digest.update(chunk)
        size += len(chunk)
        if isinstance(source, Path):
            count.add(len(chunk))
    return _Content(Layer(media_type, f"sha256:{digest.hexdigest()}", size), source)


def _blob_path(blobs: Path, layer: Layer) -> Path:
    return blobs / layer.digest.replace(":", "-")


def _put(blobs: Path, content: _Content, count: _Counter) -> Path | None:
    """Make sure that the blob is there and right. Returns its path where one was there with another content."""
    path = _blob_path(blobs, content.layer)
    damaged = False
    if path.exists():
        if _describe("", path, count).layer.digest == content.layer.digest:
            path.touch()
            return None
        damaged = True
    digest = hashlib.sha256()
    # Ollama's service runs as a user of its own, and clears away what starts like a blob and is none
    beside = replacing(path, needed_bytes=content.layer.size, prefix="sha256-", mode=0o644)
    with beside as temporary, temporary.open("wb") as file:
        for chunk in _chunks(content.source):
            file.write(chunk)
            digest.update(chunk)
            if isinstance(content.source, Path):
                count.add(len(chunk))
        if isinstance(content.source, Path) and f"sha256:{digest.hexdigest()}" != content.layer.digest:
            raise GgtuneError(f"{content.source}: changed while it was copied. Try again when nothing writes to it.")
    return path if damaged else None


def _check_free_space(store_dir: Path, needed_bytes: int) -> None:
    free = free_bytes(store_dir)
    if needed_bytes and needed_bytes + _RESERVE_BYTES > free:
        raise GgtuneError(
            f"{store_dir}: the disk has too little room: {format_bytes(needed_bytes + _RESERVE_BYTES)} needed "
            f"({format_bytes(_RESERVE_BYTES)} of them stay free), {format_bytes(free)} free. "
            "Make room, or name a store on another disk."
        )


@contextmanager
def _user_errors(store_dir: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, WriteError) as error:
        reason = f"{error.strerror} ({error.filename})" if isinstance(error, OSError) and error.filename else error
        raise GgtuneError(
            f"{store_dir}: can't write to this Ollama store: {reason}. Name another one, make room, or run as the user "
            "that it belongs to."
        ) from error


def _compact_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _manifest(config: Layer, layers: tuple[Layer, ...]) -> bytes:
    return _compact_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config.as_json(),
            "layers": [layer.as_json() for layer in layers],
        }
    )


def _config(header: GgufHeader) -> dict[str, str | list[str]]:
    return {
        "model_format": "gguf",
        "model_family": header.architecture,
        "model_families": [header.architecture],
        "model_type": parameter_count(header.n_params),
        "file_type": header.file_type,
        "architecture": "amd64",
        "os": "linux",
    }


def parameter_count(n_params: int) -> str:
    """Write a number of parameters as Ollama shows it: ``13.0B``, ``271M``, ``10.5M``, ``11K``."""
    if n_params >= 10**9:
        return f"{n_params / 1e9:.1f}B"
    if n_params >= 10**6:
        return f"{n_params / 1e6:.{0 if n_params >= 10**8 else 1}f}M"
    return f"{n_params / 1e3:.0f}K" if n_params >= 1000 else str(n_params)
