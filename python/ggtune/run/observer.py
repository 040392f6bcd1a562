"""Who else is told of a run: event logs, a sweep. What the user sees is :mod:`ggtune.run.progress`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ggtune.config import TrainConfig
from ggtune.run.status import FAILED


class Observer:
    """Is told how a run goes on, on the run's own thread: calls have to return at once, and must not raise.

    ``metrics.jsonl`` and ``samples.jsonl`` are written before an observer hears of what is in them.
    """

    def begin(self, folder: Path, config: TrainConfig, *, started: str, step: int) -> None:
        """The run begins, or goes on after ``step``; the files in its folder are rewound to that. ``started``: ISO."""

    def step(self, record: Mapping[str, Any]) -> None:
        """A step is done: its line in ``metrics.jsonl``; that of step 1 has ``held_out_before``, too."""

    def answers(self, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """The fixed questions were answered after ``step``: their lines in ``samples.jsonl``."""

    def rewind(self, step: int) -> None:
        """The run has gone back to ``step``, and so have its files."""

    def pause(self, record: Mapping[str, Any]) -> str | None:
        """Say after a measurement why the run should be left as it stands, to be gone on with later; None: go on."""
        return None

    def end(self, state: str, reason: str) -> None:
        """The run has ended: as in ``status.json``. Wait here for what is still under way."""

    def messages(self) -> list[str]:
        """Return what there is to tell the user, once."""
        return []


class Observers(Observer):
    """Several of them as one. As a context manager it ends them when the run ends, however it does."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._all = tuple(observers)
        self._end: tuple[str, str] | None = None
        self._began = False

    def __enter__(self) -> "Observers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._began:
            state, reason = self._end or (FAILED, str(error) or type(error).__name__)
            for observer in self._all:
                observer.end(state, reason)

    def begin(self, folder: Path, config: TrainConfig, *, started: str, step: int) -> None:
        """Tell all."""
        self._began = True
        for observer in self._all:
            observer.begin(folder, config, started=started, step=step)

    def step(self, record: Mapping[str, Any]) -> None:
        """Tell all."""
        for observer in self._all:
            observer.step(record)

    def answers(self, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """Tell all."""
        for observer in self._all:
            observer.answers(step, lines)

    def rewind(self, step: int) -> None:
        """Tell all."""
        for observer in self._all:
            observer.rewind(step)

    def pause(self, record: Mapping[str, Any]) -> str | None:
        """Ask all; the first reason counts."""
        return next((why for observer in self._all if (why := observer.pause(record))), None)

    def end(self, state: str, reason: str) -> None:
        """Note how the run has ended; they are told when nothing more comes."""
        self._end = state, reason

    def messages(self) -> list[str]:
        """Return what each has to tell the user."""
        return [text for observer in self._all for text in observer.messages()]
