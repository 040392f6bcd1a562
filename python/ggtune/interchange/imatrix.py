"""Importance matrices: gathered from text, and read and written as llama.cpp's ``llama-imatrix`` writes them.

Two formats, both of llama.cpp's ``tools/imatrix``. The GGUF one: ``general.type = "imatrix"``, ``imatrix.datasets``,
``imatrix.chunk_count``, ``imatrix.chunk_size``; for each weight the tensors ``<name>.in_sum2`` of NumPy shape
``(n_mat, n_in)``, the sums of squared inputs, and ``<name>.counts``, ``(n_mat, 1)``, the tokens seen. The old one
(``.dat``): the number of entries, then for each its name, a number of calls, and that many times the mean squares.
"""

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ggtune.errors import ModelError
from ggtune.gguf.io import gguf_structure, writing_gguf
from ggtune.system import resolved_threads

if TYPE_CHECKING:
    from ggtune._core import Model

FloatArray = NDArray[np.float32]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_ENTRY_BYTES = 512  # of a header, at most, for one entry's two tensors


@dataclass(frozen=True)
class ImatrixEntry:
    """Of one weight: sums of squared inputs ``(n_mat, n_in)`` and how many tokens each matrix saw ``(n_mat,)``."""

    sums: FloatArray
    counts: FloatArray

    def means(self) -> FloatArray:
        """Mean squares ``(n_mat, n_in)``; 1 for a matrix (an expert) that saw no token, as llama.cpp takes it."""
        counts = self.counts[:, None]
        return np.where(counts > 0, self.sums / np.maximum(counts, 1), 1).astype(np.float32)


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix and where it is from; ``chunk_size`` is in tokens."""

    entries: Mapping[str, ImatrixEntry]  # by the weight's name
    datasets: Sequence[str] = ()
    n_chunks: int = 0
    chunk_size: int = 0

    def means(self) -> dict[str, FloatArray]:
        """Mean squares by the weight's name, as ``quantize_model`` takes them."""
        return {name: entry.means() for name, entry in self.entries.items()}


def gather_imatrix(
    model: "Model",
    texts: Iterable[NDArray[np.int32]],
    *,
    context: int,
    threads: int = 0,
    dataset: str,
    process_output: bool = False,
) -> Imatrix:
    """Run the model over ``texts`` (token ids, each at most ``context`` of them) and sum the squares of its inputs.

    ``process_output`` takes in the output layer, which is better quantized without. Raises
    :class:`ggtune.errors.GgtuneError` where the model computes something that is no finite number.
    """
    from ggtune._native import core

    collector = core.ImatrixCollector(
        model, context=context, threads=resolved_threads(threads), process_output=process_output
    )
    n_texts = n_tokens = 0
    for tokens in texts:
        collector.add(tokens)
        n_texts += 1
        n_tokens += len(tokens)
    entries = {name: ImatrixEntry(sums, counts) for name, (sums, counts) in collector.entries().items()}
    return Imatrix(entries, [dataset], n_texts, -(-n_tokens // max(1, n_texts)))


def write_imatrix(path: str | os.PathLike[str], imatrix: Imatrix, architecture: str) -> None:
    """Write llama.cpp's GGUF format, whole or not at all. Raises :class:`ggtune.files.WriteError`."""
    n_bytes = sum(entry.sums.nbytes + entry.counts.nbytes + _ENTRY_BYTES for entry in imatrix.entries.values())
    with writing_gguf(Path(path), architecture, needed_bytes=n_bytes) as writer:
        writer.add_string("general.type", "imatrix")
        writer.add_array("imatrix.datasets", list(imatrix.datasets))
        writer.add_uint32("imatrix.chunk_count", imatrix.n_chunks)
        writer.add_uint32("imatrix.chunk_size", imatrix.chunk_size)
        for name, entry in sorted(imatrix.entries.items()):
            writer.add_tensor(name + _SUMS, np.ascontiguousarray(entry.sums, np.float32))
            writer.add_tensor(name + _COUNTS, np.ascontiguousarray(entry.counts[:, None], np.float32))


def read_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """Read either format. Raises :class:`ModelError` where the file is neither, or damaged."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
            imatrix = None if is_gguf else _LegacyReader(path, file).read()
    except OSError as error:
        raise ModelError(f"can't read {path}: {error.strerror or error}") from error
    imatrix = imatrix or _read_gguf(path)
    for name, entry in imatrix.entries.items():
        if not (np.isfinite(entry.sums).all() and (entry.sums >= 0).all() and (entry.counts >= 0).all()):
            raise ModelError(f"{path}: the importance matrix of {name} is damaged: it has to be sums of squares")
    return imatrix


def _read_gguf(path: Path) -> Imatrix:
    structure = gguf_structure(path)
    tensors = {tensor.name: tensor for tensor in structure.tensors}
    names = [name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)]
    if not names:
        raise ModelError(
            f"{path} is no importance matrix: it has no tensors *{_SUMS}. Make one with --imatrix-out or llama-imatrix"
        )
    entries = {}
    for name in names:
        if name + _COUNTS not in tensors:
            raise ModelError(f"{path} is damaged: tensor {name}{_COUNTS} is missing")
        places = tensors[name + _SUMS], tensors[name + _COUNTS]
        if {place.type_name for place in places} != {"F32"}:
            raise ModelError(f"{path} is damaged: sums and counts of {name} are not F32")
        sums, counts = map(structure.floats, places)
        if sums.size % counts.size:
            raise ModelError(f"{path} is damaged: {name} has {sums.size} sums and {counts.size} counts")
        entries[name] = ImatrixEntry(sums.reshape(counts.size, -1), counts.reshape(-1))
    return Imatrix(
        entries,
        [text.decode("utf-8", "replace") for text in structure.texts("imatrix.datasets")],
        int(structure.number("imatrix.chunk_count") or 0),
        int(structure.number("imatrix.chunk_size") or 0),
    )


class _LegacyReader:
    """Every length is checked against the file before it is read."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._left = path.stat().st_size
        file.seek(0)

    def read(self) -> Imatrix:
        entries = {}
        for _ in range(self._count("entries")):
            name = self._text(self._count("characters"))
            n_calls = self._number()
            values = np.frombuffer(self._bytes(4 * self._count("values")), "<f4")
            entries[name] = ImatrixEntry(values[None], np.array([max(1, n_calls)], np.float32))
        # what follows is optional
        n_chunks = self._number() if self._left >= 4 else 0
        length = self._number() if self._left >= 4 else 0
        dataset = self._text(length) if 0 < length <= self._left else ""
        return Imatrix(entries, [dataset] if dataset else [], max(0, n_chunks))

    def _bytes(self, n: int) -> bytes:
        if n > self._left:
            raise ModelError(f"{self._path} is no importance matrix of llama.cpp, or it is truncated")
        self._left -= n
        return self._file.read(n)

    def _number(self) -> int:
        return int(struct.unpack("<i", self._bytes(4))[0])

    def _count(self, what: str) -> int:
        n = self._number()
        if n < 1:
            raise ModelError(f"{self._path} is no importance matrix of llama.cpp: it says that it has {n} {what}")
        return n

    def _text(self, n_bytes: int) -> str:
        try:
            return self._bytes(n_bytes).decode()
        except UnicodeDecodeError:
            raise ModelError(f"{self._path} is no importance matrix of llama.cpp: a name is not UTF-8") from None
