"""Settings that are written as a text and mean more than one value: how often to save or measure, what to hold out."""

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from ggtune.errors import GgtuneError

# Kinds of doubts about rows of the data (ggtune.data.doubts.KINDS) that can be told as a row is read.
DROPPABLE_DOUBTS = (
    *("duplicate", "near duplicate", "contradiction", "short answer", "cut answer", "copied question"),
    *("encoding damage", "template tags", "chatbot", "markup", "formula", "placeholder", "control characters"),
    *("long word", "repetition", "unanswered"),
)

EVENT_LOGS = ("tensorboard", "wandb", "mlflow")
NO_LOG = "none"


@dataclass(frozen=True)
class SaveInterval:
    """How often to save; both None: only at the end."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> "SaveInterval":
        """``"50"`` steps; ``"90s"``, ``"10m"``, ``"2h"``; ``"0"``. Raises :class:`GgtuneError`."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip().lower())
        if found is None or (not found[2] and "." in found[1]):
            raise GgtuneError("it is a number of steps, or a time such as 90s, 10m or 2h")
        if not found[2]:
            return cls(steps=int(found[1]) or None)
        return cls(seconds=float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]] or None)


@dataclass(frozen=True)
class EvalInterval:
    """How often to measure or to ask; all None: never between the run's start and its end."""

    steps: int | None = None
    epochs: Fraction | None = None  # exact, so that the third tenth of an epoch is not missed by rounding
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> "EvalInterval":
        """``"50"`` steps; ``"0.5ep"`` of an epoch; ``"90s"``, ``"10m"``, ``"2h"``; ``"0"``. Raises GgtuneError."""
        written = text.strip().lower()
        if found := re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)ep", written):
            return cls(epochs=Fraction(found[1]) or None)
        try:
            interval = SaveInterval.parse(written)
        except GgtuneError:
            raise GgtuneError(
                "it is a number of steps, a share of an epoch such as 0.5ep, or a time such as 90s, 10m or 2h"
            ) from None
        return cls(steps=interval.steps, seconds=interval.seconds)

    def is_due(self, step: int, steps_per_epoch: int, since_s: float) -> bool:
        """Whether it is time after ``step``; ``since_s`` are the seconds since the last time."""
        if self.steps is not None:
            return step % self.steps == 0
        if self.epochs is not None:
            distance = self.epochs * steps_per_epoch
            return step // distance > (step - 1) // distance
        return self.seconds is not None and since_s >= self.seconds

    def times(self, n_steps: int, steps_per_epoch: int, seconds_per_step: float) -> int:
        """How often that is within ``n_steps``, by time about."""
        if self.steps is not None:
            return n_steps // self.steps
        if self.epochs is not None:
            return min(n_steps, int(n_steps // (self.epochs * steps_per_epoch)))
        return int(n_steps * seconds_per_step / self.seconds) if self.seconds else 0


@dataclass(frozen=True)
class Holdout:
    """Which samples are held out: a ``fraction`` (at least one), a ``count``, ``every`` n-th from the first on.

    Or those of another ``file``.
    """

    kind: Literal["fraction", "count", "every", "file"]
    value: float
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> "Holdout":
        """Read ``"5%"``, ``"0.05"``, ``"88"``, ``"every:20"``, ``"0"`` or a path. Raises :class:`GgtuneError`."""
        written = text.strip().lower()
        if match := re.fullmatch(r"every:(\d+)", written):
            if int(match[1]) >= 2:
                return cls("every", int(match[1]))
        elif match := re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(%?)", written):
            value = float(match[1]) / (100 if match[2] else 1)
            if match[2] or not value.is_integer():
                if value < 1:
                    return cls("fraction", value)
            else:
                return cls("count", value)
        elif written and (Path(text).exists() or Path(text).suffix):
            return cls("file", 0, text)
        raise GgtuneError(
            f"Can't hold out {text!r}: give a share (5% or 0.05), a number of samples, every:20, a file, or 0."
        )


@dataclass(frozen=True)
class DataPart:
    """A data file of several: ``weight`` multiplies the weights of its tokens, ``repeat`` is how often it is taken."""

    path: str
    weight: float = 1.0
    repeat: int = 1

    @classmethod
    def parse(cls, text: str) -> "DataPart":
        """Read ``"file"``, ``"file=0.5"`` (weight), ``"file*3"`` (repeat). Raises :class:`GgtuneError`."""
        found = re.fullmatch(r"(.+?)(?:=(\d+(?:\.\d*)?|\.\d+))?(?:\*(\d+))?", text.strip())
        if found is None or (found[3] and int(found[3]) < 1):
            raise GgtuneError(
                f"{text!r} is no data file: give FILE, FILE=0.5 for a weight, FILE*3 to take it three times"
            )
        return cls(found[1], float(found[2]) if found[2] else 1.0, int(found[3] or 1))


def wrong_parts(values: tuple[str, ...]) -> str | None:
    """Say what is wrong with the texts of data files, None where nothing is."""
    try:
        for text in values:
            DataPart.parse(text)
    except GgtuneError as error:
        return f"is wrong: {error}"
    return None


ALL_LAYERS, AUTO_LAYERS = "all", "auto"
NO_DEVICE = "none"


@dataclass(frozen=True)
class GpuLayers:
    """How many layers lie on devices; None: as many as fit, or all."""

    n: int | None = None
    all: bool = False

    @classmethod
    def parse(cls, text: str) -> "GpuLayers":
        """``"auto"``, ``"all"``, ``"20"``. Raises :class:`GgtuneError`."""
        written = text.strip().lower()
        if written in (ALL_LAYERS, AUTO_LAYERS):
            return cls(all=written == ALL_LAYERS)
        if not re.fullmatch(r"\d{1,6}", written):
            raise GgtuneError("it is auto, all or a number of layers")
        return cls(n=int(written))


@dataclass(frozen=True)
class DeviceMemory:
    """What may be used of a device's memory; both None: what is free."""

    n_bytes: int | None = None
    share: float | None = None  # of all that it has

    @classmethod
    def parse(cls, text: str) -> "DeviceMemory":
        """``""``, ``"6G"``, ``"600M"``, ``"6GiB"``, ``"50%"``. Raises :class:`GgtuneError`."""
        written = text.strip().lower()
        if not written:
            return cls()
        if found := re.fullmatch(r"(\d{1,3}(?:\.\d+)?)%", written):
            share = float(found[1]) / 100
            if 0 < share <= 1:
                return cls(share=share)
        elif found := re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([mgt])(?:i?b)?", written):
            n_bytes = float(found[1]) * 1024 ** {"m": 2, "g": 3, "t": 4}[found[2]]
            if n_bytes >= 1:
                return cls(n_bytes=int(n_bytes))
        raise GgtuneError("it is a size such as 6G or 600M, or a share such as 50%")


def wrong_split(text: str) -> str | None:
    """Say what is wrong with the proportions of several devices, ``"3,1"``."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if all(re.fullmatch(r"\d{1,9}(\.\d{1,9})?", part) and float(part) > 0 for part in parts):
        return None
    return "must be numbers above 0 separated by commas, one for each device, such as 3,1"


def unknown_doubts(values: tuple[str, ...]) -> str | None:
    """Say which kinds of doubts there are not, None where all are known."""
    unknown = [kind for kind in values if kind not in DROPPABLE_DOUBTS]
    known = ", ".join(DROPPABLE_DOUBTS)
    return f"knows no {', '.join(map(repr, unknown))}; kinds are {known}" if unknown else None


def unknown_logs(values: tuple[str, ...]) -> str | None:
    """Say which event logs there are not, None where all are known."""
    if unknown := [name for name in values if name not in EVENT_LOGS and values != (NO_LOG,)]:
        return f"knows no {', '.join(map(repr, unknown))}: it takes {', '.join(EVENT_LOGS)}, or {NO_LOG}"
    return None


def unknown_encoding(value: str) -> str | None:
    """Say that there is no such text encoding, None where there is, or "" is given."""
    try:
        "".encode(value or "utf-8")  # a codec of another kind is refused
    except LookupError:
        return "names no text encoding"
    return None
