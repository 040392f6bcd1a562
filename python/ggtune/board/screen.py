"""What ``ggtune watch`` shows of a run: lines for a screen of any size."""

import unicodedata
from collections.abc import Mapping
from typing import Any

from rich.text import Text

from ggtune.board.chart import LEAST_HEIGHT, loss_chart
from ggtune.board.live import LiveRun
from ggtune.run.history import is_number
from ggtune.run.progress import format_duration
from ggtune.run.status import DEAD, FAILED, FINISHED, RUNNING, RunStatus
from ggtune.system import format_bytes

HINT = "q ends the watching, not the run"
_STATE_STYLES = {RUNNING: "bold cyan", FINISHED: "bold green", FAILED: "bold red", DEAD: "bold red"}
_FIGURES = {"lr": "lr {:.3g}", "grad_norm": "gradient norm {:.3g}", "tokens_per_second": "{:.0f} tokens/s"}
_TIMES = {RUNNING: "so far"}
_MOST_WARNINGS = 3
_NAME_WIDTH = 18  # of a bar's name
_TWO_BARS = 16  # lines of a screen that has room for both
_WARNING_LINES = 4
_HIGH = 36  # lines of a screen on which warnings are whole
_ANSWER_LINES = 2  # of a question and of an answer
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # categories of Unicode: a terminal might obey them


def printable(text: str, *, plain: bool = False) -> str:
    """Put a text of the data on one line, with nothing in it that a terminal obeys; ``plain`` is ASCII alone."""
    text = " ".join(text.split())
    text = "".join("\ufffd" if unicodedata.category(c) in _HIDDEN else c for c in text)
    return text.encode("ascii", "replace").decode() if plain else text


