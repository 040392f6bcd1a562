"""What a merged file has kept of its adapter: measured through ``llama_decode``, as a user's llama.cpp computes it."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ggtune._native import core
from ggtune.data.samples import Sample
from ggtune.errors import GgtuneError
from ggtune.generate import Answer, answers
from ggtune.system import resolved_threads

if TYPE_CHECKING:
    from ggtune._core import Model, Scorer

FloatArray = NDArray[np.float32]

GOOD_SHARE = 0.9  # a merge that keeps less is not called good
_BATCH_TOKENS = 512
_LOGIT_BYTES = 512 << 20  # of the live adapter's log-probabilities, which every merged file is compared with
_MOST_TARGETS = 4000
_SIDE_BY_SIDE = 8  # answers between two looks at the clock
_LONGEST_ANSWER = 128
_LEAST_GAIN = 0.01  # nats per token: below, a share of the gain says nothing


@dataclass(frozen=True)
class Losses:
    """Per target token, over the trained or the held-out samples that were looked at."""

    n_samples: int
    n_targets: int
    base: float
    live: float
    merged: float
    kept_error: float = 0.0  # standard error of the share kept; 0 for a single sample

    @property
    def kept(self) -> float | None:
        """The share of the live adapter's gain over the base that the merged file has; None without a gain."""
        gain = self.base - self.live
        return (self.base - self.merged) / gain if gain >= _LEAST_GAIN else None


