"""The adapters of a package: checked against their base, and made one file, since Ollama takes one ADAPTER."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggtune.errors import GgtuneError
from ggtune.gguf.adapter_file import AdapterFile, read_adapter
from ggtune.gguf.base import check_base, check_pairs
from ggtune.gguf.stack import STACKED, stacked

STACKED_NAME = "stacked-adapter.gguf"


@dataclass(frozen=True)
class Adapters:
    """What a package takes for its ADAPTER."""

    path: Path  # the file; where ``sum`` is one, it is still to be written
    sum: AdapterFile | None
    notes: Mapping[str, str]  # of the first: how it was trained
    remarks: tuple[str, ...]


def read_adapters(
    base: Path, adapters: Sequence[tuple[Path, float]], folder: Path | None, *, force: bool = False
) -> Adapters | None:
    """Read and check ``adapters`` (file, factor); None for none of them.

    One with the factor 1 is taken as it is; anything else becomes their sum, for a file in ``folder``. Raises
    :class:`GgtuneError` for adapters that don't fit ``base`` or each other, and where the file would replace another.
    """
    if not adapters:
        return None
    contents = [(path, read_adapter(path), scale) for path, scale in adapters]
    remarks: list[str] = []
    for path, content, _ in contents:
        check_pairs(path, content, base)
        remarks += check_base(path, base, content=content, force=force)
    first_path, first, first_scale = contents[0]
    for path, content, _ in contents[1:]:
        others = {key: content.notes.get(key) for key in ("template", "system")}
        if any(value != first.notes.get(key) for key, value in others.items()):
            remarks.append(
                f"{path} was trained with another template or system text than {first_path}, whose are used."
            )
    if len(contents) == 1 and first_scale == 1:
        return Adapters(first_path, None, first.notes, tuple(remarks))
    total = stacked([(str(path), content, scale) for path, content, scale in contents], force=force)
    if folder is None:
        raise GgtuneError("Several adapters, or one with a factor, become a new file: give a folder for it.")
    out = folder / STACKED_NAME
    if any(out.exists() and out.samefile(path) for path, _ in adapters):
        raise GgtuneError(f"{out} is one of the adapters itself: give it another name, or another --out.")
    if out.exists() and not (out.is_file() and STACKED in read_adapter(out).notes):
        raise GgtuneError(f"{out} is there and was not made by stacking: move it away, or give another --out.")
    return Adapters(out, total, first.notes, tuple(remarks))
