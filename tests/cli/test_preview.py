"""``ggtune preview``, and one command for each shape that data come in."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ggtune.cli import cli
from ggtune.demo import MODEL

CHAT = {
    "messages": [
        {"role": "user", "content": "Why is rust red? <b>"},
        {"role": "assistant", "content": "Iron oxide is."},
        {"role": "user", "content": "And patina?"},
        {"role": "assistant", "content": "Green </s>.", "weight": 0.5},
    ]
}


def run(*arguments: str, status: int = 0, color: bool = False) -> str:
    result = CliRunner().invoke(cli, ["preview", "--model", str(MODEL), *arguments], color=color)
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture
def chat(tmp_path: Path) -> str:
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(CHAT) + "\n" + json.dumps({"question": "Is tin a metal?", "answer": "Yes."}) + "\n")
    return str(path)


@pytest.mark.parametrize(("template", "opening"), [("chatml", "user\n"), ("llama2", "[INST] "), ("gemma", "user\n")])
def test_what_is_learned_is_in_colour(chat: str, template: str, opening: str) -> None:
    output = run("--data", chat, "--template", template, "-n", "1", color=True)
    green, yellow = "\x1b[32m", "\x1b[33m"
    assert re.search(rf"{re.escape(green)} ?Iron oxide is\.", output)
    assert re.search(rf"{re.escape(yellow)} ?Green </s>\. ?\(0\.5\)", output)  # text that spells a token stays text
    assert f"{opening}And patina?" in output
    assert not re.search(r"\x1b\[3[23]m[^\x1b]*And patina", output)
    assert f"{green}\x1b[7m[</s>]" in output
    assert f"{yellow}\x1b[7m[</s>](0.5)" in output
    assert re.search(r"line 1: \d+ tokens, \d+ of them learned \(\d+ %\)", output)
    assert "Is tin a metal" not in output


def test_rows_are_chosen(chat: str) -> None:
    output = run("--data", chat, "--rows", "2")
    assert "line 2:" in output
    assert "line 1:" not in output
    assert "there is no sample of line 3, 9" in run("--data", chat, "--rows", "2,3,9", status=1)
    run("--data", chat, "--rows", "two", status=2)


def test_the_samples_of_a_row_whose_thoughts_are_left_out(tmp_path: Path) -> None:
    """The model's template leaves out earlier thoughts: each turn is a sample, and it is said."""
    messages = [
        {"role": "user", "content": "Why is rust red?"},
        {"role": "assistant", "content": "Iron oxide is.", "reasoning_content": "Redox."},
        {"role": "user", "content": "And patina?"},
        {"role": "assistant", "content": "Green.", "reasoning_content": "Copper."},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(CHAT) + "\n" + json.dumps({"messages": messages}) + "\n")
    for repeat in ("1", "2"):
        output = run("--data", str(path), "--rows", "2", "--repeat", repeat, color=True)
        assert "line 2, sample 1 of 2: " in output
        assert "line 2, sample 2 of 2: " in output
        assert len(re.findall(r"Redox\.|Copper\.", output)) == 2
        assert "in 1 line: these are 2 samples" in output
        assert "--no-split-turns" in output
    output = run("--data", str(path), "--rows", "2", "--no-split-turns")
    assert "line 2: " in output
    assert "Redox." not in output
    assert "in 1 line: they are not learned (--split-turns" in output
    for option in (["--loss-on", "all"], ["--learn", "last"]):
        assert "sample 1 of" not in run("--data", str(path), "--rows", "2", *option)
    checked = CliRunner().invoke(cli, ["check-data", "--model", str(MODEL), "--data", str(path)])
    assert "in 1 line: these are 2 samples, each up to a turn whose thoughts are learned" in checked.output
    assert "in 3 samples" in checked.output
    assert ": 2 lines, template" in checked.output