@dataclass(frozen=True)
class Proof:
    """Base, live adapter and merged file on the same samples."""

    trained: Losses
    held_out: Losses | None
    end_base: float  # mean probability of the end token behind the answers
    end_live: float
    end_merged: float
    kl: float  # KL(live || merged), nats per target token
    same_tokens: float  # share of the target positions at which live and merged find the same token most probable
    n_answers: int = 0  # greedy answers that were compared
    n_same_answers: int = 0
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether the merged file holds what was learned: False where more is lost than chance explains."""
        kept = self.trained.kept
        return kept is None or kept + 2 * self.trained.kept_error >= GOOD_SHARE

    def line(self) -> str:
        """Say it on one line."""
        trained, kept = self.trained, self.trained.kept
        parts = [
            f"kept {_share(trained)} of the gain" if kept is not None else "the adapter gains nothing on these samples",
            f"loss base {trained.base:.3f}, adapter {trained.live:.3f}, merged {trained.merged:.3f} "
            f"({trained.n_samples} trained samples)",
        ]
        if self.held_out is not None:
            share = f", {_share(self.held_out)} kept" if self.held_out.kept is not None else ""
            parts.append(
                f"held-out {self.held_out.base:.3f}, {self.held_out.live:.3f}, {self.held_out.merged:.3f}{share}"
            )
        parts.append(f"p(end) {self.end_live:.3f} and {self.end_merged:.3f}")
        if self.n_answers:
            parts.append(f"{self.n_same_answers} of {self.n_answers} answers the same")
        parts.append(f"KL {self.kl:.4f}")
        return "Proof: " + "; ".join(parts) + f" ({self.seconds:.0f} s)"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        values = asdict(self)
        for name in ("trained", "held_out"):
            losses: Losses | None = getattr(self, name)
            if losses is not None:
                values[name]["kept"] = losses.kept
        return {**values, "good": self.good}


@dataclass(frozen=True)
class _Batch:
    """Samples that are decoded together."""

    samples: tuple[Sample, ...]
    held_out: tuple[bool, ...]

    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
        """Tokens, sequences and which rows predict a target, each of shape ``(n_tokens,)``."""
        tokens = np.concatenate([sample.tokens for sample in self.samples])
        sequences = np.repeat(np.arange(len(self.samples), dtype=np.int32), [len(s.tokens) for s in self.samples])
        outputs = np.concatenate([np.append(sample.weights[1:] > 0, False) for sample in self.samples])
        return tokens.astype(np.int32), sequences, outputs

    def targets(self) -> NDArray[np.int32]:
        """Token ids of the targets, in the order of the rows that predict them."""
        return np.concatenate([sample.tokens[1:][sample.weights[1:] > 0] for sample in self.samples])

    def n_targets(self) -> list[int]:
        """Targets of each sample."""
        return [int(np.count_nonzero(sample.weights[1:] > 0)) for sample in self.samples]


@dataclass
class _Reference:
    """What base and live adapter give for a batch."""

    batch: _Batch
    base: FloatArray  # (n_targets,), log-probabilities of the targets
    live: FloatArray  # (n_targets, n_vocab), log-probabilities


class Prover:
    """Base and live adapter measured once, to hold merged files against.

    ``seconds`` is about what that takes, and each merged file after it a third of it: as many samples are looked at as
    fit. Raises :class:`GgtuneError` for an adapter that does not fit the base, or samples without a target.
    """

    def __init__(
        self,
        base: str,
        adapters: Sequence[tuple[str, float]],
        trained: Sequence[Sample],
        held_out: Sequence[Sample] = (),
        *,
        threads: int = 0,
        seconds: float = 20.0,
    ) -> None:
        self._started = time.monotonic()
        self._threads = resolved_threads(threads)
        model = core.Model(base)
        batches = list(_batches(trained, held_out, model.n_vocab))
        if not batches:
            raise GgtuneError("there is no sample to prove a merge on")
        self._n_tokens = max(len(batch.arrays()[0]) for batch in batches)
        self._n_sequences = max(len(batch.samples) for batch in batches)
        plain, live = self._scorer(model), self._scorer(model, adapters)
        self._references: list[_Reference] = []
        for batch in batches:
            at = np.arange(len(batch.targets()))
            before = _log_probs(plain.logits(*batch.arrays()))[at, batch.targets()]
            self._references.append(_Reference(batch, before, _log_probs(live.logits(*batch.arrays()))))
            if time.monotonic() - self._started > seconds / 2:
                break
        self._prompts, self._answers = _answers(model, adapters, self._samples(), self._threads, seconds / 2)
        self._seconds = time.monotonic() - self._started

    def prove(self, merged: str) -> Proof:
        """Measure a merged file; :meth:`with_answers` also compares what it answers."""
        started = time.monotonic()
        model = core.Model(merged)
        scorer = self._scorer(model)
        log_probs, same, kl = [], 0, 0.0
        for reference in self._references:
            batch, live = reference.batch, reference.live
            found = _log_probs(scorer.logits(*batch.arrays()))
            log_probs.append(found[np.arange(len(found)), batch.targets()])
            same += int(np.count_nonzero(found.argmax(1) == live.argmax(1)))
            with np.errstate(invalid="ignore"):
                kl += float(np.sum(np.where(np.isneginf(live), 0.0, np.exp(live) * (live - found)), dtype=np.float64))
        del scorer
        base, live_probs = [r.base for r in self._references], [_of_targets(r) for r in self._references]
        n_targets = sum(len(part) for part in log_probs)
        held_out = self._losses(base, live_probs, log_probs, of_held_out=True)
        return Proof(
            trained=self._losses(base, live_probs, log_probs, of_held_out=False),
            held_out=held_out if held_out.n_samples else None,
            end_base=self._end(base),
            end_live=self._end(live_probs),
            end_merged=self._end(log_probs),
            kl=kl / n_targets,
            same_tokens=same / n_targets,
            seconds=self._seconds + time.monotonic() - started,
        )

    def with_answers(self, proof: Proof, merged: str) -> Proof:
        """Add how many of the live adapter's greedy answers the merged file gives word for word."""
        started = time.monotonic()
        given = _greedy(core.Model(merged), (), self._prompts, self._threads)
        return replace(
            proof,
            n_answers=len(given),
            n_same_answers=sum(a == b for a, b in zip(given, self._answers, strict=True)),
            seconds=proof.seconds + time.monotonic() - started,
        )

    def _scorer(self, model: "Model", adapters: Sequence[tuple[str, float]] = ()) -> "Scorer":
        return core.Scorer(
            model, list(adapters), n_tokens=self._n_tokens, n_sequences=self._n_sequences, threads=self._threads
        )

    def _samples(self) -> list[Sample]:
        """The trained ones: what they answer was learned."""
        return [
            sample
            for reference in self._references
            for sample, held_out in zip(reference.batch.samples, reference.batch.held_out, strict=True)
            if not held_out
        ]

    def _losses(
        self,
        base: list[FloatArray],
        live: list[FloatArray],
        merged: list[FloatArray],
        *,
        of_held_out: bool,
    ) -> Losses:
        sums: list[list[float]] = []  # of each sample's losses
        n_targets = 0
        for reference, *parts in zip(self._references, base, live, merged, strict=True):
            starts = np.concatenate([[0], np.cumsum(reference.batch.n_targets())])
            for i, held_out in enumerate(reference.batch.held_out):
                if held_out == of_held_out:
                    sums.append([-float(part[starts[i] : starts[i + 1]].sum(dtype=np.float64)) for part in parts])
                    n_targets += int(starts[i + 1] - starts[i])
        if not n_targets:
            return Losses(0, 0, math.nan, math.nan, math.nan)
        means = np.sum(sums, axis=0) / n_targets
        before, with_adapter, after = (float(mean) for mean in means)
        return Losses(len(sums), n_targets, before, with_adapter, after, _kept_error(np.array(sums)))

    def _end(self, log_probs: list[FloatArray]) -> float:
        """Mean probability of the last target of each sample: the end token."""
        ends = [
            float(np.exp(part[at - 1]))
            for reference, part in zip(self._references, log_probs, strict=True)
            for at in np.cumsum(reference.batch.n_targets())
        ]
        return sum(ends) / len(ends)


