"""Merging adapters into a base model file, with the keys that later steps read."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ggtune._native import core
from ggtune.data.samples import Sample
from ggtune.errors import GgtuneError
from ggtune.files import making_folder
from ggtune.gguf.adapter_file import check_fits, read_adapter
from ggtune.gguf.asked_with import ASKED_WITH
from ggtune.gguf.base import adapter_fingerprint, check_base
from ggtune.gguf.built_in_text import text_pieces
from ggtune.gguf.io import gguf_structure
from ggtune.system import resolved_threads

if TYPE_CHECKING:
    from ggtune._core import Model

SAME, AUTO = "same", "auto"
_TEXT_TOKENS = 512  # four times as many keep no more
_PIECE_TOKENS = 128  # of the built-in text
_LARGEST_BLOCK = 256  # weights


def merge_adapters(
    base: str,
    adapters: Sequence[tuple[str, float]],
    output: Path,
    *,
    outtype: str | None = None,
    types: Mapping[str, str] | None = None,
    seed: int = 0,
    fit: bool = True,
    trained: Sequence[Sample] = (),
    name: str | None = None,
    threads: int = 0,
    force: bool = False,
    say: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Write ``base`` with the ``adapters`` (file, factor) merged to ``output``; ``threads`` 0: all available.

    ``outtype`` None or ``"same"``: each tensor keeps its type; ``types`` are those of single tensors. ``seed`` is that
    of :func:`ggtune._core.merge`, whose counts are returned. With ``fit`` the model reads 512 tokens, half of them of
    samples that it was ``trained`` on where there are any, and scales are fitted to that; where llama.cpp can't run the
    model they are not, and ``say`` is told. The template and system text that an adapter was trained with go into the
    file as ``ggtune.template`` and ``ggtune.system``, where ``package`` finds them. Raises :class:`GgtuneError` for
    files that don't fit each other, an adapter that was trained on another base too unless ``force``.
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

    try:
        tokens, sequences = _texts(model, trained) if fit else ([], [])
        why_not = ""
    except GgtuneError as error:  # a damaged vocabulary
        tokens, sequences, why_not = [], [], str(error)
    with making_folder(output.parent):
        counts: dict[str, Any] = core.merge(
            base,
            list(adapters),
            str(output),
            outtype=None if outtype == SAME else outtype,
            types=dict(types or {}),
            scales=scales,
            seed=seed,
            tokens=tokens,
            sequences=sequences,
            metadata=metadata,
            threads=resolved_threads(threads),
        )
    why_not = why_not or counts["not_fitted"]
    if why_not:
        say(f"The merged file may have lost more than it need: its base can't be run here ({why_not}).")
    return counts


def _texts(model: "Model", trained: Sequence[Sample]) -> tuple[list[int], list[int]]:
    """Some of the samples, the same each time, and the built-in text: token ids, and the sequence of each."""
    tokens: list[int] = []
    sequences: list[int] = []

    def add(more: list[int]) -> None:
        sequences.extend([sequences[-1] + 1 if sequences else 0] * len(more))
        tokens.extend(more)

    for i in np.random.default_rng(0).permutation(len(trained)):
        if len(tokens) >= _TEXT_TOKENS // 2:
            break
        add(trained[i].tokens.tolist()[: _TEXT_TOKENS // 2 - len(tokens)])
    for piece in text_pieces(model, _TEXT_TOKENS - len(tokens), _PIECE_TOKENS):
        add(piece)
    return tokens, sequences


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
