"""Token samples of a data set: one array for all tokens, in memory or, where there are very many, in a file."""

from __future__ import annotations

import copy
import os
import tempfile
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import IO, Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ggtune.data.samples import FloatArray, Sample
from ggtune.data.tokenization import IntArray
from ggtune.errors import DataError

IN_MEMORY_TOKENS = 1 << 22  # more than these are written to a file
_IN_MEMORY_ROWS = 1 << 16  # of a column that is still written
_MOST_WEIGHTS = 256
_Scalar = TypeVar("_Scalar", np.int32, np.uint8)


class FileValues(Generic[_Scalar]):
    """Values in a file, read when they are asked for: mapped memory would count as the process's own."""

    def __init__(self, file: IO[bytes], dtype: type[_Scalar], length: int, offset: int = 0) -> None:
        """``offset``: bytes in front of the first value. The file is kept as long as this lives, also when closed."""
        self._descriptor, self._length, self._offset = os.dup(file.fileno()), length, offset
        weakref.finalize(self, os.close, self._descriptor)
        self._dtype: np.dtype[_Scalar] = np.dtype(dtype)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> NDArray[_Scalar]:
        """Read a part (without a step). Raises :class:`DataError` where the file has become shorter."""
        begin, end, _ = part.indices(self._length)
        size = self._dtype.itemsize
        n_bytes = max(0, end - begin) * size
        at = self._offset + begin * size
        found = os.pread(self._descriptor, n_bytes, at)
        while len(found) < n_bytes:  # a read may stop early
            more = os.pread(self._descriptor, n_bytes - len(found), at + len(found))
            if not more:
                raise DataError("The file of the token samples has become shorter while it was in use.")
            found += more
        return np.frombuffer(found, self._dtype)


class Column:
    """One number for each sample, of very many in a file until all are there: then nothing else is in memory."""

    def __init__(self, typecode: str) -> None:
        """``typecode``: that of :class:`array.array`."""
        self._values = array(typecode)
        self._file: IO[bytes] | None = None
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def append(self, value: int) -> None:
        """Add a number."""
        self._values.append(value)
        self._n += 1
        if len(self._values) >= _IN_MEMORY_ROWS:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            # removed by the system when it is closed, at the latest with the process
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._values.tofile(self._file)
        self._values = array(self._values.typecode)

    def values(self) -> NDArray[Any]:
        """Give all of them; nothing is added any more. Shape ``(n,)``."""
        if self._file is None:
            return _numbers(self._values, np.dtype(self._values.typecode))
        self._spill()
        with self._file as file:
            file.seek(0)
            return np.fromfile(file, np.dtype(self._values.typecode))


class SampleStore(Sequence[Sample]):
    """Samples by their number. A part of a store (:meth:`take`) has the same arrays."""

    def __init__(
        self,
        tokens: IntArray | FileValues[np.int32],
        weight_ids: NDArray[np.uint8] | FileValues[np.uint8],
        weights: FloatArray,
        ends: NDArray[np.uint32],
        n_targets: IntArray,
        n_prompt: IntArray,
        rows: NDArray[np.uint32],
    ) -> None:
        """``ends[i]``: tokens of all samples up to sample i, modulo 2^32; ``weights[weight_ids]``: tokens' weights."""
        self.tokens, self.weight_ids, self.weights = tokens, weight_ids, weights
        self.ends, self._n_targets, self._n_prompt, self._rows = ends, n_targets, n_prompt, rows
        self._wraps: list[int] = (np.flatnonzero(ends[1:] < ends[:-1]) + 1).tolist()
        self._numbers: NDArray[np.int64] | None = None  # None: all

    def __len__(self) -> int:
        return len(self.ends if self._numbers is None else self._numbers)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> SampleStore: ...
    def __getitem__(self, index: int | slice) -> Sample | SampleStore:
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        number = range(len(self))[index] if self._numbers is None else int(self._numbers[index])
        begin, end = (self._end(number - 1) if number else 0), self._end(number)
        return Sample(
            self.tokens[begin:end],
            self.weights[self.weight_ids[begin:end]],
            int(self._n_prompt[number]),
            int(self._rows[number]),
        )

    def _end(self, number: int) -> int:
        return int(self.ends[number]) + (bisect_right(self._wraps, number) << 32)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def take(self, numbers: NDArray[Any]) -> SampleStore:
        """Give the samples with these numbers, in this order."""
        part = copy.copy(self)
        part._numbers = numbers if self._numbers is None else self._numbers[numbers]
        return part

    def blocks(self, begin: int, end: int) -> Iterator[bytes]:
        """Give the bytes of the samples ``begin`` to ``end`` of the whole store: lengths, tokens, weights."""
        first, last = (self._end(begin - 1) if begin else 0), (self._end(end - 1) if end else 0)
        yield np.diff(self.ends[begin:end], prepend=np.uint32(first & 0xFFFFFFFF)).tobytes()
        for start in range(first, last, IN_MEMORY_TOKENS):
            stop = min(last, start + IN_MEMORY_TOKENS)
            yield self.tokens[start:stop].tobytes()
            yield self.weights[self.weight_ids[start:stop]].tobytes()

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample, shape ``(n,)``."""
        lengths = np.diff(self.ends, prepend=np.uint32(0))
        return (lengths if self._numbers is None else lengths[self._numbers]).astype(np.int64)

    @property
    def n_targets(self) -> IntArray:
        """Tokens of each sample whose weight is not 0, shape ``(n,)``."""
        return self._n_targets if self._numbers is None else self._n_targets[self._numbers]

    @property
    def n_prompts(self) -> IntArray:
        """Tokens of each sample's prompt, shape ``(n,)``."""
        return self._n_prompt if self._numbers is None else self._n_prompt[self._numbers]

    @property
    def rows(self) -> NDArray[np.uint32]:
        """Row of each sample in the data (as ``LoadReport`` numbers them), shape ``(n,)``."""
        return self._rows if self._numbers is None else self._rows[self._numbers]