@pytest.mark.parametrize(
    ("given", "idle"),
    [
        (["--learn", "last"], "--learn would"),
        (["--learn", "all-assistant"], "--learn would"),
        (["--prompt-weight", "0.5"], "--prompt-weight would"),
        (["--learn", "last", "--prompt-weight", "0"], "--learn and --prompt-weight would"),
    ],
)
def test_what_has_no_effect_on_all_tokens_is_wrong_usage(chat: str, given: list[str], idle: str) -> None:
    output = run("--data", chat, "--loss-on", "all", *given, status=2)
    assert f"{idle} have no effect with --loss-on all: every token counts" in output
    assert "or give --loss-on answer" in output
    run("--data", chat, *given)
    old = ["finetune", "--model-base", str(MODEL), "--train-data", chat, *given]
    result = CliRunner().invoke(cli, old)
    assert result.exit_code == 2
    assert f"{idle} have no effect with --loss-on all, which is the default here" in result.output


def test_a_page(chat: str, tmp_path: Path) -> None:
    output = run("--data", chat, "--template", "chatml", "--html", str(tmp_path / "page.html"))
    assert "page.html: 2 samples" in output
    page = (tmp_path / "page.html").read_text()
    assert "Why is rust red? &lt;b&gt;" in page
    assert "<b>" not in page
    assert '<span class="learned">Iron oxide is.</span>' in page
    assert '<span class="some" title="weight 0.5">Green &lt;/s&gt;.</span>' in page
    assert '<span class="learned"><span class="special">&lt;/s&gt;</span></span>' in page
    assert "learned with the weight 0.5</span>" in page
    run("--data", chat, "--rows", "2", "--html", str(tmp_path / "plain.html"))
    assert "with the weight" not in (tmp_path / "plain.html").read_text()
    assert "<script" not in page
    assert "http" not in page


SHAPES: dict[str, tuple[str, Any]] = {
    "OpenAI": ("a.jsonl", [CHAT]),
    "ShareGPT": ("a.json", [{"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}]),
    "Alpaca": ("a.json", [{"instruction": "Name a metal.", "input": "", "output": "Tin."}]),
    "Alpaca with input": ("a.jsonl", [{"instruction": "Shorten.", "input": "Tin is soft.", "output": "Soft."}]),
    "Dolly": ("a.jsonl", [{"instruction": "Which?", "context": "Tin is soft.", "response": "Tin.", "category": "qa"}]),
    "OASST": (
        "a.jsonl",
        [
            {"message_id": "a", "parent_id": None, "role": "prompter", "text": "Why?"},
            {"message_id": "b", "parent_id": "a", "role": "assistant", "text": "So."},
        ],
    ),
    "SQuAD": ("a.jsonl", [{"context": "Tin is soft.", "question": "Which?", "answers": {"text": ["Tin"]}}]),
    "text": ("a.jsonl", [{"text": "<s>[INST] Why? [/INST] So. </s>"}]),
    "Excel": ("a.csv", 'sep=;\r\nQuestion;Answer\r\n"Is ""tin""\r\nsoft?";Yes\r\n'.encode("utf-16")),
    "LibreOffice": ("a.csv", b'"Question","Answer"\n"Is tin, like lead, soft?","Yes\nindeed"\n'),
    "Google": ("a.tsv", b"Question\tAnswer\nHow much is it?\t=SUM(1;2)\n"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_previewed_and_trained_by_one_command(shape: str, tmp_path: Path) -> None:
    name, rows = SHAPES[shape]
    path = tmp_path / name
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "of them learned" in run("--data", str(path))
    arguments = [
        "train",
        "--model",
        str(MODEL),
        "--data",
        str(path),
        "--max-steps",
        "1",
        "--holdout",
        "0",
        "--rank",
        "1",
    ]
    result = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "run"), "--targets", "attn_q"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run/adapter.gguf").is_file()


def test_chats_with_tools_need_a_template_that_knows_them(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}}
    messages = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
    output = run("--data", str(tmp_path / "a.jsonl"), status=1)
    assert "line 1: The model's chat template leaves out the tool call of turn 2" in output
    template = tmp_path / "tools.jinja"
    template.write_text(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls %}"
        "CALL {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}</s>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    output = run("--data", str(tmp_path / "a.jsonl"), "--template", str(template), color=True)
    assert '\x1b[32mCALL weather {"town": "Ulm"}' in output
