"""Token samples of a data set: one array for all tokens, in memory or, where there are very many, in a file."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator, Sequence
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from ggtune.data.samples import FloatArray, Sample
from ggtune.data.tokenization import IntArray
from ggtune.errors import DataError

_SPILL_TOKENS = 1 << 24  # more than these are written to a file
_MOST_WEIGHTS = 256


class SampleStore(Sequence[Sample]):
    """Samples by their number. A part of a store (:meth:`take`) has the same arrays."""

    def __init__(
        self,
        tokens: IntArray,
        weight_ids: NDArray[np.uint8],
        weights: FloatArray,
        ends: NDArray[np.int64],
        n_prompt: IntArray,
        rows: NDArray[np.int64],
        numbers: NDArray[np.int64] | None = None,
    ) -> None:
        """``ends[i]``: tokens of all samples up to sample i; ``weights[weight_ids]``: the tokens' weights."""
        self._tokens, self._weight_ids, self._weights = tokens, weight_ids, weights
        self._ends, self._n_prompt, self._rows = ends, n_prompt, rows
        self._numbers = np.arange(len(ends)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> SampleStore: ...
    def __getitem__(self, index: int | slice) -> Sample | SampleStore:
        if isinstance(index, slice):
            return self.take(self._numbers[index], absolute=True)
        number = self._numbers[index]
        begin, end = (self._ends[number - 1] if number else 0), self._ends[number]
        return Sample(
            self._tokens[begin:end],
            self._weights[self._weight_ids[begin:end]],
            int(self._n_prompt[number]),
            int(self._rows[number]),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def take(self, numbers: NDArray[Any], *, absolute: bool = False) -> SampleStore:
        """Give the samples with these numbers, in this order."""
        chosen = numbers if absolute else self._numbers[numbers]
        return SampleStore(
            self._tokens, self._weight_ids, self._weights, self._ends, self._n_prompt, self._rows, chosen
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample, shape ``(n,)``."""
        return np.diff(self._ends, prepend=0)[self._numbers]


class StoreBuilder:
    """Takes samples one after another."""

    def __init__(self) -> None:
        self._tokens, self._weight_ids = array("i"), array("B")
        self._weights: dict[float, int] = {0.0: 0, 1.0: 1}
        self._ends, self._n_prompt, self._rows = array("q"), array("i"), array("q")
        self._files: tuple[IO[bytes], IO[bytes]] | None = None
        self._n_tokens = 0

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, sample: Sample) -> None:
        """Add a sample. Raises :class:`DataError` for more than 256 different weights."""
        self._tokens.frombytes(np.ascontiguousarray(sample.tokens, dtype=np.int32).tobytes())
        self._weight_ids.extend(self._id_of(weight) for weight in sample.weights.tolist())
        self._n_tokens += len(sample.tokens)
        self._ends.append(self._n_tokens)
        self._n_prompt.append(sample.n_prompt)
        self._rows.append(sample.row)
        if len(self._tokens) >= _SPILL_TOKENS:
            self._spill()

    def _id_of(self, weight: float) -> int:
        found = self._weights.get(weight)
        if found is None:
            if len(self._weights) == _MOST_WEIGHTS:
                raise DataError(f"there are more than {_MOST_WEIGHTS} different weights in the data: round them")
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
        """Finish."""
        if self._files is None:
            tokens: IntArray = np.frombuffer(self._tokens, np.int32) if self._tokens else np.zeros(0, np.int32)
            ids = np.frombuffer(self._weight_ids, np.uint8) if self._weight_ids else np.zeros(0, np.uint8)
        else:
            self._spill()
            for file in self._files:
                file.flush()
            tokens = np.memmap(self._files[0], np.int32, "r")
            ids = np.memmap(self._files[1], np.uint8, "r")
        return SampleStore(
            tokens,
            ids,
            np.array(list(self._weights), np.float32),
            np.array(self._ends, np.int64),
            np.array(self._n_prompt, np.int32),
            np.array(self._rows, np.int64),
        )
