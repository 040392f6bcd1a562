"""The lines of the screen, for terminals of any size and data of any kind."""

import math
from pathlib import Path

import pytest
from followed_runs import WriteRun, append, line
from rich.cells import cell_len

from ggtune.board.chart import loss_chart
from ggtune.board.live import LiveRun
from ggtune.board.screen import frame, printable


def shown(run: LiveRun, width: int, height: int, *, plain: bool = False) -> str:
    return "\n".join(text.plain for text in frame(run, width, height, plain=plain))


@pytest.fixture
def run(write_run: WriteRun) -> LiveRun:
    folder = write_run()
    append(folder / "metrics.jsonl", line(41, loss=50.0))
    question = {
        "step": 40,
        "question": "What is neon?\nTell me.",
        "reference": "A gas.",
        "answer": "Neon is a noble gas.",
    }
    append(
        folder / "samples.jsonl", question, {**question, "question": "Wie heißt H₂O? 水是什么", "answer": "水" * 200}
    )
    run = LiveRun(folder)
    run.look()
    return run


def test_a_screen_has_everything(run: LiveRun) -> None:
    text = shown(run, 160, 40)
    for part in ("running", "step 41/60", "68 %", "ETA 0:00:38", "epoch 3 of 3", "loss 50.0000", "smoothed 2.6273",
                 "held-out 2.7500 (best 2.7500 at step 40)", "lr 0.0002", "gradient norm 1.5", "250 tokens/s", "memory",
                 "! the loss of step 41 is 50", "answers after step 40", "Q  What is neon? Tell me.",
                 "A  Neon is a noble gas.", "smoothed  o held-out", "q ends the watching"):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize("plain", [False, True])
def test_it_fits_any_size(run: LiveRun, plain: bool) -> None:
    for width in (1, 2, 3, 5, 10, 23, 24, 25, 40, 79, 80, 200):
        for height in (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 16, 24, 60):
            lines = frame(run, width, height, plain=plain)
            assert 1 <= len(lines) <= height
            assert max(cell_len(text.plain) for text in lines) <= width, (width, height)
            assert not plain or all(text.plain.isascii() for text in lines)


def test_small_screens_keep_what_counts(run: LiveRun) -> None:
    assert shown(run, 60, 1) == "step 41/60  68 %  loss 50.0000  ETA 0:00:38"
    assert "held-out" in shown(run, 80, 4)
    assert "step 41/60" in shown(run, 80, 4)


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[2J\x1b]0;title\x07gone",
        "a\rb",
        "\x9b31mred",
        "rtl \u202e evil",
        "\ud800",
        "\u2028next",
        "tab\there",
        "\x00",
    ],
)
def test_nothing_that_a_terminal_obeys_is_shown(run: LiveRun, text: str) -> None:
    cleaned = printable(text)
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2028\ud800" for c in cleaned)
    cleaned.encode("utf-8")
    record = {"step": 50, "question": text, "answer": text}
    append(run.folder / "samples.jsonl", record)
    run.look()
    assert not set("\x1b\x9b\x07\r\u202e\x00") & set(shown(run, 80, 60))


def test_the_chart_falls_where_the_loss_falls() -> None:
    records = [{"step": i, "loss": 3 - i / 100, "smoothed_loss": 3 - i / 100} for i in range(1, 201)]
    records[99]["held_out_loss"] = 1.0
    lines = [text.plain for text in loss_chart(records, 60, 14, plain=True)]
    rows = {row: max(i for i, c in enumerate(text) if c == "*") for row, text in enumerate(lines[:-2]) if "*" in text}
    assert list(rows) == sorted(rows)
    assert list(rows.values()) == sorted(rows.values())
    assert rows[min(rows)] < 20
    assert rows[max(rows)] > 55
    held_out = [(row, text.index("o")) for row, text in enumerate(lines[:-2]) if "o" in text]
    assert held_out == [(11, pytest.approx(33, abs=2))]
    assert lines[0].split("|")[0].strip() == "3.0"
    assert "step 1 " in lines[-1]
    assert lines[-1].endswith("200")


@pytest.mark.parametrize(
    "values",
    [[1.0] * 30, [0.0] * 30, [math.nan] * 30, [1e90 * i for i in range(30)], [1e-300 * i for i in range(30)], []],
)
def test_flat_huge_and_missing_losses(values: list[float]) -> None:
    records = [{"step": i, "loss": value, "smoothed_loss": value} for i, value in enumerate(values)]
    lines = loss_chart(records, 60, 12)
    assert len(lines) == (12 if values and not math.isnan(values[0]) else 0)
    assert all(text.cell_len <= 60 for text in lines)


def test_a_spike_does_not_flatten_the_chart(run: LiveRun) -> None:
    records = [{"step": i, "loss": 3 - i / 100 if i != 50 else 1000.0} for i in range(200)]
    assert loss_chart(records, 60, 12)[0].plain.split("│")[0].strip() < "4"


def test_texts_are_cut_between_words(run: LiveRun) -> None:
    answer = "one two three four five six seven eight nine ten " * 3
    append(run.folder / "samples.jsonl", {"step": 41, "question": "What is neon?\nTell me.", "answer": answer})
    run.look()
    lines = [text.plain for text in frame(run, 50, 40)]
    at = next(i for i, text in enumerate(lines) if text.startswith("A  one"))
    assert lines[at : at + 2] == [
        "A  one two three four five six seven eight nine", "   ten one two three four five six seven eight",
    ]  # fmt: skip


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    run = LiveRun(tmp_path / "none")
    run.look()
    assert "no run folder" in shown(run, 200, 20)
