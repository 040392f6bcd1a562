"""The figures of a run as few points: however long it is, its curves take the same memory and are drawn as quickly."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

KEYS = ("loss", "smoothed_loss", "lr", "grad_norm", "tokens_per_second", "memory_bytes")
_MOST = 1000  # points; twice as many are kept before neighbours are put together
_LAST = 120  # records that are kept whole
_MOST_FLOAT = 1e100
_MOST_INT = 1 << 63  # Python's integers have no end; a float's and a step's have


@dataclass
class _Point:
    """Some steps in a row: the last of them, for each key the sum and number of its values, the ends of the loss."""

    step: int
    epoch: float = 0.0
    elapsed_s: float | None = None
    n: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * len(KEYS))
    counts: list[int] = field(default_factory=lambda: [0] * len(KEYS))
    lowest: tuple[float, int] | None = None  # loss and step
    highest: tuple[float, int] | None = None
    dropped: object = None

    def record(self) -> dict[str, Any]:
        """Return the mean of each key, in the form of a line of ``metrics.jsonl``."""
        means = {key: self.sums[i] / self.counts[i] for i, key in enumerate(KEYS) if self.counts[i]}
        times = {} if self.elapsed_s is None else {"elapsed_s": self.elapsed_s}
        dropped = {"dropped": self.dropped} if self.dropped is not None and self.lowest is None else {}
        return {"step": self.step, "epoch": self.epoch, **times, **means, **dropped}

    def ends(self) -> list[dict[str, Any]]:
        """Return two such records, with the lowest and the highest loss in place of the mean; one for a single step."""
        record = self.record()
        if self.n == 1 or self.lowest is None or self.highest is None or self.lowest[1] == self.highest[1]:
            return [record]
        chosen = sorted([self.lowest, self.highest], key=lambda end: end[1])
        return [{**record, "step": step, "loss": loss} for loss, step in chosen]


class History:
    """Takes the records of ``metrics.jsonl`` in order; rejects what has no step after the last."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._points: list[_Point] = []
        self._each = 1  # steps in a point
        self.n_records = 0
        self.n_dropped = 0
        self.last: deque[dict[str, Any]] = deque(maxlen=_LAST)
        self._held_out: list[dict[str, Any]] = []
        self._held_out_each = 1
        self._n_held_out = 0
        self.best_held_out: tuple[int, float] | None = None  # step and loss
        self.last_held_out: dict[str, Any] | None = None
        self.held_out_before: float | None = None  # the first step

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take further records."""
        for record in records:
            step = record.get("step")
            if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < _MOST_INT:
                continue
            if self.last and step <= self.last[-1]["step"]:
                continue
            self._add(step, record)

    def _add(self, step: int, record: Mapping[str, Any]) -> None:
        self.n_records += 1
        self.n_dropped += "dropped" in record
        self.last.append(dict(record))
        point = self._points[-1] if self._points else None
        if point is None or point.n >= self._each:
            point = _Point(step)
            self._points.append(point)
        point.n += 1
        point.step = step
        epoch, elapsed = record.get("epoch"), record.get("elapsed_s")
        point.epoch = epoch if is_number(epoch) else point.epoch
        point.elapsed_s = elapsed if is_number(elapsed) else point.elapsed_s
        if "dropped" in record:
            point.dropped = record["dropped"]
        loss = record.get("loss")
        if is_number(loss):
            if point.lowest is None or loss < point.lowest[0]:
                point.lowest = loss, step
            if point.highest is None or loss > point.highest[0]:
                point.highest = loss, step
        for i, key in enumerate(KEYS):
            value = record.get(key)
            if is_number(value):
                point.sums[i] += value
                point.counts[i] += 1
        if len(self._points) >= 2 * self._most:
            self._points = [_together(*self._points[i : i + 2]) for i in range(0, len(self._points), 2)]
            self._each *= 2
        before, held_out = record.get("held_out_before"), record.get("held_out_loss")
        if is_number(before):
            self.held_out_before = before
        if is_number(held_out):
            self._add_held_out(step, held_out, record)

    def _add_held_out(self, step: int, held_out: float, record: Mapping[str, Any]) -> None:
        chosen = {"step": step, "epoch": record.get("epoch"), "held_out_loss": held_out}
        if isinstance(record.get("held_out_scores"), dict):
            chosen["held_out_scores"] = record["held_out_scores"]
        if self.best_held_out is None or held_out < self.best_held_out[1]:
            self.best_held_out = step, held_out
        self.last_held_out = chosen
        if self._n_held_out % self._held_out_each == 0:
            self._held_out.append(chosen)
        self._n_held_out += 1
        if len(self._held_out) >= 2 * self._most:
            self._held_out, self._held_out_each = self._held_out[::2], 2 * self._held_out_each

    def points(self) -> list[dict[str, Any]]:
        """Return the means over a few steps each, as records of ``metrics.jsonl``."""
        return [point.record() for point in self._points]

    def held_out(self) -> list[dict[str, Any]]:
        """Return the evaluated steps: all, or of very many a part with the last."""
        last = self.last_held_out
        return self._held_out if last is None or self._held_out[-1] is last else [*self._held_out, last]

    def records(self, *, ends: bool = True) -> list[dict[str, Any]]:
        """Return both in the order of their steps, for plots that take the records of ``metrics.jsonl``.

        Of several steps that became one point, those with the lowest and the highest loss stand for it, or without
        ``ends`` their mean.
        """
        points = self._points
        merged = {r["step"]: r for point in points for r in (point.ends() if ends else [point.record()])}
        for record in self.held_out():
            step = record["step"]
            if step not in merged:
                at = min(bisect_left(points, step, key=lambda point: point.step), len(points) - 1)
                merged[step] = points[at].record()
            merged[step] = {**merged[step], **record}
        records = [merged[step] for step in sorted(merged)]
        if self.held_out_before is not None and records:
            records[0] = {**records[0], "held_out_before": self.held_out_before}
        return records

    @property
    def steps_per_epoch(self) -> float | None:
        """Steps of an epoch, as the last record has it; None where that is not known."""
        if not self.last:
            return None
        epoch = self.last[-1].get("epoch")
        return self.last[-1]["step"] / epoch if is_number(epoch) and epoch > 0 else None


def is_number(value: object) -> TypeGuard[float]:
    """Say whether it is a number that can be a figure: finite, and none that sums of it would not be."""
    if isinstance(value, float):
        return abs(value) < _MOST_FLOAT  # NaN is not
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST_INT


def _together(first: _Point, second: _Point) -> _Point:
    lows = [end for end in (first.lowest, second.lowest) if end is not None]
    highs = [end for end in (first.highest, second.highest) if end is not None]
    return _Point(
        second.step,
        second.epoch,
        second.elapsed_s if second.elapsed_s is not None else first.elapsed_s,
        first.n + second.n,
        [a + b for a, b in zip(first.sums, second.sums, strict=True)],
        [a + b for a, b in zip(first.counts, second.counts, strict=True)],
        min(lows, default=None),
        max(highs, default=None),
    )