def _kept_error(sums: NDArray[np.float64]) -> float:
    """Standard error of a ratio of sums over samples (Cochran, Sampling Techniques, 1977, section 2.11).

    ``sums``: losses of base, live adapter and merged file, shape ``(n_samples, 3)``.
    """
    base, live, merged = sums.T
    gain, n_samples = float((base - live).sum()), len(sums)
    if n_samples < 2 or gain <= 0:
        return 0.0
    residual = (base - merged) - float((base - merged).sum()) / gain * (base - live)
    return math.sqrt(n_samples / (n_samples - 1) * float(np.sum(residual**2))) / gain


def _share(losses: Losses) -> str:
    error = f" ± {200 * losses.kept_error:.1f}" if losses.kept_error >= 0.0005 else ""
    return f"{100 * (losses.kept or 0.0):.1f}{error} %"


def _log_probs(logits: FloatArray) -> FloatArray:
    """Log-softmax over the last axis, in place of what was given."""
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def _of_targets(reference: _Reference) -> FloatArray:
    targets = reference.batch.targets()
    return reference.live[np.arange(len(targets)), targets]


def _batches(trained: Sequence[Sample], held_out: Sequence[Sample], n_vocab: int) -> Iterator[_Batch]:
    """Samples in a random order, the held-out ones among the others, as many as the memory for logits allows."""
    rng = np.random.default_rng(0)
    most = min(_MOST_TARGETS, _LOGIT_BYTES // (4 * n_vocab))
    some_held_out = _some(held_out, most // 3, rng)
    some_trained = _some(trained, most * 2 // 3 if some_held_out else most, rng)
    chosen = [*some_trained, *some_held_out]
    marks = [False] * len(some_trained) + [True] * len(some_held_out)
    order = rng.permutation(len(chosen))
    group: list[tuple[Sample, bool]] = []
    size = 0
    for i in order:
        sample = chosen[i]
        if group and size + len(sample.tokens) > _BATCH_TOKENS:
            yield _Batch(*(tuple(part) for part in zip(*group, strict=True)))
            group, size = [], 0
        group.append((sample, marks[i]))
        size += len(sample.tokens)
    if group:
        yield _Batch(*(tuple(part) for part in zip(*group, strict=True)))


def _some(samples: Sequence[Sample], most_targets: int, rng: np.random.Generator) -> list[Sample]:
    found: list[Sample] = []
    n_targets = 0
    for i in rng.permutation(len(samples)):
        n = int(np.count_nonzero(samples[i].weights[1:] > 0))
        if n == 0 or (found and n_targets + n > most_targets):
            continue
        found.append(samples[i])
        n_targets += n
    return found


def _answers(
    model: "Model", adapters: Sequence[tuple[str, float]], samples: Sequence[Sample], threads: int, seconds: float
) -> tuple[list[list[int]], list[Answer]]:
    """Prompts and the live adapter's greedy answers, as many as the time allows; none for plain text."""
    prompts = [sample.tokens[: sample.n_prompt].tolist() for sample in samples if sample.n_prompt]
    started = time.monotonic()
    found: list[Answer] = []
    for begin in range(0, len(prompts), _SIDE_BY_SIDE):
        found += _greedy(model, adapters, prompts[begin : begin + _SIDE_BY_SIDE], threads)
        if time.monotonic() - started > seconds:
            break
    return prompts[: len(found)], found


def _greedy(
    model: "Model", adapters: Sequence[tuple[str, float]], prompts: Sequence[list[int]], threads: int
) -> list[Answer]:
    found = dict(answers(model, prompts, adapters=adapters, max_tokens=_LONGEST_ANSWER, threads=threads))
    return [found[i] for i in range(len(prompts))]
