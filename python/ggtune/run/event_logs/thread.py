"""A thread that writes one event log: the run does not wait for it, and no failure of it ends the run."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ggtune.run.event_logs.facts import EventLog, Past, Record, RunFacts

_RETRY_S = 60.0
_CLOSE_S = 60.0  # longest that the end of a run waits for a client


class LogThread:
    """Hands what is told to ``log`` in this order.

    After a failure what comes is left out; from time to time, and at the end, the log is begun anew with the run's
    past, which ``past`` reads up to a step. So it has every step once, whatever has happened.
    """

    def __init__(
        self,
        name: str,
        log: EventLog,
        facts: RunFacts,
        past: Callable[[int], Past],
        *,
        retry_s: float = _RETRY_S,
        close_s: float = _CLOSE_S,
    ) -> None:
        self._name = name
        self._log = log
        self._facts = facts
        self._past = past
        self._retry_s, self._close_s = retry_s, close_s
        self._told: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._messages: deque[str] = deque()
        self._step = self._answers_step = -1  # the last that are in the log
        self._told_step = 0
        self._failed_at: float | None = None
        self._has_failed = False  # once
        self._thread = threading.Thread(target=self._work, name=f"ggtune-{name}", daemon=True)
        self._thread.start()

    def begin(self, step: int) -> None:
        """Write the log anew, with what there is up to ``step``: at the start of a session, and where a run goes back.

        ``metrics.jsonl`` and ``samples.jsonl`` hold no later step when this is called.
        """
        self._told.put((self._begin, (step,)))

    def step(self, record: Record) -> None:
        """Write a step; it is in ``metrics.jsonl``."""
        self._told.put((self._write_step, (dict(record),)))

    def answers(self, step: int, lines: Iterable[Record]) -> None:
        """Write sampled answers; they are in ``samples.jsonl``."""
        self._told.put((self._write_answers, (step, list(lines))))

    def close(self, state: str) -> None:
        """Close the log; :meth:`join` waits for that."""
        self._told.put((self._end, (state,)))
        self._told.put(None)

    def join(self) -> None:
        """Wait for the end, but not forever."""
        self._thread.join(self._close_s)
        if self._thread.is_alive():
            self._messages.append(f"warning: {self._name} has not come to its end in {self._close_s:.0f} s: left alone")

    def wait(self) -> None:
        """Wait until all that was told is written, or has failed."""
        written = threading.Event()
        self._told.put((written.set, ()))
        written.wait(self._close_s)

    def messages(self) -> list[str]:
        """Return what there is to tell the user, once."""
        texts = []
        while self._messages:
            texts.append(self._messages.popleft())
        return texts

    def _work(self) -> None:
        while (told := self._told.get()) is not None:
            call, values = told
            try:
                call(*values)
            except Exception as error:  # whatever a client does, the run goes on
                self._fail(error)
        if self._failed_at is not None:
            self._messages.append(f"warning: {self._name} is not whole: `ggtune resume` writes it anew")

    def _begin(self, step: int) -> None:
        self._log.abandon()
        past = self._past(step)
        self._log.begin(self._facts, past)
        self._failed_at, self._told_step = None, step
        self._step, self._answers_step = (
            max((record["step"] for record in part), default=-1) for part in (past.records, past.answers)
        )

    def _write_step(self, record: Record) -> None:
        self._told_step = record["step"]
        if self._can_go_on() and record["step"] > self._step:
            self._log.step(record)
            self._step = record["step"]

    def _write_answers(self, step: int, lines: list[Record]) -> None:
        if self._can_go_on() and step > self._answers_step:
            self._log.answers(step, lines)
            self._answers_step = step

    def _can_go_on(self) -> bool:
        """Tell whether there is a log to write to; where it has failed a while ago, it is begun anew."""
        if self._failed_at is not None and time.monotonic() - self._failed_at >= self._retry_s:
            self._begin(self._told_step)
        return self._failed_at is None

    def _end(self, state: str) -> None:
        if self._failed_at is not None:
            self._begin(self._told_step)
        self._log.end(state)

    def _fail(self, error: Exception) -> None:
        self._failed_at = time.monotonic()
        self._log.abandon()
        if not self._has_failed:
            self._has_failed = True
            self._messages.append(
                f"warning: {self._name} can't be written ({type(error).__name__}: {error}): the run goes on, and it is "
                "tried again from time to time"
            )
