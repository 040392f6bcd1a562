"""``answers.jsonl`` of an evaluation: what was measured of each sample, and what was answered."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from ggtune.errors import GgtuneError
from ggtune.files import WriteError, replace_text

ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class SampleLoss:
    """What the model makes of a sample's own words."""

    loss: float  # nats, summed over the targets with their weights
    weight: float  # sum of the targets' weights: their number where each counts once
    n_targets: int
    n_correct_tokens: int  # targets that the model finds most probable


@dataclass(frozen=True)
class AnsweredSample:
    """A sample of an evaluation.

    ``answer`` and what belongs to it are None, and ``scores`` empty, where nothing was generated. ``references`` has
    the answers of all rows that ask the same; they are answered once, and the later of them are ``repeated``: what is
    said of answers counts each question once.
    """

    row: int
    where: str
    question: str
    reference: str
    category: str | None
    loss: float
    weight: float
    n_targets: int
    n_correct_tokens: int
    n_prompt_tokens: int
    references: tuple[str, ...] = ()
    answer: str | None = None
    ended: bool | None = None
    n_tokens: int | None = None
    repeated: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def all_references(self) -> tuple[str, ...]:
        """Each answer that counts as right."""
        return self.references or (self.reference,)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; ``references`` and ``repeated`` where they say something."""
        values = dataclasses.asdict(self)
        if len(self.references) < 2:
            del values["references"]
        if not self.repeated:
            del values["repeated"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AnsweredSample":
        """Undo :meth:`to_dict`; other keys are passed over. Raises :class:`ValueError` where one is missing."""
        known = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}
        known["references"] = tuple(known.get("references", ()))
        try:
            return cls(**known)
        except TypeError as error:
            raise ValueError(str(error)) from None


def read_answers(folder: Path) -> list[AnsweredSample]:
    """Read the ``answers.jsonl`` of an evaluation's folder. Raises :class:`GgtuneError` where it has none."""
    path = folder / ANSWERS
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise GgtuneError(f"{folder} has no {ANSWERS}: it is no folder of an evaluation") from None
    except (OSError, UnicodeError) as error:
        raise GgtuneError(f"can't read {path}: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(AnsweredSample.from_dict(json.loads(line)))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise GgtuneError(f"{path}: line {number} is no answer of an evaluation: {error}") from error
    return found


def write_answers(folder: Path, answers: Sequence[AnsweredSample]) -> None:
    """Write ``answers.jsonl`` whole or not at all. Raises :class:`ggtune.files.WriteError`."""
    replace_text(folder / ANSWERS, "".join(json_line(answer.to_dict()) for answer in answers))


def json_line(values: Mapping[str, Any]) -> str:
    """One line of JSON; a number that is not finite is null, since JSON has none."""
    return json.dumps(_finite(values), ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    # half of a pair of surrogates, as JSON data may have it, is no text that can be written
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


class JsonLines:
    """A file that lines are added to; each is whole and on its way to the disk when :meth:`write` returns.

    What a killed process left of a line is taken off when it is opened.
    """

    def __init__(self, path: Path) -> None:
        """Raise :class:`ggtune.files.WriteError` where it can't be written."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
            self._file.seek(0)
            lines = self._file.read().split(b"\n")
            self._size = sum(len(line) + 1 for line in lines[:-1])
            self._file.truncate(self._size)
        except OSError as error:
            raise WriteError(f"can't write {path}: {error.strerror or error}") from error
        self.before = [_record(line) for line in lines[:-1]]

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add lines. Raises :class:`ggtune.files.WriteError`; the file holds whole lines all the same."""
        data = "".join(json_line(record) for record in records).encode()
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError as error:
            self._file.truncate(self._size)
            raise WriteError(f"can't write {self._path}: {error.strerror or error}") from error
        self._size += len(data)


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
