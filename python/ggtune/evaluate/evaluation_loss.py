"""The loss of samples, each its own, and the tokens that the model would have said in their place.

It is computed by the training's own engine, in micro-batches packed as the training packs held-out samples: so it is
the very number that the run wrote, where llama.cpp's decoding, with its half-precision cache, is a little off. Every
subject (base, adapter, merged file) goes the same way, so that differences are theirs and not the way's. Where the
engine can't compute a model or adapter, it is llama.cpp's decoding after all, and the evaluation says so.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ggtune._native import core
from ggtune.config import DENSE
from ggtune.data.packing import MicroBatch, PackedSamples
from ggtune.data.samples import Sample
from ggtune.errors import DeviceMemoryError, ModelError
from ggtune.evaluate.answers import SampleLoss
from ggtune.evaluate.subject import Subject
from ggtune.gguf.adapter_file import FloatArray, check_fits, pairs_beside_layers
from ggtune.system import resolved_threads
from ggtune.train.build import default_micro_batch
from ggtune.train.placement import CPU
from ggtune.train.targets import chosen_targets

if TYPE_CHECKING:
    from ggtune._core import Adapter, Model, Scorer, Trainer

_LOGIT_BYTES = 256 << 20  # of one call of llama.cpp's decoding


class Losses(Protocol):
    """Measures samples."""

    @property
    def way(self) -> str:
        """Which program computes: for ``settings`` and the reader."""

    def of(self, samples: Sequence[Sample]) -> Iterator[tuple[int, SampleLoss]]:
        """Give the loss of each sample with its index, in any order."""


def losses_of(
    subject: Subject,
    model: "Model",
    *,
    context: int,
    threads: int = 0,
    precision: str = "auto",
    micro_batch_tokens: int = 0,
    adapter_files: Sequence[tuple[str, float]] = (),
) -> Losses:
    """Choose the way: the training's engine, or decoding with the ``adapter_files`` where that can't be.

    Raises :class:`GgtuneError` where an adapter is of another model.
    """
    for one in subject.adapters:
        check_fits(one.path, one.content, model)
    try:
        adapter = live_adapter(subject, model)
        engine = core.Trainer(adapter, context=context, threads=resolved_threads(threads), precision=precision)
        n_tokens = micro_batch_tokens or default_micro_batch(context, model, engine)
        if set(model.layer_devices) != {CPU}:
            _check_devices(engine, n_tokens)
    except (ModelError, DeviceMemoryError) as error:
        return Decoded(model, adapter_files, context=context, threads=threads, reason=str(error))
    return Engine(engine, n_tokens)


def _check_devices(engine: "Trainer", n_tokens: int) -> None:
    """Raise :class:`GgtuneError` where devices can't compute, or have no room for, so many tokens at once."""
    if engine.unsupported:
        layer, op, _ = engine.unsupported[0]
        raise ModelError(f"the device of layer {layer} can't do {op}")
    engine.reserve(n_tokens, n_tokens)


def live_adapter(subject: Subject, model: "Model") -> "Adapter":
    """Make one adapter of all of a subject's, with their scales; one without effect where it has none.

    Raises :class:`ModelError` for one that ggtune's engine can't apply beside a model.
    """
    contents = [one.content for one in subject.adapters]
    for one in subject.adapters:
        if others := pairs_beside_layers(one.content, model):
            raise ModelError(f"{one.path} adapts {', '.join(others)} beside the layers")
    if not contents:
        kinds = chosen_targets((DENSE,), model.linears(), 1, model.path).kinds
        return core.Adapter(model, rank=1, alpha=1.0, targets=kinds)
    names = {base for content in contents for base in content.bases}
    kinds = tuple(dict.fromkeys(linear.kind for linear in model.linears() if linear.name in names))
    ranks = {content.rank_of(base) for content in contents for base in content.bases}
    if len(contents) == 1 and len(ranks) == 1 and subject.adapters[0].scale == 1 and contents[0].alpha:
        # as the training has it, to the last bit
        adapter = core.Adapter(model, rank=ranks.pop(), alpha=contents[0].alpha, targets=kinds)
        tensors: Any = contents[0].tensors
    else:
        rank = max(sum(c.rank_of(base) for c in contents if base in c.bases) for base in names)
        adapter = core.Adapter(model, rank=rank, alpha=float(rank), targets=kinds)
        tensors = _stacked(subject, names, rank)
    for name in adapter.tensor_names():
        if name in tensors:
            adapter.set(name, tensors[name])
    return adapter


