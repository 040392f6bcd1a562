"""How a user names what is evaluated: a model, a model with adapters, or a run and a step of it."""

import math
from dataclasses import dataclass
from pathlib import Path

from ggtune.errors import GgtuneError

SYNTAX = (
    "MODEL.gguf, MODEL.gguf+ADAPTER.gguf (with a factor: +ADAPTER.gguf*0.5), a run folder RUN, or RUN@base, RUN@best, "
    "RUN@last, RUN@merged or RUN@STEP"
)
OF_RUN = ("auto", "base", "best", "last", "merged")


@dataclass(frozen=True)
class SubjectText:
    """What such a name says; none of its files has been opened.

    ``which`` is a step of a ``run``: one of :data:`OF_RUN` ("auto": what `ggtune run` hands on) or a number.
    """

    model: Path | None = None
    adapters: tuple[tuple[Path, float], ...] = ()  # (file, factor)
    run: Path | None = None
    which: str = ""

    @classmethod
    def parse(cls, text: str) -> "SubjectText":
        """Read a name. Raises :class:`GgtuneError` for a file or folder that is not there, or an unknown step."""
        if Path(text).is_dir():
            return cls(run=Path(text), which="auto")
        if Path(text).is_file():
            return cls(model=Path(text))
        folder, _, which = text.rpartition("@")
        if folder and Path(folder).is_dir():
            if which not in OF_RUN and not (which.isascii() and which.isdecimal()):
                raise GgtuneError(f"{text}: {which!r} is no step of a run: it is {', '.join(OF_RUN)} or a number")
            return cls(run=Path(folder), which=which)
        model, *adapters = _parts(text)
        if not Path(model).is_file():
            if Path(model).is_dir():
                raise GgtuneError(f"{text}: {model} is a folder; an adapter stands behind a model file")
            raise GgtuneError(f"{model}: there is no such file or folder. What is evaluated is {SYNTAX}")
        return cls(model=Path(model), adapters=tuple(_adapter(part) for part in adapters))

    @property
    def label(self) -> str:
        """A short name for a reader."""
        if self.run is not None:
            name = self.run.resolve().name
            return name if self.which == "auto" else f"{name}@{self.which}"
        assert self.model is not None
        named = [path.stem + (f"*{scale:g}" if scale != 1 else "") for path, scale in self.adapters]
        return "+".join([self.model.stem, *named])


def labels(subjects: list[SubjectText]) -> list[str]:
    """Name several, each differently."""
    short = [subject.label for subject in subjects]
    whole = [str(subject.run or subject.model) for subject in subjects]
    found = [name if short.count(name) == 1 else f"{name} ({where})" for name, where in zip(short, whole, strict=True)]
    return [name if found.count(name) == 1 else f"{name} #{i}" for i, name in enumerate(found, start=1)]


def _parts(text: str) -> list[str]:
    """Split at each ``+`` that stands behind a file: a name may hold one."""
    found: list[str] = []
    pending = ""
    for piece in text.split("+"):
        pending = f"{pending}+{piece}" if pending else piece
        if Path(_without_factor(pending)).exists():
            found.append(pending)
            pending = ""
    return [*found, pending] if pending else found


def _without_factor(text: str) -> str:
    file, star, _ = text.rpartition("*")
    return file if star and not Path(text).exists() else text


def _adapter(text: str) -> tuple[Path, float]:
    file = _without_factor(text)
    if not Path(file).is_file():
        raise GgtuneError(f"{file}: there is no such adapter file")
    if file == text:
        return Path(file), 1.0
    factor = text[len(file) + 1 :]
    try:
        scale = float(factor)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise GgtuneError(f"{text}: the adapter's factor {factor!r} is no number")
    return Path(file), scale
