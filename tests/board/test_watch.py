"""``ggtune watch`` in a pseudo-terminal, its screen kept by pyte."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from followed_runs import GGTUNE, WriteRun, append, line

pytest.importorskip("pyte", reason="pyte is not installed: pip install pyte")
pytest.importorskip("termios", reason="needs pseudo-terminals")
from pseudo_terminal import PseudoTerminal

Start = Callable[..., PseudoTerminal]


@pytest.fixture
def start() -> Iterator[Start]:
    """Watch a run in a terminal of a size."""
    terminals = []

    def begin(folder: Path, columns: int = 90, lines: int = 30, **environment: str) -> PseudoTerminal:
        kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        everything = {**kept, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment}
        command = [*GGTUNE, "watch", str(folder), "--every", "0.2"]
        terminals.append(PseudoTerminal(command, columns, lines, everything))
        return terminals[-1]

    yield begin
    for terminal in terminals:
        terminal.close()


def test_the_screen_follows_and_leaves_the_last_state(start: Start, write_run: WriteRun) -> None:
    folder = write_run()
    terminal = start(folder)
    terminal.wait_for("step 40/60")
    assert terminal.is_alternate
    assert "ETA" in terminal.text
    assert "held-out" in terminal.lines[-1] or "held-out" in terminal.text
    append(folder / "metrics.jsonl", line(41))
    append(folder / "samples.jsonl", {"step": 41, "question": "What is neon?", "answer": "\x1b[2JA gas."})
    terminal.wait_for("step 41/60")
    terminal.wait_for("A  \ufffd[2JA gas.")
    terminal.resize(60, 20)
    terminal.wait_for(lambda: any(text.endswith(" 41") and len(text) == 60 for text in terminal.lines))
    terminal.resize(30, 3)
    terminal.wait_for(lambda: terminal.lines[0].startswith("step 41/60"))
    terminal.resize(90, 30)
    terminal.wait_for("answers after step 41")
    (folder / "status.json").write_text('{"state": "finished", "reason": "all 41 steps are done", "total_steps": 41}')
    assert terminal.end() == 0
    assert not terminal.is_alternate
    assert terminal.modes == terminal.modes_before
    assert "smoothed  o held-out" in terminal.text
    last = [text for text in terminal.lines if text]
    assert last[0].startswith("finished  /")
    assert last[1] == "all 41 steps are done"
    assert "finished  step 41/41" in "".join(last[-2:])


@pytest.mark.parametrize("way", ["q", "ctrl-c"])
def test_it_ends_and_the_run_does_not(start: Start, write_run: WriteRun, way: str) -> None:
    terminal = start(write_run())
    terminal.wait_for("step 40/60")
    terminal.press(b"q" if way == "q" else b"\x03")
    assert terminal.end() == 0  # the run is this process, which is still here
    assert terminal.modes == terminal.modes_before
    assert not terminal.is_alternate
    assert "running  step 40/60" in terminal.text
    assert "Traceback" not in terminal.text


def test_a_signal_ends_it_and_the_terminal_is_as_before(start: Start, write_run: WriteRun) -> None:
    terminal = start(write_run())
    terminal.wait_for("step 40/60")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.end() == 143
    assert terminal.modes == terminal.modes_before
    assert not terminal.is_alternate


@pytest.mark.parametrize("more", [{"NO_COLOR": "1"}, {"TERM": "vt100"}])
def test_without_colours(start: Start, write_run: WriteRun, more: dict[str, str]) -> None:
    terminal = start(write_run(), **more)
    terminal.wait_for("smoothed  o held-out")
    colours = {cell.fg for row in terminal.screen.buffer.values() for cell in row.values()}
    assert colours <= {"default"}


def test_with_colours(start: Start, write_run: WriteRun) -> None:
    terminal = start(write_run())
    terminal.wait_for("smoothed  o held-out")
    assert len({cell.fg for row in terminal.screen.buffer.values() for cell in row.values()}) > 3


def test_a_terminal_without_unicode(start: Start, write_run: WriteRun) -> None:
    folder = write_run()
    append(folder / "samples.jsonl", {"step": 40, "question": "Wie heißt 水?", "answer": "Ø"})
    terminal = start(folder, PYTHONIOENCODING="ascii")
    terminal.wait_for("Q  Wie hei?t ??")
    assert terminal.sent.isascii()


def test_a_terminal_that_can_not_move_its_cursor_gets_lines(start: Start, write_run: WriteRun) -> None:
    folder = write_run()
    terminal = start(folder, TERM="dumb")
    terminal.wait_for("running  step 40/60")
    append(folder / "metrics.jsonl", line(41))
    terminal.wait_for("running  step 41/60")
    assert b"\x1b" not in terminal.sent


def test_a_folder_that_goes_away(start: Start, write_run: WriteRun) -> None:
    folder = write_run()
    terminal = start(folder)
    terminal.wait_for("step 40/60")
    folder.rename(folder.with_name("elsewhere"))
    assert terminal.end() == 1
    # wherever the line is broken: that depends on the length of the path before it
    assert "isnorunfolder" in "".join(terminal.text.split())
    assert not terminal.is_alternate


def test_no_terminal_gets_lines(write_run: WriteRun) -> None:
    folder = write_run()
    pipe = subprocess.PIPE
    with subprocess.Popen([*GGTUNE, "watch", folder, "--every", "0.1"], stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("running  step 40/60")
        append(folder / "metrics.jsonl", line(41))
        assert process.stdout.readline().startswith("running  step 41/60")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_run_that_has_ended_is_shown_once(start: Start, write_run: WriteRun) -> None:
    terminal = start(write_run(state="finished"))
    assert terminal.end() == 0
    assert "smoothed  o held-out" in terminal.text
    assert b"\x1b[?1049h" not in terminal.sent


def test_a_real_run_is_watched_to_its_end(start: Start, going_run: Path) -> None:
    terminal = start(going_run)
    terminal.wait_for("tokens/s")
    first = terminal.text
    terminal.wait_for(lambda: terminal.text != first)
    subprocess.run([*GGTUNE, "stop", going_run], check=True, capture_output=True)
    assert terminal.end() == 0
    assert "interruptedbySIGTERM" in "".join(terminal.text.split())
