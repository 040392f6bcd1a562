"""Ollama model names: ``host/namespace/model:tag``, where all but the model has a default."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from ggtune.errors import GgtuneError

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

# allowed characters after the first, which is a letter, a digit or an underscore; longest length
_PART_RULES = {
    "host": (r"A-Za-z0-9_.:-", 350),
    "namespace": (r"A-Za-z0-9_-", 80),
    "model": (r"A-Za-z0-9_.-", 80),
    "tag": (r"A-Za-z0-9_.-", 80),
}


@dataclass(frozen=True)
class ModelName:
    """A validated name. ``str`` leaves out the parts that have their default."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Split and check a name. Raises :class:`GgtuneError` that says which part is wrong."""
        path, _, last = text.rpartition("/")
        model, colon, tag = last.partition(":")
        namespace_path, _, namespace = path.rpartition("/")
        if not path and text.startswith("/"):
            raise GgtuneError(f'"{text}" is not a model name: it starts with a slash.')
        parts = {
            "host": namespace_path if "/" in path else DEFAULT_HOST,
            "namespace": namespace if path else DEFAULT_NAMESPACE,
            "model": model,
            "tag": tag if colon else DEFAULT_TAG,
        }
        for part, value in parts.items():
            allowed, longest = _PART_RULES[part]
            if re.fullmatch(f"[A-Za-z0-9_][{allowed}]{{0,{longest - 1}}}", value):
                continue
            hint = ""
            if part == "namespace" and (":" in value or "." in value):
                hint = f" A registry's host is followed by a namespace: {value}/NAMESPACE/{last}."
            raise GgtuneError(
                f'"{text}" is not a model name: its {part} "{value}" must have 1 to {longest} characters, the first a '
                f"letter, a digit or _, the others from {allowed}.{hint}"
            )
        return cls(**parts)

    def manifest_path(self) -> PurePosixPath:
        """Where the manifest lies below the store's ``manifests`` folder."""
        return PurePosixPath(self.host, self.namespace, self.model, self.tag)

    def __str__(self) -> str:
        text = self.model
        if self.host != DEFAULT_HOST:
            text = f"{self.host}/{self.namespace}/{text}"
        elif self.namespace != DEFAULT_NAMESPACE:
            text = f"{self.namespace}/{text}"
        return text if self.tag == DEFAULT_TAG else f"{text}:{self.tag}"
