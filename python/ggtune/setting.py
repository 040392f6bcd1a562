"""What is known about a setting of :class:`ggtune.config.TrainConfig`, and the checks of its values."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ggtune.errors import GgtuneError

_UNSET: Any = object()


@dataclass(frozen=True)
class Switch:
    """The values that a setting's flag can stand for alone: ``--name`` and ``--no-name``."""

    on: str
    off: str
    finetune_off_flags: tuple[str, ...] = ()  # what the old `finetune` called ``--no-name``


@dataclass(frozen=True)
class Setting:
    """What is known about one field of :class:`TrainConfig` beside its type and default."""

    help: str
    flags: tuple[str, ...] = ()  # short flags of every face
    finetune_flags: tuple[str, ...] = ()  # names that the old `finetune` had
    switch: "Switch | None" = None
    finetune_default: Any = _UNSET
    default_text: str = ""  # what help says of a default None, which stands for a choice made later
    choices: tuple[str, ...] = ()
    check: Callable[[Any], str | None] | None = None  # what is wrong with a value, None where nothing is
    resumable: bool = False  # a continued run may change it
    rounds: bool = False  # where it does, the result changes by rounding
    metavar: str | None = None

    @property
    def same_default(self) -> bool:
        """True where both faces have the dataclass's default."""
        return self.finetune_default is _UNSET


def setting(default: Any, help: str, **rest: Any) -> Any:  # noqa: A002
    """Return a dataclass field; ``rest`` are fields of :class:`Setting`."""
    return field(default=default, metadata={"setting": Setting(help, **rest)})


def setting_of(f: "dataclasses.Field[Any]") -> Setting:
    """Return the :class:`Setting` of a field of :class:`TrainConfig`."""
    setting: Setting = f.metadata["setting"]
    return setting


def at_least(low: float) -> Callable[[Any], str | None]:
    """Check for ``low`` or more."""
    return lambda v: None if math.isfinite(v) and v >= low else f"must be at least {low:g}"


def above(low: float) -> Callable[[Any], str | None]:
    """Check for more than ``low``."""
    return lambda v: None if math.isfinite(v) and v > low else f"must be above {low:g}"


def within(low: float, high: float, *, open_end: bool = True) -> Callable[[Any], str | None]:
    """Check for ``[low, high)``, or ``[low, high]``."""
    text = f"must be at least {low:g} and {'below' if open_end else 'at most'} {high:g}"
    return lambda v: None if low <= v and (v < high or (not open_end and v == high)) else text


def filled(value: str) -> str | None:
    """Check for a text."""
    return None if value else "is missing"


def parsed_by(parse: Callable[[str], object]) -> Callable[[str], str | None]:
    """Check for a text that ``parse`` can read."""

    def check(value: str) -> str | None:
        try:
            parse(value)
        except GgtuneError as error:
            return f"is wrong: {error}"
        return None

    return check
