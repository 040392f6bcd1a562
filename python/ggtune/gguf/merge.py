"""Merging adapters into a base model file, with the keys that later steps read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ggtune._native import core
from ggtune.data.samples import Sample
from ggtune.errors import GgtuneError
from ggtune.files import making_folder
from ggtune.gguf.adapter_file import check_fits, read_adapter
from ggtune.gguf.asked_with import ASKED_WITH
from ggtune.gguf.base import adapter_fingerprint, check_base
from ggtune.gguf.io import gguf_structure
from ggtune.system import resolved_threads

SAME, AUTO = "same", "auto"
_SAMPLE_TOKENS = 2048
_LARGEST_BLOCK = 256  # weights


@dataclass(frozen=True)
class TextSample:
    """A text such as the merged model will read: token ids, and the sequence that each belongs to."""

    tokens: list[int] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "TextSample":
        """Take some of the samples at random, the same each time, up to 2,048 tokens."""
        tokens: list[int] = []
        sequences: list[int] = []
        for n, i in enumerate(np.random.default_rng(0).permutation(len(samples))):
            more = samples[i].tokens.tolist()[: _SAMPLE_TOKENS - len(tokens)]
            if len(more) < 2:
                break
            tokens += more
            sequences += [n] * len(more)
        return cls(tokens, sequences)


def merge_adapters(
    base: str,
    adapters: Sequence[tuple[str, float]],
    output: Path,
    *,
    outtype: str | None = None,
    types: Mapping[str, str] | None = None,
    seed: int = 0,
    sample: TextSample | None = None,
    name: str | None = None,
    threads: int = 0,
    force: bool = False,
    say: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Write ``base`` with the ``adapters`` (file, factor) merged to ``output``; ``threads`` 0: all available.

    ``outtype`` None or ``"same"``: each tensor keeps its type; ``types`` are those of single tensors. ``seed`` and
    ``sample`` are those of :func:`ggtune._core.merge`, whose counts are returned. The template and system text that an
    adapter was trained with go into the file as ``ggtune.template`` and ``ggtune.system``, where ``package`` finds
    them. Raises :class:`GgtuneError` for files that don't fit each other, an adapter that was trained on another base
    too unless ``force``.
    """
    gguf_structure(base)
    if output.exists() and output.samefile(base):
        raise GgtuneError(f"{output} is the base model itself: give another --model-out")
    contents = [read_adapter(path) for path, _ in adapters]
    if not contents:
        raise GgtuneError("there is no adapter to merge")
    model = core.Model(base)
    metadata = {
        "general.name": name or output.stem,
        "general.finetune": Path(adapters[0][0]).stem,
        "ggtune.merged_adapter": ",".join(adapter_fingerprint(content) for content in contents),
        "ggtune.merge_seed": str(seed),
    }
    for (path, _), content in zip(adapters, contents, strict=True):
        check_fits(path, content, model)
        for warning in check_base(path, base, force=force, content=content):
            say(warning)
        metadata.update({f"ggtune.{key}": content.notes[key] for key in ASKED_WITH if key in content.notes})
    scales = {linear.name: linear.scale for linear in model.linears() if linear.scale}
    del model
    sample = sample or TextSample()
    with making_folder(output.parent):
        return core.merge(
            base,
            list(adapters),
            str(output),
            outtype=None if outtype == SAME else outtype,
            types=dict(types or {}),
            scales=scales,
            seed=seed,
            tokens=sample.tokens,
            sequences=sample.sequences,
            metadata=metadata,
            threads=resolved_threads(threads),
        )


def check_outtype(outtype: str | None) -> None:
    """Raise :class:`GgtuneError` for a type that tensors can't be written in."""
    if outtype is not None and outtype not in (SAME, AUTO):
        core.quantize(outtype, np.zeros((1, _LARGEST_BLOCK), np.float32))


def disk_bytes(base: Path, outtype: str | None) -> int:
    """Estimate what a proved merge needs on the disk: with the base's own types there are two files for a while."""
    n_bytes = base.stat().st_size
    if outtype in (None, SAME):
        return 2 * n_bytes
    bits = (
        8.5
        if outtype == AUTO
        else 8 * core.quantize(outtype, np.zeros((1, _LARGEST_BLOCK), np.float32)).size / _LARGEST_BLOCK
    )
    return max(n_bytes, int(core.Model(str(base), header_only=True).n_params * bits / 8)) + n_bytes


def retyped(counts: Mapping[str, Any]) -> str:
    """Say which tensors took another type, empty where none did."""
    changes: dict[tuple[str, str], int] = {}
    for tensor in counts["tensors"].values():
        if tensor["from"] != tensor["to"]:
            change = (tensor["from"], tensor["to"])
            changes[change] = changes.get(change, 0) + 1
    return ", ".join(f"{n} tensors {old} to {new}" for (old, new), n in sorted(changes.items()))
