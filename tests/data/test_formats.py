"""Formats and shapes that data sets come in: the same conversations by every way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggtune import _core
from ggtune.data.conversation import Conversation, Document, Turn
from ggtune.data.dataset import Dataset
from ggtune.data.load import load_samples
from ggtune.data.readers.reader import ReadOptions
from ggtune.data.samples import Sample
from ggtune.data.shapes import Columns
from ggtune.data.sources import files_of, open_source
from ggtune.errors import DataError, GgtuneError
from ggtune.setting_texts import DataPart

PAIRS = [("Why is iron red?", "It rusts."), ("Is gold\nred?", 'No, it\'s "yellow".')]


def items(path: Path, **options: Any) -> list[Conversation | Document]:
    read = ReadOptions(**options)
    found = []
    for file in files_of(path):
        source = open_source(file, read)
        found += list(source.items)
        source.findings.check(file, read)
    return found


def turns(path: Path, **options: Any) -> list[list[tuple[str, str]]]:
    return [[(turn.role, turn.text) for turn in item.turns] for item in items(path, **options)]  # type: ignore[union-attr]


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


EXPECTED = [[("user", question), ("assistant", answer)] for question, answer in PAIRS]


def as_messages(pair: tuple[str, str], keys: tuple[str, str], names: tuple[str, str]) -> list[dict[str, str]]:
    return [{keys[0]: name, keys[1]: text} for name, text in zip(names, pair, strict=True)]


SHAPES: dict[str, Callable[[tuple[str, str]], dict[str, Any]]] = {
    "question": lambda p: {"question": p[0], "answer": p[1]},
    "prompt": lambda p: {"Prompt": p[0], "Completion": p[1]},
    "alpaca": lambda p: {"instruction": p[0], "input": "", "output": p[1]},
    "query": lambda p: {"query": p[0], "response": p[1], "id": 3},
    "squad": lambda p: {"question": p[0], "answers": {"text": [p[1], "other"], "answer_start": [0, 0]}, "context": ""},
    "openai": lambda p: {"messages": as_messages(p, ("role", "content"), ("user", "assistant"))},
    "openai parts": lambda p: {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": p[0]}]},
            {"role": "assistant", "content": p[1]},
        ]
    },
    "sharegpt": lambda p: {"conversations": as_messages(p, ("from", "value"), ("human", "gpt"))},
    "conversational prompt": lambda p: {
        "prompt": [{"role": "user", "content": p[0]}],
        "completion": [{"role": "assistant", "content": p[1]}],
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_the_same_conversation(tmp_path: Path, shape: str) -> None:
    rows = [SHAPES[shape](pair) for pair in PAIRS]
    assert turns(lines(tmp_path / "a.jsonl", *rows)) == EXPECTED
    (tmp_path / "b.json").write_text(json.dumps({"data": rows}, indent=1))
    assert turns(tmp_path / "b.json") == EXPECTED
    lines(tmp_path / "noname", *rows)
    assert turns(tmp_path / "noname") == EXPECTED


@pytest.mark.parametrize("shape", ["question", "openai", "sharegpt"])
def test_parquet_and_saved_data_sets(tmp_path: Path, shape: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist([SHAPES[shape](pair) for pair in PAIRS])
    parquet.write_table(table, tmp_path / "a.parquet")
    assert turns(tmp_path / "a.parquet") == EXPECTED
    folder = tmp_path / "saved/train"  # as datasets.DatasetDict.save_to_disk writes it
    folder.mkdir(parents=True)
    arrow = str(folder / "data-00000-of-00001.arrow")
    with pyarrow.OSFile(arrow, "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert turns(tmp_path / "saved") == EXPECTED
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.parquet: is no whole Parquet file"):
        items(tmp_path / "cut.parquet")
    (folder / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match="is missing: the data set is not whole"):
        items(tmp_path / "saved")


def test_a_folder_of_shards_and_one_of_texts(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    lines(shards / "train-1.jsonl", SHAPES["question"](PAIRS[1]))
    lines(shards / "train-0.jsonl", SHAPES["openai"](PAIRS[0]))
    lines(shards / "test-0.jsonl", {"question": "not", "answer": "trained"})
    assert turns(shards) == EXPECTED
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "b.txt").write_text("Second.")
    (texts / "a.txt").write_text("First.")
    assert [item.text for item in items(texts)] == ["First.", "Second."]  # type: ignore[union-attr]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data file"):
        items(tmp_path / "empty")


def test_dolly_squad_and_trees(tmp_path: Path) -> None:
    dolly = {"instruction": "What is red?", "context": "Copper is red.", "response": "Copper", "category": "qa"}
    assert turns(lines(tmp_path / "a.jsonl", dolly)) == [
        [("user", "What is red?\n\nCopper is red."), ("assistant", "Copper")]
    ]
    squad = {
        "context": "Copper is red.",
        "qas": [{"question": "What is red?", "answers": [{"text": "Copper"}], "id": "1"}],
    }
    (tmp_path / "squad.json").write_text(json.dumps({"version": "1", "data": [{"title": "x", "paragraphs": [squad]}]}))
    assert turns(tmp_path / "squad.json") == [[("user", "Copper is red.\n\nWhat is red?"), ("assistant", "Copper")]]
    tree = [
        {"message_id": "a", "parent_id": None, "role": "prompter", "text": "Hi?"},
        {"message_id": "b", "parent_id": "a", "role": "assistant", "text": "Ho."},
        {"message_id": "c", "parent_id": "b", "role": "prompter", "text": "And?"},
        {"message_id": "d", "parent_id": "c", "role": "assistant", "text": "So."},
        {"message_id": "e", "parent_id": "a", "role": "assistant", "text": "Hey."},
        {"message_id": "f", "parent_id": "e", "role": "prompter", "text": "unanswered"},
    ]
    found = items(lines(tmp_path / "tree.jsonl", *tree))
    assert [[turn.text for turn in item.turns] for item in found] == [["Hi?", "Ho.", "And?", "So."], ["Hi?", "Hey."]]  # type: ignore[union-attr]


def test_what_a_message_may_hold(tmp_path: Path) -> None:
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"n": 1}'}}
    row = {
        "messages": [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": "Hi?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "2", "tool_call_id": "x", "name": "f"},
            {"role": "assistant", "content": "<think>two</think>\n\nTwo.", "weight": 0},
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "So.", "reasoning_content": "hm", "weight": 0.5},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "weight": 2,
    }
    (found,) = items(lines(tmp_path / "a.jsonl", row))
    assert isinstance(found, Conversation)
    assert found.system == "Be kind."
    assert (found.weight, found.tools) == (2.0, tuple(row["tools"]))  # type: ignore[arg-type]
    assert found.turns[2].fields["tool_calls"][0]["function"]["arguments"] == {"n": 1}
    assert found.turns[4] == Turn("assistant", "Two.", False, 1.0, "two")
    assert found.turns[6] == Turn("assistant", "So.", None, 0.5, "hm")


GOOD = {"question": "a", "answer": "b"}
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
BAD_ROWS = {
    '{"question": "a"': "is no JSON",
    "[1, 2]": "is list, not an object",
    json.dumps({"messages": "hi"}): "is a text that is no JSON",
    json.dumps({"messages": [{"role": "wizard", "content": "a"}]}): "message 1 has the unknown role 'wizard'",
    json.dumps({"messages": [{"content": "a"}]}): "message 1 has no role",
    json.dumps({"messages": CHAT[1:]}): "message 1 is the assistant's, and nobody has asked yet",
    json.dumps({"messages": CHAT[:1]}): "no message is the assistant's",
    json.dumps({"messages": [{"role": "system", "content": "s"}] * 2 + CHAT}): "message 2 is a second system text",
    json.dumps({"messages": [*CHAT, {"role": "system", "content": "s"}]}): "message 3 is a system text: only the first",
    json.dumps({"messages": [{"role": "user", "content": ""}, CHAT[1]]}): "message 1 (user) is empty",
    json.dumps({"messages": ["a"]}): "message 1 is a text, not an object",
    json.dumps(
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, CHAT[1]]}
    ): "a part of type 'image_url'",
    json.dumps(
        {"messages": [{"role": "user", "content": 5}, {"role": "user", "content": {}}]}
    ): "is an object, not a text",
    json.dumps({"question": "a", "answer": ["x", "y"], "weight": "heavy"}): "the weight 'heavy' is no number",
    json.dumps({"question": "a", "answer": "b", "weight": -1}): "the weight -1 is no number of at least 0",
    json.dumps({"question": {"b": 1}, "answer": "a"}): "'question' is an object, not a text",
    json.dumps({"quest": "a", "answer": "b"}): "no question column found among 'quest', 'answer'",
}


def test_all_bad_rows_are_named_at_once_or_skipped(tmp_path: Path, demo_model: _core.Model) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps(GOOD), "", *BAD_ROWS, json.dumps({"question": "c", "answer": "d"})]))
    with pytest.raises(DataError) as caught:
        load_samples(path, demo_model, context=64, template="chatml")
    text = str(caught.value)
    assert f"{path}: {len(BAD_ROWS)} rows can't be used:" in text
    for number, message in enumerate(BAD_ROWS.values(), start=3):
        (line,) = [line for line in text.splitlines() if line.startswith(f"  line {number}: ")]
        assert message in line
    assert text.endswith("--skip-bad.")
    data = load_samples(path, demo_model, context=64, template="chatml", skip_bad=True)
    assert [sample.row for sample in data.samples] == [1, len(BAD_ROWS) + 3]
    assert [number for number, _ in data.report.bad_rows] == list(range(3, len(BAD_ROWS) + 3))
    path.write_text("\n".join([json.dumps(GOOD), *["{"] * 70]))
    with pytest.raises(DataError, match=r"70 rows can't be used:(\n  line .*){20}\n  \.\.\. and 50 more\n"):
        load_samples(path, demo_model, context=64, template="chatml")


def test_given_columns_and_formats(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.txt", {"q": "a", "r": "b", "about": "c", "w": 3})
    columns = Columns("q", "r", "about", "w")
    (found,) = items(path, format="jsonl", columns=columns)
    assert isinstance(found, Conversation)
    assert ([turn.text for turn in found.turns], found.weight) == (["a\n\nc", "b"], 3.0)
    with pytest.raises(DataError, match="There is no data format 'xml'"):
        items(path, format="xml")


def content(samples: Any) -> list[tuple[list[int], list[float]]]:
    return [(sample.tokens.tolist(), sample.weights.tolist()) for sample in samples]


def learned(model: _core.Model, sample: Sample) -> list[str]:
    """Texts of the runs of tokens that count."""
    runs: list[list[int]] = []
    for token, weight, before in zip(sample.tokens, sample.weights, np.append(0, sample.weights[:-1]), strict=True):
        if weight and not before:
            runs.append([])
        if weight:
            runs[-1].append(int(token))
    return [model.detokenize(run, special=True).decode() for run in runs]


@pytest.mark.parametrize("template", ["chatml", "llama2", "llama3", "gemma", "mistral", None])
def test_every_answer_of_a_conversation_is_learned(
    demo_model: _core.Model, tmp_path: Path, template: str | None
) -> None:
    row = {"messages": [*CHAT, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}
    path = lines(tmp_path / "a.jsonl", row)

    def load(**options: Any) -> Dataset:
        return load_samples(path, demo_model, context=128, template=template, **options)

    (sample,) = load().samples
    first, second = learned(demo_model, sample)
    assert first.strip().startswith("b")
    assert second.strip().startswith("d")
    assert all(demo_model.is_end_token(demo_model.tokenize(run)[-1]) for run in (first, second))
    assert "d" in demo_model.detokenize(sample.tokens[sample.n_prompt :]).decode()
    assert "c" not in demo_model.detokenize(sample.tokens[sample.n_prompt :]).decode()
    (last,) = load(learn="last").samples
    assert learned(demo_model, last) == [second]
    (weighted,) = load(prompt_weight=0.25).samples
    assert set(weighted.weights[1:].tolist()) == {0.25, 1.0}
    assert ((weighted.weights == 1) == (sample.weights == 1)).all()


def test_text_of_several_turns_is_the_conversation(demo_model: _core.Model, tmp_path: Path) -> None:
    """The second question of ``<SFT>`` text is no answer."""
    row = {"messages": [*CHAT, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}
    chat = load_samples(lines(tmp_path / "a.jsonl", row), demo_model, context=128, template="llama2")
    text = "[INST] a [/INST] b </s><s>[INST] c [/INST] d </s>"
    (tmp_path / "a.txt").write_text(f"<SFT><s>{text}\n<SFT>{text}")
    lines(tmp_path / "b.jsonl", {"text": text}, {"text": f"<s>{text}"})
    for name in ("a.txt", "b.jsonl"):
        data = load_samples(tmp_path / name, demo_model, context=128, template="llama2")
        assert content(data.samples) == content(chat.samples) * 2
    (tmp_path / "bad.txt").write_text("<SFT>[INST] a [/INST] b c [/INST] d </s>")
    with pytest.raises(DataError, match=r"line 1: it is unknown where answer 1 of 2 ends: there is no '</s>'"):
        load_samples(tmp_path / "bad.txt", demo_model, context=128)


def test_the_same_rows_by_table_text_and_lines(demo_model: _core.Model, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('question,answer\nWhy?,So.\n"Is, it?",Yes.\n')
    lines(tmp_path / "a.jsonl", {"question": "Why?", "answer": "So."}, {"question": "Is, it?", "answer": "Yes."})
    (tmp_path / "a.txt").write_text("<SFT><s>[INST] Why? [/INST] So. </s>\n<SFT><s>[INST] Is, it? [/INST] Yes. </s>\n")
    lines(tmp_path / "b.jsonl", {"text": "[INST] Why? [/INST] So. </s>"}, {"text": "[INST] Is, it? [/INST] Yes. </s>"})
    found = [
        content(load_samples(tmp_path / name, demo_model, context=64, template="llama2").samples)
        for name in ("a.csv", "a.jsonl", "a.txt", "b.jsonl")
    ]
    assert all(other == found[0] for other in found)


def test_texts_without_tags_are_learned_whole(demo_model: _core.Model, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "Gold is yellow."}, {"text": "Iron rusts in wet air."})
    data = load_samples(path, demo_model, context=64)
    assert data.template is None
    for sample, text in zip(data.samples, ("Gold is yellow.", "Iron rusts in wet air."), strict=True):
        assert sample.weights[1:].all()
        assert demo_model.is_end_token(int(sample.tokens[-1]))
        assert text in demo_model.detokenize(sample.tokens).decode()


def test_several_files_with_weights_and_repeats(demo_model: _core.Model, tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", {"question": "Why?", "answer": "So."})
    lines(tmp_path / "b.jsonl", {"messages": CHAT})
    parts = [DataPart.parse(f"{tmp_path}/a.jsonl*3"), DataPart.parse(f"{tmp_path}/b.jsonl=0.5")]
    data = load_samples(parts, demo_model, context=64, template="chatml")
    alone = [
        load_samples(tmp_path / name, demo_model, context=64, template="chatml").samples[0]
        for name in ("a.jsonl", "b.jsonl")
    ]
    assert content(data.samples)[:3] == content([alone[0]] * 3)
    assert data.samples[3].weights.tolist() == (0.5 * alone[1].weights).tolist()
    assert len(set(data.groups.tolist())) == 2
    assert "duplicate" not in {doubt.kind for doubt in data.report.doubts}


def test_a_jinja_file_is_a_template(demo_model: _core.Model, tmp_path: Path) -> None:
    """It is found again by its text, not by the file; the same samples as by the named template that it spells."""
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    file = tmp_path / "mine.jinja"
    file.write_text(source)
    path = lines(tmp_path / "a.jsonl", {"messages": CHAT})
    data = load_samples(path, demo_model, context=64, template=str(file))
    assert data.report.lines()[0] == f"{path}: 1 lines, template 'mine.jinja'"
    file.unlink()
    again = load_samples(path, demo_model, context=64, template=data.report.asked_with()["template"])
    named = load_samples(path, demo_model, context=64, template="chatml")
    assert content(data.samples) == content(again.samples) == content(named.samples)
    with pytest.raises(GgtuneError, match=r"other\.jinja: the chat template can't be read: No such file"):
        load_samples(path, demo_model, context=64, template=str(tmp_path / "other.jinja"))
    file.write_text("{% for m in messages %}")
    with pytest.raises(GgtuneError, match="has an error in line 1"):
        load_samples(path, demo_model, context=64, template=str(file))


def test_text_without_the_system_text_of_the_models_own_template(demo_model: _core.Model, tmp_path: Path) -> None:
    """A model is asked as the text was written: by the template that puts no system text of its own."""

    class Talkative:
        chat_template = (
            "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are big.<|im_end|>\n{% endif %}"
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )

        def __getattr__(self, name: str) -> object:
            return getattr(demo_model, name)

    turn = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>"
    system = "<|im_start|>system\nYou are big.<|im_end|>\n"
    for text, template in ((turn, "chatml"), (system + turn, "model")):
        (tmp_path / "a.txt").write_text(f"<SFT>{text}\n<SFT>{text.replace('Why', 'How')}\n")
        data = load_samples(tmp_path / "a.txt", Talkative(), context=64)  # type: ignore[arg-type]
        assert data.report.asked_with() == {"template": template, "system": "", "system_differs": "false"}


def test_the_category_of_a_row_is_carried_and_trains_nothing(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("question,answer,Topic,kind\nq1?,a1,Gases,x\nq2?,a2,,7\n")

    def categories(**columns: str) -> list[str]:
        options = ReadOptions(columns=Columns(**columns))
        return [item.category for item in open_source(table, options).items]

    assert categories() == ["Gases", ""]
    assert categories(category="kind") == ["x", "7"]
    with pytest.raises(DataError, match="no column 'sort' for the category"):
        categories(category="sort")
    rows = tmp_path / "rows.jsonl"
    chat = [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "a"}]
    lines = [{"messages": chat, "label": value} for value in ("one", 2, None, ["a list"])]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [item.category for item in open_source(rows, ReadOptions()).items] == ["one", "2", "", ""]
    answers = tmp_path / "labels.csv"
    answers.write_text("question,label\nq?,yes\n")
    (item,) = open_source(answers, ReadOptions(columns=Columns(answer="label"))).items
    assert item.category == ""  # it is the answer
