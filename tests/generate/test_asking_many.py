"""`ggtune ask` with many questions, and as a conversation: in pipes and in a pseudo-terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ggtune import _core, pipeline
from ggtune.cli import cli
from ggtune.data.templates import TEMPLATES
from ggtune.data.tokenization import encode_prompt
from ggtune.demo import MODEL
from ggtune.errors import GgtuneError
from ggtune.generate import Chat
from pseudo_terminal import PseudoTerminal

GOLDEN = Path(__file__).parents[1] / "golden"
GGTUNE = [sys.executable, "-m", "ggtune"]
NOUNS = ("argon", "cat", "table", "neon")
QUESTIONS = [f'What is the meaning of the noun "{noun}"?' for noun in NOUNS]


def ask(*arguments: object, stdin: str | bytes | None = None, model: Path = MODEL) -> Result:
    return CliRunner().invoke(cli, ["ask", "-m", str(model), "-n", "12", *map(str, arguments)], input=stdin)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in float32: nothing is rounded to fewer digits where many rows are computed at once."""
    path = tmp_path_factory.mktemp("exact") / "model.gguf"
    _core.quantize_model(str(MODEL), str(path), "f32", allow_requantize=True)
    return path


@pytest.fixture(scope="module")
def alone(exact: Path) -> list[str]:
    return [ask(question, model=exact).stdout.strip() for question in QUESTIONS]


def lines_of(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_file_of_lines_is_answered_in_order(tmp_path: Path, alone: list[str], exact: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_text("\n\n".join(QUESTIONS))
    found = lines_of(ask("--file", path, "--json", model=exact))
    assert [(one["question"], one["answer"]) for one in found] == list(zip(QUESTIONS, alone, strict=True))
    assert all(0 < int(str(one["n_tokens"])) <= 12 and isinstance(one["ended"], bool) for one in found)
    assert ask("--file", path, model=exact).stdout == "".join(
        f"> {q}\n{a}\n\n" for q, a in zip(QUESTIONS, alone, strict=True)
    )


def test_data_and_standard_input(tmp_path: Path, alone: list[str], exact: Path) -> None:
    csv = tmp_path / "questions.csv"
    csv.write_text("question,answer\n" + "".join(f'"{q.replace(chr(34), chr(34) * 2)}",x\n' for q in QUESTIONS))
    rows = tmp_path / "questions.jsonl"
    rows.write_text("".join(json.dumps({"question": q, "answer": "x"}) + "\n" for q in QUESTIONS))
    for result in (
        ask("--file", csv, "--json", model=exact),
        ask("--file", rows, "--json", model=exact),
        ask("-", "--json", stdin="\n".join(QUESTIONS), model=exact),
    ):
        assert [one["answer"] for one in lines_of(result)] == alone


def test_drawn_answers_are_those_of_each_question_alone(exact: Path) -> None:
    drawn = ["--temp", 2, "--seed", 5, "--json"]
    many = lines_of(ask("-", *drawn, stdin="\n".join(QUESTIONS), model=exact))
    assert many == [lines_of(ask(question, *drawn, model=exact))[0] for question in QUESTIONS]


def test_a_question_that_is_too_long_has_an_error_in_its_place(alone: list[str], exact: Path) -> None:
    result = ask("-", "--json", stdin=f"{QUESTIONS[0]}\n{'long ' * 3000}\n{QUESTIONS[1]}", model=exact)
    assert result.exit_code == 1
    found = lines_of(result)
    assert [one.get("answer") for one in found] == [alone[0], None, alone[1]]
    assert "the model's context is" in str(found[1]["error"])
    assert "1 of 3 questions could not be asked" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "status", "said"),
    [
        ([], None, 2, "give a QUESTION"),
        (["Why?", "--chat"], None, 2, "give a QUESTION"),
        (["-"], "\n \n", 1, "standard input: there is no question in it"),
        (["-"], b"Why?\n\xff\n", 1, "standard input: line 2 can't be read as UTF-8"),
        (["--file", "missing.txt"], None, 1, "missing.txt"),
        (["--file", "missing.csv"], None, 1, "missing.csv"),
    ],
)
def test_bad_input(arguments: list[str], stdin: str | bytes | None, status: int, said: str) -> None:
    result = ask(*arguments, stdin=stdin)
    assert result.exit_code == status
    assert said in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    "path", sorted(p for p in GOLDEN.glob("*.gguf") if "-lora" not in p.name), ids=lambda p: p.stem
)
def test_restarted_is_as_new(path: Path) -> None:
    model = _core.Model(str(path))
    usable = [token for token in range(min(model.n_vocab, 300)) if not model.is_end_token(token)]
    rng = np.random.default_rng(3)
    first = rng.choice(usable, 20).tolist()
    for second in (first[:12] + rng.choice(usable, 8).tolist(), first, first[:5]):
        generator = _core.Generator(model, first, context=48)
        list(islice(generator, 6))
        kept = generator.restart(second)
        assert kept in (0, next((i for i in range(len(second) - 1) if first[i] != second[i]), len(second) - 1))
        assert list(generator) == list(_core.Generator(model, second, context=48))