def frame(run: LiveRun, width: int, height: int, *, plain: bool = False, hint: str = HINT) -> list[Text]:
    """Return at most ``height`` lines of at most ``width`` columns.

    The lower the screen, the less is on it: at one line, where the run is and when it ends. ``plain`` is for terminals
    that have ASCII alone.
    """
    status = run.status
    if status is None:
        return _cut([Text(printable(run.problem, plain=plain))], width, height)
    if height <= 2:
        return _cut([_short(run, status), *_warnings(run, 1, plain)], width, height)
    head, bars = _head(run, status, width, plain, hint), _bars(run, status, width, height, plain)
    figures = [_losses(run, status), _figures(run, status)]
    lines = [*head, *bars, *figures]
    if height < len(lines) + 3:
        return _cut([bars[0], *figures, *head, *_warnings(run, 1, plain)], width, height)
    below = _whole_warnings(run, width, plain) if height >= _HIGH else _warnings(run, _MOST_WARNINGS, plain)
    for text in reversed(run.forecast()):
        below = [*_wrapped(printable(text, plain=plain), width, "green"), *below]
    room = height - len(lines) - len(below)
    answers = _answers(run, width, min(room // 2, room - LEAST_HEIGHT - 1), plain)
    chart = loss_chart(run.history.records(ends=False), width, room - len(answers) - bool(answers), plain=plain)
    if not chart:
        answers = _answers(run, width, room - 1, plain)
    lines += [*chart, *below, *([Text()] if answers else []), *answers]
    return _cut(lines, width, height)


def _cut(lines: list[Text], width: int, height: int) -> list[Text]:
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="crop")
    return lines[:height]


def _short(run: LiveRun, status: RunStatus) -> Text:
    share = _share(status)
    parts = [_of(status.step, status.total_steps)]
    parts += [f"{100 * share:.0f} %"] if share is not None else []
    parts += [f"loss {status.loss:.4f}"] if status.loss is not None else []
    parts += [f"ETA {format_duration(status.eta_s)}"] if status.eta_s is not None else []
    return Text("  ".join(parts if status.state == RUNNING else [status.state, *parts]))


def _head(run: LiveRun, status: RunStatus, width: int, plain: bool, hint: str) -> list[Text]:
    """The state and the folder, whose end says more than its beginning; of a run that has ended the reason, too."""
    text = Text(status.state, style=_STATE_STYLES.get(status.state, "bold yellow"))
    room = width - text.cell_len - 2
    folder = Text(printable(str(run.folder), plain=plain), style="bold")
    if folder.cell_len > room > 3:
        folder = Text("..." + folder.plain[max(0, len(folder.plain) - room + 3) :], style="bold")
    text.append("  ").append_text(folder)
    if hint and text.cell_len + 2 + len(hint) <= width:
        text.append(" " * (width - text.cell_len - len(hint)) + hint, style="bright_black")
    return [text, *_wrapped(printable(status.reason, plain=plain), width, "", indent="")]


def _of(step: int, total: int | None) -> str:
    return f"step {step}/{total}" if total else f"step {step}"


def _share(status: RunStatus) -> float | None:
    return min(1.0, status.step / status.total_steps) if status.total_steps and status.total_steps > 0 else None


def _bars(run: LiveRun, status: RunStatus, width: int, height: int, plain: bool) -> list[Text]:
    """Bars of the run and, where there is room, of the epoch."""
    eta = f"ETA {format_duration(status.eta_s)}" if status.eta_s is not None else ""
    bars = [(_of(status.step, status.total_steps), _share(status), eta)]
    if height >= _TWO_BARS and status.epoch > 0:
        # an epoch that has just ended is a whole one
        n_done = max(0, int(status.epoch - 1e-9))
        n_epochs = run.config.get("epochs")
        of = f" of {n_epochs:g}" if is_number(n_epochs) and n_epochs > 0 else ""
        elapsed = f"{format_duration(status.elapsed_s)} {_TIMES.get(status.state, 'in all')}"
        bars.append((f"epoch {n_done + 1}{of}", min(1.0, status.epoch - n_done), elapsed))
    n_cells = min(60, width - _NAME_WIDTH - 8 - max(len(after) for _, _, after in bars))
    return [_bar(*bar, n_cells, plain) for bar in bars]


def _bar(name: str, share: float | None, after: str, n_cells: int, plain: bool) -> Text:
    if share is None:
        return Text("  ".join(part for part in (name, after) if part))
    text = Text(f"{name:<{_NAME_WIDTH}}")
    if n_cells >= 4:
        done = round(n_cells * share)
        text.append(("#" if plain else "█") * done, style="green")
        text.append(("-" if plain else "░") * (n_cells - done), style="bright_black")
    return text.append(f" {100 * share:3.0f} %  {after}".rstrip())


def _losses(run: LiveRun, status: RunStatus) -> Text:
    parts = []
    if status.loss is not None:
        parts.append(f"loss {status.loss:.4f}")
    if status.smoothed_loss is not None:
        trend = ""
        if status.trend is not None:
            trend = f" ({100 * status.trend:+.1f} % over {status.trend_steps} steps)"
        parts.append(f"smoothed {status.smoothed_loss:.4f}{trend}")
    if status.held_out_loss is not None:
        best = run.history.best_held_out
        shown = f" (best {best[1]:.4f} at step {best[0]})" if best is not None else ""
        parts.append(f"held-out {status.held_out_loss:.4f}{shown}")
    return Text("  ".join(parts) or "no step yet")


def _figures(run: LiveRun, status: RunStatus) -> Text:
    last: Mapping[str, Any] = run.history.last[-1] if run.history.last else {}
    parts = []
    for key, form in _FIGURES.items():
        if is_number(last.get(key)):
            parts.append(form.format(last[key]))
    memory = status.memory_bytes if status.memory_bytes is not None else last.get("memory_bytes")
    if is_number(memory):
        parts.append(f"memory {format_bytes(memory)}")
    return Text("  ".join(parts))


def _warnings(run: LiveRun, most: int, plain: bool) -> list[Text]:
    return [Text(f"! {printable(text, plain=plain)}", style="yellow") for text in run.warnings[-most:]]


def _whole_warnings(run: LiveRun, width: int, plain: bool) -> list[Text]:
    """Return the last warnings, each on as many lines as it needs."""
    lines: list[Text] = []
    for text in run.warnings[-_MOST_WARNINGS:]:
        lines += _wrapped(f"! {printable(text, plain=plain)}", width, "yellow", indent="  ", most=_WARNING_LINES)
    return lines


def _answers(run: LiveRun, width: int, room: int, plain: bool) -> list[Text]:
    """Return questions with their last answers, as many as there is room for."""
    lines: list[Text] = []
    for question in run.answers.questions():
        last = question.answers[-1]
        more = "" if last.ended else (" ..." if plain else " …")
        block = [
            *_wrapped(f"Q  {printable(question.text, plain=plain)}", width, "bright_black"),
            *_wrapped(f"A  {printable(last.text, plain=plain)}{more}", width, ""),
        ]
        title = [] if lines else [Text(f"answers after step {last.step}", style="bold")]
        if len(lines) + len(title) + len(block) > room:
            break
        lines += [*title, *block]
    return lines


def _wrapped(text: str, width: int, style: str, *, indent: str = "   ", most: int = _ANSWER_LINES) -> list[Text]:
    """Cut a text into lines, between words where there are some; what goes on beyond the last line is left out."""
    lines: list[Text] = []
    while text and len(lines) < most:
        line = Text(text, style=style)
        line.truncate(max(width, 1), overflow="crop")
        n = len(line.plain.rstrip())
        if n < len(text) and text[n] != " " and (space := text.rfind(" ", len(indent) + n // 2, n)) > 0:
            n = space
        rest = text[n:].lstrip()
        if rest:
            line.right_crop(len(line.plain) - n)
        lines.append(line)
        text = indent + rest if rest else ""
    return lines
