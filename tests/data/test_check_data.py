"""``check-data`` on a file with one fault of each kind: each is found, with its row."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ggtune.cli import cli
from ggtune.data.doubts import KINDS, Inspector
from ggtune.demo import MODEL
from ggtune.setting_texts import DROPPABLE_DOUBTS

METALS = ("iron", "gold", "zinc", "lead", "tin", "silver", "copper", "nickel")
VERBS = ("melt", "bend", "rust", "shine", "break", "float", "burn", "ring")
PLACES = ("in a forge", "at sea", "on the moon", "in a cellar", "under a hammer")
GOOD = [
    (f"Does {metal} {verb} {place}?", f"{verb.title()}ing of {metal} {place} takes its time.")
    for metal in METALS
    for verb in VERBS
    for place in PLACES
]
LONG = "The smith heats the bar, strikes it flat, and then quenches it in oil before it is ground again "
# kind of doubt: question, answer
PLANTED = {
    "duplicate": ("does iron melt in a forge", "Melting of iron in a forge  takes its time"),
    "contradiction": ("Does gold melt in a forge?", "Never."),
    "short answer": ("Is a bell of bronze?", "y"),
    "cut answer": ("How is a blade made?", LONG * 3),
    "copied question": ("Who polishes the swords of the town?", "Who polishes the swords of the town?"),
    "encoding damage": ("What did the old smith call it?", "He called it Ã¤rgerlich."),
    "template tags": ("<|im_start|>user\nWhat is an anvil?<|im_end|>", "A block to strike upon."),
    "chatbot": ("Which smith is best?", "As an AI language model, I have never met one."),
    "markup": ("What is a tong?", "A tool<br>to hold the bar."),
    "formula": ("How many hammers are there?", "=SUM(B2:B9)"),
    "placeholder": ("What is a swage?", "TODO"),
    "control characters": ("What is a\u200b fuller?", "A tool to groove the bar."),
    "other script": ("Что такое молот?", "Это тяжёлый инструмент кузнеца."),
    "long word": ("What is in the file?", "aGVsbG8gd29ybGQ" * 20),
    "repetition": ("What does the smith say?", "Strike the iron hot! " * 12),
    "near duplicate": (
        "Tell me in a few words how the old smith of our town used to harden the blades that he made for the farmers",
        "He heated them to a cherry red and let them cool in oil, slowly, before he ground them on the stone by hand.",
    ),
}
SECOND = (
    "Tell me in a few words how the old smith of our town used to harden the blades that he made for the farmers",
    "He heated them to a cherry red and let them cool in oil, slowly, before he ground them on the stone himself.",
)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A file, and the line of each fault."""
    lines: list[str] = [json.dumps({"question": q, "answer": a}) for q, a in GOOD]
    at: dict[str, int] = {}

    def plant(kind: str, row: Any) -> None:
        lines.append(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False))
        at[kind] = len(lines)

    lines.append(json.dumps({"question": SECOND[0], "answer": SECOND[1]}))
    for kind, (question, answer) in PLANTED.items():
        plant(kind, {"question": question, "answer": answer})
    for i in range(20):
        plant(f"same {i}", {"question": f"Is rule {i} of the guild old?", "answer": "That is not recorded."})
    at["same answer"] = at["same 0"]
    chat = [{"role": "user", "content": "Are you there?"}, {"role": "assistant", "content": "I am, at the anvil."}]
    plant("unanswered", {"messages": [*chat, {"role": "user", "content": "And now?"}]})
    plant("empty", {"question": "What is nothing?", "answer": ""})
    plant(
        "too long", {"question": "Tell all.", "answer": "Then he struck again, and once more, as ever. " * 40 + "End."}
    )
    plant("bad JSON", '{"question": "Why?", "answer": ')
    plant("unknown role", {"messages": [{"role": "wizard", "content": "Hi."}]})
    path = tmp_path_factory.mktemp("faulty") / "faulty.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path, at


def check(path: Path, *options: str, status: int = 0) -> str:
    arguments = ["check-data", "--model", str(MODEL), "--data", str(path), "--ctx", "256", *options]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == status, result.output
    return result.output


def found_in(output: str) -> dict[str, list[str]]:
    """Of each kind, the lines about its rows."""
    found: dict[str, list[str]] = {}
    kind = ""
    for line in output.splitlines():
        if header := re.match(r"  ([a-z ]+): \d+ \(", line):
            kind = header[1]
        elif kind and line.startswith("    "):
            found.setdefault(kind, []).append(line.strip())
    return found


