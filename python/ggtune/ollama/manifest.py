"""A model's manifest: which blobs it is made of.

The format is Docker's image manifest, version 2, schema 2, with Ollama's layer types:
https://distribution.github.io/distribution/spec/manifest-v2-2/
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from ggtune.errors import GgtuneError

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_TYPE = "application/vnd.ollama.image."  # followed by model, adapter, template, system, license, params, messages
OCI_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Layer:
    """One blob as the manifest names it."""

    media_type: str
    digest: str  # "sha256:<64 hex digits>"
    size: int  # bytes

    @property
    def kind(self) -> str:
        """``model``, ``adapter``, ``template``, ... or ``config``."""
        return "config" if self.media_type == CONFIG_TYPE else self.media_type.rpartition(".")[2]

    def as_json(self) -> dict[str, str | int]:
        """Make the manifest's entry."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}

    def __str__(self) -> str:
        return f"{self.kind} {self.digest[:19]}"


@dataclass(frozen=True)
class Manifest:
    """The blobs of one model."""

    config: Layer
    layers: tuple[Layer, ...]

    def blobs(self) -> list[Layer]:
        """Every blob once (the same text can stand in two layers), the configuration last."""
        return list({layer.digest: layer for layer in (*self.layers, self.config)}.values())

    def encode(self) -> bytes:
        """Write the manifest as Ollama does."""
        return compact_json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": self.config.as_json(),
                "layers": [layer.as_json() for layer in self.layers],
            }
        )

    @classmethod
    def parse(cls, data: bytes, where: str) -> Manifest:
        """Read and check a manifest. Raises :class:`GgtuneError` for one that Ollama could not use; names ``where``."""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise GgtuneError(f"{where}: the manifest is no JSON.") from None
        if not isinstance(value, dict):
            raise GgtuneError(f"{where}: the manifest is no JSON object.")
        media_type = value.get("mediaType")
        if media_type in INDEX_TYPES or "manifests" in value:
            raise GgtuneError(f"{where}: an index of several images, not a model of Ollama.")
        if media_type == OCI_MANIFEST_TYPE:
            raise GgtuneError(
                f"{where}: an OCI image, which Ollama can't use; a model has a Docker manifest. "
                "Push it again by ggtune push or ollama push."
            )
        if value.get("schemaVersion") != 2 or media_type not in (None, MANIFEST_TYPE):
            raise GgtuneError(f"{where}: not a Docker manifest of version 2, so no model of Ollama.")
        config, layers = value.get("config"), value.get("layers")
        if not isinstance(layers, list) or not layers:
            raise GgtuneError(f"{where}: the manifest lists no layers, so it is no model of Ollama.")
        manifest = cls(_layer(config, where), tuple(_layer(layer, where) for layer in layers))
        manifest._check(where)
        return manifest

    def _check(self, where: str) -> None:
        foreign = [layer for layer in self.layers if not layer.media_type.startswith("application/vnd.ollama.")]
        if foreign or not any(layer.media_type == f"{LAYER_TYPE}model" for layer in self.layers):
            raise GgtuneError(f"{where}: not a model of Ollama, but some other image ({self.layers[0].media_type!a}).")
        sizes: dict[str, int] = {}
        for layer in (*self.layers, self.config):
            if sizes.setdefault(layer.digest, layer.size) != layer.size:
                raise GgtuneError(f"{where}: the manifest gives {layer.digest} two sizes.")


def _layer(entry: Any, where: str) -> Layer:
    if isinstance(entry, dict):
        media_type, digest, size = entry.get("mediaType"), entry.get("digest"), entry.get("size")
        if isinstance(media_type, str) and isinstance(digest, str) and _DIGEST.fullmatch(digest):  # noqa: SIM102
            if isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 62:
                return Layer(media_type, digest, size)
    raise GgtuneError(f"{where}: the manifest names a blob without media type, SHA-256 digest and size.")


def compact_json(value: object) -> bytes:
    """JSON without blanks, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
