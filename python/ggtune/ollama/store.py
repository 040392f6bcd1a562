"""Write a model into an Ollama store: blobs named by their SHA-256, and a manifest that lists them.

The order matters to a running server, which lists a manifest as soon as it is there and at its start deletes blobs that
no manifest names: every blob is complete before the manifest appears, and is looked for once more after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggtune.errors import ModelError
from ggtune.files import check_writable
from ggtune.gguf.header import GgufHeader, read_header
from ggtune.ollama.blobs import BlobStore, describe, store_errors
from ggtune.ollama.manifest import CONFIG_TYPE, LAYER_TYPE, Layer, Manifest, compact_json
from ggtune.ollama.names import ModelName
from ggtune.ollama.parameters import Parameters, plain_parameters

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all; each byte is hashed once, and written once where it is new."""


@dataclass(frozen=True)
class StoredModel:
    """A model that is in the store."""

    name: ModelName
    manifest: Path
    config: Layer
    layers: tuple[Layer, ...]
    written_bytes: int  # of blobs that were not there yet
    repaired: tuple[Path, ...]  # blobs whose content had not matched their name


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
    of its own; ``messages`` are (role, text). The GGUF's bytes are copied unchanged, and only where they are no blob
    yet: a base is stored once for all of its adapters. Raises :class:`GgtuneError` for a bad name or parameter, an
    unusable file, a store that can't be written, a full disk; the store then has no new model and no half-written file.
    """
    name = ModelName.parse(name) if isinstance(name, str) else name
    header = read_header(gguf_path)
    check_model_files(gguf_path, header, adapter)
    checked_params = plain_parameters(params or {})
    licenses = [license] if isinstance(license, str) else license or []
    texts = [("template", template), ("system", system), *(("license", text) for text in licenses)]
    sources: list[tuple[str, Path | bytes]] = [("model", gguf_path)]
    sources += [("adapter", adapter)] if adapter else []
    sources += [(kind, text.encode()) for kind, text in texts if text]
    sources += [("params", compact_json(checked_params))] if checked_params else []
    said = [{"role": role, "content": text} for role, text in messages]
    sources += [("messages", compact_json(said))] if said else []

    total = sum(source.stat().st_size for _, source in sources if isinstance(source, Path))
    count = _Counter(progress, 2 * total)
    with store_errors(store_dir):
        store = BlobStore(store_dir)
        contents = [describe(LAYER_TYPE + kind, source, count.add) for kind, source in sources]
        contents.append(describe(CONFIG_TYPE, compact_json(_config(header)), count.add))
        # the same text can stand in two layers: one blob
        by_digest = {content.layer.digest: content for content in contents}
        missing = [content for content in by_digest.values() if not store.path(content.layer).exists()]
        store.check_free_space(sum(content.layer.size for content in missing))
        put = [store.put(content, count.add) for content in by_digest.values()]
        manifest = Manifest(contents[-1].layer, tuple(content.layer for content in contents[:-1]))
        manifest_path = store.write_manifest(name, manifest.encode())
        for content in by_digest.values():
            # a server that started meanwhile may have deleted what no manifest named yet
            if not store.path(content.layer).exists():
                store.put(content, count.add)
    return StoredModel(
        name=name,
        manifest=manifest_path,
        config=manifest.config,
        layers=manifest.layers,
        written_bytes=sum(content.layer.size for content in missing),
        repaired=tuple(path for path in put if path is not None),
    )


def check_store(store_dir: Path, name: ModelName, needed_bytes: int) -> None:
    """Raise as :func:`write_model` would for a store that can't be written or is too full; writes nothing."""
    with store_errors(store_dir):
        for folder in (store_dir / "blobs", (store_dir / "manifests" / name.manifest_path()).parent):
            check_writable(folder)
        BlobStore(store_dir).check_free_space(needed_bytes)


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
