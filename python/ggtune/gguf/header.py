"""What Ollama's manifest and templates need to know of a GGUF file, read from its header alone."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf

from ggtune.errors import ModelError
from ggtune.gguf.asked_with import ASKED_WITH
from ggtune.gguf.structure import Structure, read_structure
from ggtune.gguf.vocabulary import SpecialTokens, read_special_tokens

_LICENSE_KEYS = ("general.license", "general.license.name", "general.license.link")


@dataclass(frozen=True)
class GgufHeader:
    """Metadata of one GGUF file; texts are None where the file has no such key."""

    architecture: str
    kind: str  # general.type: "model", "adapter", ...
    adapter_kind: str | None  # adapter.type: "lora"
    n_params: int
    file_type: str  # "Q5_K_M"; "unknown" where the file does not say
    chat_template: str | None
    special_tokens: SpecialTokens
    asked_with: Mapping[str, str]  # template and system text of its training, where it says so (AskedWith)
    license: str | None  # an identifier mostly ("apache-2.0"), with name and link where the file has them


def read_header(path: Path) -> GgufHeader:
    """Read and check a GGUF file's header; tensor data stays on disk.

    Raises :class:`ModelError` where the file is missing, no GGUF, truncated, or one part of a split model.
    """
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file.")
    try:
        return _header(path, read_structure(path))
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror}.") from None
    except (ValueError, struct.error):  # a text that is not UTF-8, a file that has become shorter
        raise ModelError(f"{path}: the GGUF file is truncated or damaged. Fetch or write it again.") from None


def _header(path: Path, structure: Structure) -> GgufHeader:
    architecture = _text(structure, "general.architecture")
    if architecture is None:
        raise ModelError(f"{path}: the GGUF file does not name its architecture (general.architecture).")
    if (_integer(structure, "split.count") or 1) > 1:
        raise ModelError(f"{path}: one part of a split model; Ollama takes one file. Join them: gguf-split --merge.")
    return GgufHeader(
        architecture=architecture,
        kind=_text(structure, "general.type") or "model",
        adapter_kind=_text(structure, "adapter.type"),
        n_params=sum(math.prod(tensor.shape) for tensor in structure.tensors),
        file_type=_file_type(_integer(structure, "general.file_type")),
        chat_template=_text(structure, "tokenizer.chat_template"),
        special_tokens=read_special_tokens(structure),
        asked_with={key: text for key in ASKED_WITH if (text := _text(structure, f"ggtune.{key}")) is not None},
        license="\n".join(text for key in _LICENSE_KEYS if (text := _text(structure, key))) or None,
    )


def _text(structure: Structure, key: str) -> str | None:
    value = structure.values.get(key)
    if isinstance(value, bytes):
        raise ValueError(f"{key} is not UTF-8")
    return value if isinstance(value, str) else None


def _integer(structure: Structure, key: str) -> int | None:
    value = structure.values.get(key)
    return value if isinstance(value, int) else None


def _file_type(value: int | None) -> str:
    if value not in {file_type.value for file_type in gguf.LlamaFileType}:
        return "unknown"
    name: str = gguf.LlamaFileType(value).name
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")