def test_what_was_read_is_not_read_again() -> None:
    model = _core.Model(str(MODEL))
    generator = _core.Generator(model, [5, 6, 7, 8], context=32)
    next(generator)
    assert generator.restart([5, 6, 7, 9, 10]) == 3
    with pytest.raises(GgtuneError, match="does not fit the context of 32"):
        generator.restart([5] * 32)


@pytest.mark.parametrize("name", [*TEMPLATES, "model"])
def test_a_conversation_is_asked_as_it_is_trained_on(name: str) -> None:
    loaded = pipeline.load(MODEL, pipeline.AskOptions(template=name, max_tokens=5))
    chat = loaded.chat()
    first, second = QUESTIONS[:2]
    assert chat._prompt(first).tolist() == encode_prompt(loaded.model, loaded.template, first, loaded.system).tolist()
    answer = "".join(chat.pieces(first))
    assert answer.rstrip() == loaded.answer(first)
    prompt = loaded.model.detokenize(chat._prompt(second), special=True).decode()
    places = [prompt.index(text) for text in (first, answer.strip() or first, second)]
    assert places == sorted(places)
    after = loaded.model.detokenize(encode_prompt(loaded.model, loaded.template, second), special=True).decode()
    assert prompt.endswith(after[after.index(second) :])


def test_a_conversation_keeps_what_it_has_read_and_forgets_its_beginning() -> None:
    loaded = pipeline.load(MODEL)
    chat = Chat(loaded.model, loaded.template, max_tokens=8, context=64)
    "".join(chat.pieces(QUESTIONS[0]))
    "".join(chat.pieces(QUESTIONS[1]))
    assert chat.n_kept > 10
    for question in QUESTIONS:
        assert "".join(chat.pieces(question))
    assert chat.n_forgotten > 0
    with pytest.raises(GgtuneError, match="the conversation's context is 64"):
        next(chat.pieces("long " * 100))
    chat.forget()
    assert (
        "".join(chat.pieces(QUESTIONS[2])).strip()
        == "".join(Chat(loaded.model, loaded.template, max_tokens=8, context=64).pieces(QUESTIONS[2])).strip()
    )


def test_a_conversation_in_a_pipe(alone: list[str], exact: Path) -> None:
    stdin = f"{QUESTIONS[0]}\n\n/new\n{QUESTIONS[1]}\n/exit\n{QUESTIONS[2]}\n"
    result = ask("--chat", stdin=stdin, model=exact)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == alone[:2]
    found = lines_of(ask("--chat", "--json", stdin=QUESTIONS[0], model=exact))
    assert [one["answer"] for one in found] == alone[:1]


@pytest.fixture
def terminal() -> Iterator[PseudoTerminal]:
    endless = GOLDEN / "falcon.gguf"  # writes on until its context of 2048 is full
    command = [*GGTUNE, "ask", "-m", str(endless), "--template", "plain", "-n", "100000", "--chat"]
    shown = PseudoTerminal(command, 100, 40, {**os.environ, "TERM": "xterm"})
    try:
        shown.wait_for(lambda: shown.lines[shown.screen.cursor.y] == ">")
        yield shown
    finally:
        shown.close()


def begin_answer(terminal: PseudoTerminal) -> None:
    before = len(terminal.sent)
    terminal.press(b"Say much.\r")
    terminal.wait_for(lambda: len(terminal.sent) > before + 30)


def test_keys_at_a_terminal(terminal: PseudoTerminal) -> None:
    terminal.press(b"what")
    terminal.wait_for("> what")
    terminal.press(b"\x03")
    terminal.wait_for("Ctrl-D ends the conversation")
    begin_answer(terminal)
    terminal.press(b"\x03")
    terminal.wait_for(lambda: terminal.lines[terminal.screen.cursor.y] == ">")
    assert terminal.sent.count("\ufffd".encode()) < 2000  # it did not come to its end
    assert terminal.process.poll() is None
    terminal.press(b"\x04")
    assert terminal.end() == 0
    assert terminal.modes == terminal.modes_before


def test_sigterm_ends_an_answer_and_the_conversation(terminal: PseudoTerminal) -> None:
    begin_answer(terminal)
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.end() == 128 + signal.SIGTERM
    assert terminal.modes == terminal.modes_before


def test_ctrl_c_ends_many_answers_with_those_that_are_there() -> None:
    command = [*GGTUNE, "ask", "-m", str(MODEL), "-", "--json", "-n", "300"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n".join(QUESTIONS * 300).encode())
        process.stdin.close()
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read().splitlines()
    assert process.returncode == 130
    assert len(rest) < 1199
    assert all("answer" in json.loads(line) for line in [first, *rest])