def _stacked(subject: Subject, names: Iterable[str], rank: int) -> dict[str, FloatArray]:
    """Pairs of several adapters side by side, as one of the sum of their ranks whose scale is 1."""
    found: dict[str, FloatArray] = {}
    for base in names:
        pairs = []
        for one in subject.adapters:
            if base in one.content.bases:
                # llama.cpp takes alpha 0 for a scale of 1 (llama_adapter_lora_weight::get_scale)
                own = one.content.alpha / one.content.rank_of(base) if one.content.alpha else 1.0
                a, b = (one.content.tensors[f"{base}.lora_{side}"] for side in "ab")
                pairs.append((a, b * np.float32(own * one.scale)))
        a = np.concatenate([pair[0] for pair in pairs], axis=-2)
        b = np.concatenate([pair[1] for pair in pairs], axis=-1)
        missing = rank - b.shape[-1]
        none = [(0, 0)] * (a.ndim - 2)
        found[f"{base}.lora_a"] = np.ascontiguousarray(np.pad(a, [*none, (0, missing), (0, 0)]), np.float32)
        found[f"{base}.lora_b"] = np.ascontiguousarray(np.pad(b, [*none, (0, 0), (0, missing)]), np.float32)
    return found


class Engine:
    """By the training's engine."""

    way = "ggtune"

    def __init__(self, engine: "Trainer", max_tokens: int) -> None:
        self._engine, self._max_tokens = engine, max_tokens

    def of(self, samples: Sequence[Sample]) -> Iterator[tuple[int, SampleLoss]]:
        """Give the loss of each sample with its index, micro-batch by micro-batch."""
        for batch in self._batches(samples):
            found = self._engine.evaluate(*batch.arrays, predictions=True)
            right = batch.targets == found.predictions
            ends = np.flatnonzero(np.diff(batch.sequences, append=-1)) + 1
            for index, begin, end in zip(batch.samples, [0, *ends[:-1]], ends, strict=True):
                yield index, _sample_loss(batch.weights[begin:end], found.log_probs[begin:end], right[begin:end])

    def _batches(self, samples: Sequence[Sample]) -> Iterable[MicroBatch]:
        """Micro-batches as those of a run's held-out samples."""
        return PackedSamples(samples, self._max_tokens)


class Decoded:
    """By llama.cpp's decoding, one sample at a time."""

    def __init__(
        self, model: "Model", adapters: Sequence[tuple[str, float]], *, context: int, threads: int, reason: str
    ) -> None:
        self.way = "llama.cpp"
        self.reason = reason
        self._rows_at_once = max(1, _LOGIT_BYTES // (4 * model.n_vocab))
        self._make: Callable[[], Scorer] = lambda: core.Scorer(
            model, list(adapters), n_tokens=context, n_sequences=1, threads=resolved_threads(threads)
        )

    def of(self, samples: Sequence[Sample]) -> Iterator[tuple[int, SampleLoss]]:
        """Give the loss of each sample with its index."""
        scorer = self._make()
        for index, sample in enumerate(samples):
            tokens, targets, weights = sample.tokens[:-1], sample.tokens[1:], sample.weights[1:]
            rows = np.flatnonzero(weights)
            log_probs, right = np.full(len(weights), np.nan, np.float32), np.zeros(len(weights), np.bool_)
            for begin in range(0, len(rows), self._rows_at_once):
                some = rows[begin : begin + self._rows_at_once]
                outputs = np.zeros(len(tokens), np.bool_)
                outputs[some] = True
                logits = scorer.logits(tokens, np.zeros(len(tokens), np.int32), outputs).astype(np.float64)
                best = logits.max(axis=1, keepdims=True)
                total = np.log(np.exp(logits - best).sum(axis=1)) + best[:, 0]
                log_probs[some] = logits[np.arange(len(some)), targets[some]] - total
                right[some] = logits.argmax(axis=1) == targets[some]
            yield index, _sample_loss(weights, log_probs, right)


def _sample_loss(weights: FloatArray, log_probs: FloatArray, right: "np.ndarray[Any, Any]") -> SampleLoss:
    counted = weights != 0
    weighed = weights[counted].astype(np.float64)
    return SampleLoss(
        loss=-float(np.dot(weighed, log_probs[counted].astype(np.float64))),
        weight=float(weighed.sum()),
        n_targets=int(counted.sum()),
        n_correct_tokens=int(np.count_nonzero(right[counted])),
    )