def lengths_of(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """Tokens of each sample, shape ``(n,)``, without making samples where a store knows them."""
    if isinstance(samples, SampleStore):
        return samples.lengths
    return np.array([len(sample.tokens) for sample in samples], np.int64)


def n_targets_of(samples: Sequence[Sample]) -> NDArray[Any]:
    """Tokens of each sample whose weight is not 0, shape ``(n,)``."""
    if isinstance(samples, SampleStore):
        return samples.n_targets
    return np.array([np.count_nonzero(sample.weights) for sample in samples], np.int64)


class StoreBuilder:
    """Takes samples one after another."""

    def __init__(self) -> None:
        self._tokens, self._weight_ids = array("i"), array("B")
        self._weights: dict[float, int] = {0.0: 0, 1.0: 1}
        self._ends, self._rows = Column("I"), Column("I")
        self._n_targets, self._n_prompt = Column("i"), Column("i")
        self._files: tuple[IO[bytes], IO[bytes]] | None = None
        self._n_tokens = 0

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, sample: Sample) -> None:
        """Add a sample. Raises :class:`DataError` for more than 256 different weights."""
        self._tokens.frombytes(np.ascontiguousarray(sample.tokens, dtype=np.int32).tobytes())
        self._weight_ids.frombytes(self._ids_of(sample.weights).tobytes())
        self._n_tokens += len(sample.tokens)
        self._ends.append(self._n_tokens & 0xFFFFFFFF)
        self._n_targets.append(int(np.count_nonzero(sample.weights)))
        self._n_prompt.append(sample.n_prompt)
        self._rows.append(sample.row)
        if len(self._tokens) >= IN_MEMORY_TOKENS:
            self._spill()

    def _ids_of(self, weights: FloatArray) -> NDArray[np.uint8]:
        ids: NDArray[np.uint8] = (weights == 1).astype(np.uint8)
        other = weights != ids
        if other.any():
            for weight in np.unique(weights[other]):
                ids[weights == weight] = self._id_of(float(weight))
        return ids

    def _id_of(self, weight: float) -> int:
        found = self._weights.get(weight)
        if found is None:
            if len(self._weights) == _MOST_WEIGHTS:
                raise DataError(
                    f"its weight {weight:g} is one too many: there may be {_MOST_WEIGHTS} different ones in all the "
                    "data. Round them, to two digits, say"
                )
            found = self._weights[weight] = len(self._weights)
        return found

    def _spill(self) -> None:
        if self._files is None:
            # removed by the system when it is closed, at the latest with the process
            self._files = (tempfile.TemporaryFile(), tempfile.TemporaryFile())  # noqa: SIM115
        for file, values in zip(self._files, (self._tokens, self._weight_ids), strict=True):
            values.tofile(file)
        self._tokens, self._weight_ids = array("i"), array("B")

    def build(self) -> SampleStore:
        """Finish: nothing is added any more."""
        tokens: IntArray | FileValues[np.int32] = _numbers(self._tokens, np.int32)
        ids: NDArray[np.uint8] | FileValues[np.uint8] = _numbers(self._weight_ids, np.uint8)
        if self._files is not None:
            self._spill()
            with self._files[0] as token_file, self._files[1] as id_file:
                token_file.flush()
                id_file.flush()
                tokens = FileValues(token_file, np.int32, self._n_tokens)
                ids = FileValues(id_file, np.uint8, self._n_tokens)
        return SampleStore(
            tokens,
            ids,
            np.array(list(self._weights), np.float32),
            self._ends.values(),
            self._n_targets.values(),
            self._n_prompt.values(),
            self._rows.values(),
        )


def _numbers(values: array[Any], dtype: Any) -> NDArray[Any]:
    """Give the values without a copy."""
    return np.frombuffer(values, dtype) if values else np.zeros(0, dtype)