def test_every_planted_fault_is_found_with_its_row(faulty: tuple[Path, dict[str, int]]) -> None:
    path, at = faulty
    output = check(path, "--skip-bad", "--near-duplicates", "--all", "--holdout", "0")
    found = found_in(output)
    kinds = set(KINDS) - {"leak"}
    assert kinds <= set(at)
    for kind in kinds:
        about = [line for line in found[kind] if re.match(rf"line {at[kind]}\b", line)]
        assert about, (kind, found[kind])
    assert "line 1" not in "".join(found["duplicate"]).replace("line 1:", "")
    assert f"line {at['duplicate']}: of 1" in found["duplicate"]
    assert f"line {at['contradiction']}: to 41" in found["contradiction"]
    assert f"line {at['near duplicate']}: of {len(GOOD) + 1}" in found["near duplicate"]
    assert f"line {at['same answer']}: to 20 questions" in found["same answer"]
    for kind, lines in found.items():  # and nothing of what is right
        assert all(int(re.match(r"line (\d+)", line)[1]) > len(GOOD) for line in lines), kind  # type: ignore[index]
    assert f"skipped, line {at['bad JSON']}: is no JSON" in output
    assert f"skipped, line {at['unknown role']}: message 1 has the unknown role 'wizard'" in output
    assert f"skipped, question or answer empty: lines {at['empty']}" in output
    assert re.search(rf"cut to the context: lines .*\b{at['too long']}\b", output)


def test_a_clean_file_has_no_doubts(tmp_path: Path) -> None:
    path = tmp_path / "good.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in GOOD))
    output = check(path, "--strict", "--near-duplicates")
    assert "No doubts." in output
    assert "suggested: --ctx 64" in output
    assert "100.0 % of the samples fit into --ctx 256" in output


def test_strict_and_bad_rows_are_errors(faulty: tuple[Path, dict[str, int]]) -> None:
    path, at = faulty
    output = check(path, status=1)
    assert "2 rows can't be used" in output
    assert f"line {at['bad JSON']}: is no JSON" in output
    output = check(path, "--skip-bad", "--strict", status=1)
    assert re.search(r"\d+ doubts, 3 rows skipped \(--strict\)", output)


def test_a_question_on_both_sides_is_a_leak(tmp_path: Path) -> None:
    """Never by a share: duplicates stay together; but --holdout every:N takes rows as they come."""
    rows = [*GOOD[:30], *GOOD[:30]]
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    for holdout in ("0.2", "5", "every:7"):
        output = check(path, "--holdout", holdout)
        assert "leak" not in output
        assert "duplicate: 30" in output


def test_rows_are_left_out_only_where_asked(faulty: tuple[Path, dict[str, int]]) -> None:
    path, at = faulty
    output = check(path, "--skip-bad", "--drop", "duplicate,chatbot")
    assert f"left out by --drop, duplicate: lines {at['duplicate']}" in output
    assert f"left out by --drop, chatbot: lines {at['chatbot']}" in output
    result = CliRunner().invoke(cli, ["check-data", "--model", str(MODEL), "--data", str(path), "--drop", "chatter"])
    assert result.exit_code == 1
    assert "knows no 'chatter'; kinds are duplicate, near duplicate" in result.output
    assert set(DROPPABLE_DOUBTS) == set(KINDS) - {"leak", "same answer", "other script"}


def test_the_start_of_a_training_counts_the_doubts(faulty: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    path, _ = faulty
    arguments = ["train", "--model", str(MODEL), "--data", str(path), "--skip-bad", "--max-steps", "1", "--batch", "1"]
    result = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "run"), "--holdout", "0"])
    assert result.exit_code == 0, result.output
    assert re.search(r"Data: doubtful lines: .*\bduplicate 1\b.*\(ggtune check-data names them\)", result.output)


@pytest.mark.parametrize("kind", ["duplicate", "contradiction"])
def test_the_inspector_tells_what_a_row_asks(kind: str) -> None:
    from ggtune.data.conversation import exchange

    inspector = Inspector()
    group, kinds = inspector.add(exchange("Why?", "So.", row=1))
    answer: Callable[[str], str] = {"duplicate": str.upper, "contradiction": lambda text: "No."}[kind]
    assert kinds == set()
    assert inspector.add(exchange("why", answer("So."), row=2)) == (group, {kind})


def test_a_held_out_file_that_shares_questions_is_a_leak(tmp_path: Path) -> None:
    for name, rows in (("train", GOOD[:30]), ("test", [*GOOD[40:50], GOOD[3]])):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows)
        )
    output = check(tmp_path / "train.jsonl", "--holdout", str(tmp_path / "test.jsonl"))
    assert found_in(output)["leak"] == ["test.jsonl line 11: of train.jsonl line 4"]
    held_out = ("--holdout", str(tmp_path / "test.jsonl"))
    assert "1 doubts, 0 rows skipped (--strict)" in check(tmp_path / "train.jsonl", *held_out, "--strict", status=1)
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write('{"question": "Why?", "answer": ""}\n')
    assert "1 doubts, 1 rows skipped (--strict)" in check(tmp_path / "train.jsonl", *held_out, "--strict", status=1)


def test_different_tool_calls_are_no_duplicates() -> None:
    from ggtune.data.conversation import Conversation, Turn

    inspector = Inspector()
    for row, town in enumerate(("Rome", "Oslo", "Rome"), start=1):
        call = {"function": {"name": "weather", "arguments": {"town": town}}}
        turns = (Turn("user", "Rain?"), Turn("assistant", "", fields={"tool_calls": [call]}))
        kinds = inspector.add(Conversation(turns, row))[1]
        assert kinds == ({"duplicate"} if row == 3 else set())
