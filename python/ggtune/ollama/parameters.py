"""Runtime parameters of an Ollama model: which there are, and of what type."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from ggtune.errors import GgtuneError

ParameterValue: TypeAlias = "int | float | bool | Sequence[str]"
Parameters: TypeAlias = Mapping[str, ParameterValue]

# server/parser names, as `ollama create` accepts them; any other is an error there
_INTEGERS = frozenset(
    [
        "num_ctx",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "num_thread",
        "num_keep",
        "seed",
        "num_predict",
        "top_k",
        "repeat_last_n",
        "draft_num_predict",
    ]
)
_FLOATS = frozenset(
    ["top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty"]
)
_BOOLEANS = frozenset(["use_mmap"])
_TEXT_LISTS = frozenset(["stop"])
NAMES = _INTEGERS | _FLOATS | _BOOLEANS | _TEXT_LISTS


def plain_parameters(parameters: Parameters) -> dict[str, int | float | bool | list[str]]:
    """Give the parameters plain types. Raises :class:`GgtuneError` for an unknown name or a value of another type."""
    checked: dict[str, int | float | bool | list[str]] = {}
    for name, value in parameters.items():
        if name not in NAMES:
            raise GgtuneError(f'Ollama has no parameter "{name}"; it has: {", ".join(sorted(NAMES))}.')
        if name in _TEXT_LISTS:
            if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
                raise GgtuneError(f'Parameter "{name}" takes a list of texts, not {value!r}.')
            if not all(value):
                raise GgtuneError(f'Parameter "{name}" has an empty text in it, which would stop every answer at once.')
            checked[name] = list(value)
        elif name in _BOOLEANS:
            if not isinstance(value, bool):
                raise GgtuneError(f'Parameter "{name}" takes true or false, not {value!r}.')
            checked[name] = value
        elif name in _INTEGERS:
            if isinstance(value, bool) or not isinstance(value, int):
                raise GgtuneError(f'Parameter "{name}" takes a whole number, not {value!r}.')
            checked[name] = value
        else:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise GgtuneError(f'Parameter "{name}" takes a number, not {value!r}.')
            checked[name] = float(value)
    return checked


def parse_parameter(name: str, text: str) -> int | float | bool | str:
    """Read the value of one PARAMETER line; ``stop`` gives one text. Raises :class:`GgtuneError`."""
    try:
        if name in _INTEGERS:
            return int(text)
        if name in _FLOATS:
            return float(text)
        if name in _BOOLEANS:
            return {"true": True, "false": False}[text.lower()]
    except (ValueError, KeyError):
        raise GgtuneError(f'Parameter "{name}" can\'t have the value "{text}".') from None
    if name in _TEXT_LISTS:
        return text
    raise GgtuneError(f'Ollama has no parameter "{name}"; it has: {", ".join(sorted(NAMES))}.')


def read_parameters(given: Iterable[tuple[str, str]]) -> dict[str, ParameterValue]:
    """Read (name, value) texts as of PARAMETER lines; the last one of a name counts, ``stop`` adds up.

    Raises :class:`GgtuneError`.
    """
    parameters: dict[str, ParameterValue] = {}
    stops: list[str] = []
    for name, text in given:
        value = parse_parameter(name, text)
        if isinstance(value, str):
            stops.append(value)
        else:
            parameters[name] = value
    return parameters | ({"stop": stops} if stops else {})
