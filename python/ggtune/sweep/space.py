"""What a sweep tries: values of some settings, all combinations of them or some that are drawn."""

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from ggtune.config import TrainConfig, flag
from ggtune.errors import GgtuneError

Value = int | float
Changes = dict[str, Value]

# Settings that can be swept: numbers that leave the held-out samples and their weights as they are.
SWEPT = (
    *("lr", "rank", "epochs", "alpha", "batch", "dropout", "weight_decay", "warmup", "min_lr_ratio", "clip"),
    *("lora_plus_ratio", "neftune_alpha", "beta1", "beta2"),
)
# those that a step's time and memory don't depend on
FREE = ("lr", "alpha", "weight_decay", "warmup", "min_lr_ratio", "lora_plus_ratio", "beta1", "beta2", "clip")

DEFAULT = {"lr": (1e-4, 3e-4, 1e-3), "rank": (8, 16)}  # where no setting is given several values

_TRIES = 1000


@dataclass(frozen=True)
class Axis:
    """Values of a setting, or a range to draw from: evenly on a logarithmic scale where it is above 0."""

    name: str
    values: tuple[Value, ...] = ()
    low: Value = 0
    high: Value = 0

    @property
    def is_range(self) -> bool:
        """Whether there are no values to choose from."""
        return not self.values

    def draw(self, generator: random.Random) -> Value:
        """Return a value, of a range one of three digits."""
        if self.values:
            return generator.choice(self.values)
        if self.low > 0:
            drawn = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        else:
            drawn = generator.uniform(self.low, self.high)
        drawn = min(max(float(f"{drawn:.3g}"), self.low), self.high)
        return round(drawn) if _is_whole(self.name) else drawn

    def text(self) -> str:
        """As it is given."""
        return f"{self.low:g}..{self.high:g}" if self.is_range else ",".join(f"{value:g}" for value in self.values)


def parse_axis(name: str, text: str) -> Axis:
    """Read ``"1e-4,3e-4"`` or ``"1e-5..1e-3"``. Raises :class:`GgtuneError`."""
    parts = text.split("..") if ".." in text else text.split(",")
    try:
        values = tuple(_number(name, part) for part in parts)
    except ValueError:
        kind = "whole numbers" if _is_whole(name) else "numbers"
        raise GgtuneError(
            f"{flag(name)} takes {kind} separated by commas, or a range low..high (it is {text!r})"
        ) from None
    if ".." not in text:
        return Axis(name, tuple(dict.fromkeys(values)))
    if len(values) != 2 or not values[0] < values[1]:
        raise GgtuneError(f"{flag(name)}: a range is low..high, the lower end first (it is {text!r})")
    return Axis(name, low=values[0], high=values[1])


def trials(axes: Sequence[Axis], n_trials: int | None, seed: int) -> list[Changes]:
    """Return the settings of each trial: all combinations, or ``n_trials`` different ones that are drawn.

    Raises :class:`GgtuneError` for a range without a number of trials.
    """
    if n_trials is None:
        if ranges := [axis for axis in axes if axis.is_range]:
            raise GgtuneError(f"{flag(ranges[0].name)} is a range: say by --trials how many to draw from it")
        return [
            dict(zip((axis.name for axis in axes), values, strict=True))
            for values in itertools.product(*(axis.values for axis in axes))
        ]
    if not any(axis.is_range for axis in axes):
        every = trials(axes, None, seed)
        chosen = sorted(random.Random(seed).sample(range(len(every)), min(n_trials, len(every))))
        return [every[i] for i in chosen]
    generator, found = random.Random(seed), dict[tuple[Value, ...], Changes]()
    for _ in range(_TRIES * n_trials):
        changes = {axis.name: axis.draw(generator) for axis in axes}
        found.setdefault(tuple(changes.values()), changes)
        if len(found) == n_trials:
            break
    return list(found.values())


def trial_name(number: int, n_trials: int, changes: Changes) -> str:
    """Name a trial's folder: ``03-lr0.0003-rank16``."""
    settings = "-".join(f"{name.replace('_', '-')}{value:g}" for name, value in changes.items())
    return f"{number:0{max(2, len(str(n_trials)))}}-{settings}"


def described(changes: Mapping[str, Value]) -> str:
    """``lr 0.0003, rank 16``."""
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in changes.items())


def _number(name: str, text: str) -> Value:
    return int(text) if _is_whole(name) else float(text)


def _is_whole(name: str) -> bool:
    return next(f.type for f in fields(TrainConfig) if f.name == name) is int
