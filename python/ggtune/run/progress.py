"""What a run shows: a bar on a terminal, one plain line per step anywhere else."""

import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

_SHOWN = 60  # characters of a question, and of its answer


def format_duration(seconds: float) -> str:
    """``3725`` as ``1:02:05``."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}"


def step_line(
    record: Mapping[str, Any], *, held_out: float | None, total_steps: int | None, eta_s: float | None
) -> str:
    """Put one step's metrics (``record`` as in ``metrics.jsonl``) and the last held-out loss on one line."""
    parts = [
        f"step {record['step']}" + (f"/{total_steps}" if total_steps else ""),
        f"epoch {record['epoch']:.2f}",
        f"loss {_loss(record)}",
        f"smoothed {_smoothed(record)}",
        f"held-out {held_out:.4f}" if held_out is not None else "held-out -",
        f"{record['tokens_per_second']:.0f} tokens/s",
        f"elapsed {format_duration(record['elapsed_s'])}",
        f"ETA {format_duration(eta_s)}" if eta_s is not None else "ETA -",
    ]
    return "  ".join(parts)


def answer_line(line: Mapping[str, Any], width: int = _SHOWN) -> str:
    """Put an answer to a fixed question (``line`` as in ``samples.jsonl``) on one line."""
    answer = _short(line["answer"], width) + ("" if line["ended"] else " ...")
    return f"step {line['step']}: {_short(line['question'], width)} -> {answer}"


def _short(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder=" ...")


def _loss(record: Mapping[str, Any]) -> str:
    return f"dropped ({record['dropped']})" if "dropped" in record else f"{record['loss']:.4f}"


def _smoothed(record: Mapping[str, Any]) -> str:
    return "-" if record["smoothed_loss"] is None else f"{record['smoothed_loss']:.4f}"


class Reporter:
    """Is told how a run goes on; this one shows nothing. Derive from it to show what you want to see.

    Held by a ``with`` while steps are taken.
    """

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def start(self, *, step: int, total_steps: int | None) -> None:
        """Steps are taken from here on; ``step`` of them were before, ``total_steps`` None has no known end."""

    def step(
        self, record: Mapping[str, Any], *, held_out: float | None, total_steps: int | None, eta_s: float | None
    ) -> None:
        """A step is done: its metrics as in ``metrics.jsonl``, and the last held-out loss."""

    def answers(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """The fixed questions were answered: their lines in ``samples.jsonl``."""

    def note(self, text: str) -> None:
        """Something is to be said, on a line of its own."""


class Progress(Reporter):
    """Writes to ``stream`` (standard output by default). ``quiet`` shows nothing but notes.

    A stream that is gone or full (a closed terminal, a log on a full disk) does not end a run.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream or sys.stdout
        self._quiet = quiet
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.close()
            self._bar = None

    def start(self, *, step: int, total_steps: int | None) -> None:
        """Show a bar where there is a terminal for it."""
        if self._stream.isatty() and not self._quiet:
            self._bar = tqdm(total=total_steps, initial=step, file=self._stream, unit="step", dynamic_ncols=True)

    def step(
        self, record: Mapping[str, Any], *, held_out: float | None, total_steps: int | None, eta_s: float | None
    ) -> None:
        """Show a finished step."""
        with suppress(OSError):
            self._step(record, held_out, total_steps, eta_s)

    def _step(
        self, record: Mapping[str, Any], held_out: float | None, total_steps: int | None, eta_s: float | None
    ) -> None:
        if self._bar is not None:
            shown = {
                "epoch": f"{record['epoch']:.2f}",
                "loss": _loss(record),
                "smoothed": _smoothed(record),
                "tokens/s": f"{record['tokens_per_second']:.0f}",
            }
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update()
            if "held_out_loss" in record:
                self.note(f"epoch {record['epoch']:.2f}: held-out loss {held_out:.4f}")
        elif not self._quiet:
            self.note(step_line(record, held_out=held_out, total_steps=total_steps, eta_s=eta_s))

    def answers(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Show each answer shortly."""
        if not self._quiet:
            for line in lines:
                self.note(answer_line(line))

    def note(self, text: str) -> None:
        """Show a line of its own."""
        with suppress(OSError):
            if self._bar is not None:
                self._bar.write(text, file=self._stream)
            else:
                print(text, file=self._stream, flush=True)
