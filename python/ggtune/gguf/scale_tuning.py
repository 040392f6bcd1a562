"""Scales of a merged file, tuned until it predicts what its base with the live adapter does."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ggtune._native import core
from ggtune.data.packing import MicroBatch, pack
from ggtune.data.samples import Sample
from ggtune.data.tokenization import IntArray
from ggtune.errors import GgtuneError
from ggtune.files import replacing
from ggtune.gguf.built_in_text import text_pieces
from ggtune.gguf.io import gguf_structure
from ggtune.gguf.structure import TensorPlace
from ggtune.system import available_memory, format_bytes, resolved_threads

if TYPE_CHECKING:
    from ggtune._core import Model, ScaleTuner

_MICRO_BATCH_TOKENS = 512
_MOST_SAMPLES = 4000
_EPOCHS = 3
_RATE = 1.7e-3  # steps of the grid
_WARM_UP = 5  # steps
_FEWEST_STEPS = 8  # fewer change too little
_COPIES = 4  # of the weights, at most: as they are read or written, as they are tuned, and two for the factors
_TEACHER_BYTES = 512 << 20
_PIECE_TOKENS = 256  # of the built-in text
_USABLE_SHARE = 0.9  # of the free memory


@dataclass(frozen=True)
class Tuning:
    """What was done."""

    n_steps: int
    n_factors: int  # scales and mins
    seconds: float

    def __str__(self) -> str:
        """Name it, as the beginning of a line."""
        return f"Tuned {self.n_factors:,} scales in {self.n_steps} steps ({self.seconds:.0f} s)"


def tune_scales(
    base: str,
    adapter: str,
    merged: Path,
    output: Path,
    tensors: Sequence[str],
    samples: Sequence[Sample],
    *,
    seconds: float,
    threads: int = 0,
    say: Callable[[str], object] = lambda text: None,
) -> Tuning | None:
    """Write ``merged`` to ``output`` with the scales and mins of its adapted ``tensors`` tuned.

    The codes stay. Minimized is the Kullback-Leibler divergence of its predictions from those of ``base`` with
    ``adapter``, over all tokens of the ``samples`` and of the text that comes with ggtune, in three epochs or as much
    of them as ``seconds`` allow (:class:`ggtune._core.ScaleTuner`). None, and no file, where there is nothing to tune,
    or no time or memory for it, and ``say`` is told why. Raises :class:`GgtuneError`; nothing is left of a file that
    was begun.
    """
    started = time.monotonic()
    free = available_memory()  # before anything is taken of it
    places = {tensor.name: tensor for tensor in gguf_structure(merged).tensors}
    changed = [places[name] for name in tensors]
    needed = _COPIES * sum(place.n_bytes for place in changed)
    if needed > _USABLE_SHARE * free:
        say(_too_little_memory(needed))
        return None
    model = core.Model(base)
    texts = _texts(model, samples)
    longest = max(text.n_rows for text in texts)
    batches = pack(texts, max(_MICRO_BATCH_TOKENS, longest))
    tuner = core.ScaleTuner(model, adapter, _read(merged, changed), context=longest, threads=resolved_threads(threads))
    if not tuner.tuned:
        say("Scales are not tuned: the merged tensors have none that can be.")
        return None
    needed = _fit_memory(tuner, len(model.layer_bytes) - 1, model.n_embd, batches, free)
    if needed > _USABLE_SHARE * free:
        say(_too_little_memory(needed))
        return None
    n_steps = _descend(tuner, batches, started, seconds)
    if n_steps == 0:
        say(f"Scales are not tuned: {seconds:.0f} s are too few steps (--tune-seconds).")
        return None
    with replacing(output, needed_bytes=merged.stat().st_size) as temporary:
        shutil.copyfile(merged, temporary)
        with temporary.open("r+b") as file:
            for name, data in tuner.weights().items():
                file.seek(places[name].offset)
                file.write(data)
    return Tuning(n_steps, tuner.n_factors, time.monotonic() - started)


def _too_little_memory(needed: int) -> str:
    return f"Scales are not tuned: there is too little memory ({format_bytes(needed)} are needed)."


def _texts(model: "Model", samples: Sequence[Sample]) -> list[Sample]:
    """Samples, the same ones each time, and the built-in text, with every token a target.

    No more than can be kept of what the teacher makes of them.
    """
    tokens: list[IntArray] = []
    room = _TEACHER_BYTES // (4 * model.n_embd)
    for i in np.random.default_rng(0).permutation(len(samples))[:_MOST_SAMPLES]:
        if tokens and len(samples[int(i)].tokens) > room:
            break
        tokens.append(samples[int(i)].tokens)
        room -= len(tokens[-1])
    tokens += [np.array(piece, np.int32) for piece in text_pieces(model, None, _PIECE_TOKENS)]
    return [
        Sample(of_text, np.append(np.float32(0), np.ones(len(of_text) - 1, np.float32)), 0, i)
        for i, of_text in enumerate(tokens)
        if len(of_text) > 1
    ]


def _read(path: Path, places: Sequence[TensorPlace]) -> list[tuple[str, str, bytes]]:
    """Name, type and data of tensors."""
    found = []
    with path.open("rb") as file:
        for place in places:
            file.seek(place.offset)
            found.append((place.name, place.type_name, file.read(place.n_bytes)))
    return found


def _fit_memory(tuner: "ScaleTuner", n_layers: int, n_embd: int, batches: Sequence[MicroBatch], free: int) -> int:
    """Bytes that are needed; all layers but the last are computed again where there is too little otherwise."""
    largest = max(batch.n_tokens for batch in batches), max(len(batch.samples) for batch in batches)
    of_teacher = 4 * n_embd * sum(batch.n_tokens for batch in batches)
    needed = tuner.memory(*largest)
    if needed + of_teacher > _USABLE_SHARE * free:
        tuner.recompute_layers = n_layers - 1
        try:
            needed = tuner.memory(*largest)
        except GgtuneError:  # a graph that can't be cut between its layers
            tuner.recompute_layers = 0
    return needed + of_teacher


def _descend(tuner: "ScaleTuner", batches: Sequence[MicroBatch], started: float, seconds: float) -> int:
    """Take the steps that there is time for, and return their number; 0 where there is too little time.

    The time of the first step says how many there will be, so that the rate can fall to nothing with the last; where
    they turn out to take half as long again, it ends before.
    """
    order = [int(i) for epoch in range(_EPOCHS) for i in np.random.default_rng(epoch).permutation(len(batches))]
    numbers: dict[int, int] = {}

    def step(i: int, rate: float) -> None:
        if i not in numbers:
            numbers[i] = tuner.add(*batches[i].arrays)
        tuner.accumulate(numbers[i])
        tuner.step(rate)

    begun = time.monotonic()
    step(order[0], _RATE / _WARM_UP)
    now = time.monotonic()
    n_steps = int(min(len(order), 1 + max(0.0, started + seconds - now) / (now - begun)))
    if n_steps < min(_FEWEST_STEPS, len(order)):
        return 0
    for done in range(1, n_steps):
        if time.monotonic() > started + 1.5 * seconds:
            return done
        step(order[done], _RATE * min(1.0, (done + 1) / _WARM_UP) * (1 - done / n_steps))
    return n_steps
