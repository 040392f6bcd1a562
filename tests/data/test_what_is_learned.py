"""Masks where data are not as they should be: what stands behind an answer, texts that a template changes, weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from ggtune import _core
from ggtune.data.dataset import Dataset
from ggtune.data.load import load_samples
from ggtune.data.samples import Sample
from ggtune.errors import DataError

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def learned(model: _core.Model, sample: Sample) -> str:
    return model.detokenize(sample.tokens[sample.weights > 0], special=True).decode()


@pytest.mark.parametrize(
    "behind", ["</s><s>[INST] more? [/INST]"[:15], "</s> [INST] more?", "</s>\nand a note", " [INST] more?"]
)
def test_what_follows_the_only_answer_is_not_learned(demo_model: _core.Model, tmp_path: Path, behind: str) -> None:
    (tmp_path / "a.txt").write_text(f"<SFT><s>[INST] Why? [/INST] So. {behind}")
    data = load_samples(tmp_path / "a.txt", demo_model, context=64, template="llama2")
    plain = load_samples(
        lines(tmp_path / "b.jsonl", {"question": "Why?", "answer": "So."}), demo_model, context=64, template="llama2"
    )
    (found,), (expected,) = data.samples, plain.samples
    assert learned(demo_model, found) == learned(demo_model, expected)
    assert found.tokens.tolist() == expected.tokens.tolist()


def test_a_changed_turn_does_not_move_the_mask(demo_model: _core.Model, tmp_path: Path) -> None:
    """The template writes a tool's result anew, and it holds the words of both answers."""
    template = tmp_path / "loud.jinja"
    template.write_text(
        "{% for m in messages %}<{{ m.role }}>"
        "{{ m.content | replace('1', '2') if m.role == 'tool' else m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    row = {"messages": [*CHAT, {"role": "tool", "content": "b it is 1"}, {"role": "assistant", "content": "b it is"}]}
    path = lines(tmp_path / "a.jsonl", row)
    (sample,) = load_samples(path, demo_model, context=64, template=str(template)).samples
    assert learned(demo_model, sample) == "b</s>b it is</s>"
    template.write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.index < 3 else m.content[:1] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    with pytest.raises(DataError, match="line 1: The model's chat template leaves out the text of turn 3"):
        load_samples(path, demo_model, context=64, template=str(template))


def test_weights_of_texts(demo_model: _core.Model, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "Gold is soft.", "weight": 0.5}, {"text": "Tin too.", "weight": 0})
    with pytest.raises(DataError, match="line 2: nothing of it would be learned: its weight is 0"):
        load_samples(path, demo_model, context=64)
    (sample,) = load_samples(path, demo_model, context=64, skip_bad=True).samples
    assert set(sample.weights[1:].tolist()) == {0.5}


def test_a_given_message_is_not_learned_with_loss_on_all(demo_model: _core.Model, tmp_path: Path) -> None:
    row = {"messages": [CHAT[0], {**CHAT[1], "content": "never", "weight": 0}, *CHAT]}
    (sample,) = load_samples(
        lines(tmp_path / "a.jsonl", row), demo_model, context=64, template="chatml", loss_on="all"
    ).samples
    assert "never" not in learned(demo_model, sample)
    assert "user" in learned(demo_model, sample)


def test_a_cut_that_leaves_only_the_prompt_skips_the_sample(demo_model: _core.Model, tmp_path: Path) -> None:
    rows = [{"question": "Why is it so? " * 20, "answer": "So."}, {"question": "Why?", "answer": "So."}]
    path = lines(tmp_path / "a.jsonl", *rows)
    for weight in (0.0, 0.1):
        data = load_samples(path, demo_model, context=48, template="chatml", prompt_weight=weight)
        assert list(data.report.skipped_rows) == [1]


def test_rows_of_another_kind_are_named(demo_model: _core.Model, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "Gold is soft."}, {"messages": CHAT}, {"text": "Tin too."})
    with pytest.raises(DataError, match="row 2 is a conversation, and the rows before are texts"):
        load_samples(path, demo_model, context=64)


def load(path: Path, model: _core.Model, **options: Any) -> Dataset:
    return load_samples(path, model, context=64, template="chatml", **options)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"question": "a\\ud83d", "answer": "b"}', "holds half a character"),
        (json.dumps({"messages": [CHAT[0], {"role": "assistant", "tool_calls": 5}]}), "are a number, not a list"),
        (json.dumps({"question": "a", "answer": ["b", "c"]}), "holds 2 texts: one is learned"),
    ],
)
def test_odd_values_are_a_rows_fault(demo_model: _core.Model, tmp_path: Path, row: str, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": "c", "answer": "d"}) + "\n" + row + "\n")
    with pytest.raises(DataError, match=f"line 2: .*{reason}"):
        load(path, demo_model)
    assert len(load(path, demo_model, skip_bad=True).samples) == 1


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
def test_half_a_character_at_the_end(demo_model: _core.Model, tmp_path: Path, suffix: str) -> None:
    text = {"csv": "question,answer\na,b\n", "jsonl": json.dumps({"question": "a", "answer": "b"}), "txt": "Gold."}
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(text[suffix].encode("utf-16") + b"\x41")
    with pytest.raises(DataError, match="is not whole: it ends in the middle of a character"):
        load(path, demo_model)


def test_a_question_without_an_answer_at_the_end_is_left_out(demo_model: _core.Model, tmp_path: Path) -> None:
    whole = load(lines(tmp_path / "a.jsonl", {"messages": CHAT}), demo_model)
    more = load(lines(tmp_path / "b.jsonl", {"messages": [*CHAT, {"role": "user", "content": "and?"}]}), demo_model)
    assert more.samples[0].tokens.tolist() == whole.samples[0].tokens.tolist()
    assert "unanswered" in {doubt.kind for doubt in more.report.doubts}


def test_columns_called_alike(demo_model: _core.Model, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer,Answer\na,b,c\n")
    with pytest.raises(DataError, match="two columns are called 'answer'"):
        load(tmp_path / "a.csv", demo_model)


def test_other_splits_of_a_folder_are_not_trained_on(demo_model: _core.Model, tmp_path: Path) -> None:
    for name in ("constraints", "test", "validation-00000"):
        lines(tmp_path / f"{name}.jsonl", {"question": name, "answer": "b"})
    (sample,) = load(tmp_path, demo_model).samples
    assert "constraints" in demo_model.detokenize(sample.tokens).decode()


VOCABULARY = Path(__file__).parents[2] / "vendor/llama.cpp/models/ggml-vocab-qwen2.gguf"


class TagIsBos:
    chat_template = None
    add_bos = False

    def __init__(self) -> None:
        self._model = _core.Model(str(VOCABULARY), vocab_only=True)
        self.bos_token = int(self._model.tokenize("<|im_start|>", parse_special=True)[0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def test_a_bos_that_opens_turns_stays_in_text_of_several(tmp_path: Path) -> None:
    """SmolLM2's BOS is ChatML's tag: text of one turn and of two starts with it, and is known for what wrote it."""
    model = TagIsBos()
    turn = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
    (tmp_path / "a.txt").write_text(f"<SFT>{turn}\n<SFT>{turn.replace('Why', 'How')}{turn}")
    data = load_samples(tmp_path / "a.txt", model, context=128)  # type: ignore[arg-type]
    assert data.report.asked_with() == {"template": "chatml", "system": "", "system_differs": "false"}
    assert [sample.tokens[0] for sample in data.samples] == [model.bos_token] * 2


WEATHER = {"name": "get_weather", "description": "Weather of a town.", "parameters": {"type": "object"}}
RAIN = '{"town": "Ulm"}'


@pytest.mark.parametrize("role", ["function", "tool"])
@pytest.mark.parametrize("arguments", [RAIN, json.loads(RAIN)])
def test_function_calls_of_openais_former_api_are_tool_calls(
    demo_model: _core.Model, tmp_path: Path, role: str, arguments: Any
) -> None:
    """They were left out, and the assistant's turn with them."""
    asked, told = {"role": "user", "content": "Rain in Ulm?"}, {"role": "assistant", "content": "Yes."}
    call = {"name": "get_weather", "arguments": arguments}
    former = {
        "messages": [
            asked,
            {"role": "assistant", "content": None, "function_call": call},
            {"role": role, "name": "get_weather", "content": "rain"},
            told,
        ],
        "functions": [WEATHER],
    }
    today = {
        "messages": [
            asked,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "call00200", "type": "function", "function": call}],
            },
            {"role": "tool", "name": "get_weather", "tool_call_id": "call00200", "content": "rain"},
            told,
        ],
        "tools": [{"type": "function", "function": WEATHER}],
    }
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "Rain in Ulm?"},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": "rain"},
            {"from": "gpt", "value": "Yes."},
        ],
        "tools": json.dumps([{"type": "function", "function": WEATHER}]),
    }
    template = tmp_path / "tools.jinja"
    template.write_text(
        "{{ tools | tojson }}{% for m in messages %}<{{ m.role }} {{ m.name }} {{ m.tool_call_id }}>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant  >{% endif %}"
    )
    samples = [
        load_samples(lines(tmp_path / "a.jsonl", row), demo_model, context=512, template=str(template)).samples[0]
        for row in (former, sharegpt, today)
    ]
    assert '"name": "get_weather", "arguments": {"town": "Ulm"}' in learned(demo_model, samples[2])
    for sample in samples[:2]:
        assert sample.tokens.tolist() == samples[2].tokens.tolist()
        assert sample.weights.tolist() == samples[2].weights.tolist()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"function_call": "x"}, "'function_call of message 2' is a text that is no JSON"),
        ({"function_call": {"arguments": "{}"}}, "the function_call of message 2 is no object with name and arguments"),
        ({"function_call": {"name": "f", "arguments": "{"}}, "arguments of a tool call of message 2 are no JSON"),
        (
            {"function_call": {"name": "f"}, "tool_calls": [{"function": {"name": "f"}}]},
            "both tool_calls and a function",
        ),
    ],
)
def test_function_calls_that_are_none(demo_model: _core.Model, tmp_path: Path, message: Any, reason: str) -> None:
    row = {"messages": [CHAT[0], {"role": "assistant", "content": None, **message}]}
    with pytest.raises(DataError, match=reason):
        load(lines(tmp_path / "a.jsonl", row), demo_model)


@pytest.mark.parametrize("n_turns", [1, 2, 3])
def test_the_sample_start_is_left_in_text_of_any_number_of_turns(
    demo_model: _core.Model, tmp_path: Path, n_turns: int
) -> None:
    (tmp_path / "a.txt").write_text("".join(f"<SFT><s>{'[INST] Why? [/INST] So. </s>' * n_turns}\n" for _ in range(2)))
    without, within = (
        load_samples(tmp_path / "a.txt", demo_model, context=256, template="llama2", include_sample_start=included)
        for included in (False, True)
    )
    for one, other in zip(without.samples, within.samples, strict=True):
        assert demo_model.detokenize(other.tokens, special=True).decode().startswith("<s><SFT>[INST] Why?")
        assert learned(demo_model, other) == learned(demo_model, one) == " So. </s>" * n_turns
    # what is asked with has no mark
    assert within.report.asked_with() == without.report.asked_with()
    tag, turn = "<|im_start|>", "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
    (tmp_path / "a.txt").write_text(f"<SFT>{turn * n_turns}<SFT>{turn * n_turns}")
    model = TagIsBos()
    data = load_samples(tmp_path / "a.txt", model, context=256, include_sample_start=True)  # type: ignore[arg-type]
    assert model.detokenize(data.samples[0].tokens, special=True).decode().startswith(f"<SFT>{tag}user\nWhy?")


@pytest.mark.parametrize("learn", ["all-assistant", "answers", "thinking"])
@pytest.mark.parametrize("n_turns", [1, 2])
@pytest.mark.parametrize("name", ["chatml", "seed.jinja", "open.jinja"])
def test_thoughts_in_rendered_text_are_those_of_turns(
    demo_model: _core.Model, tmp_path: Path, name: str, n_turns: int, learn: Any
) -> None:
    """``--learn`` had no effect on ``<SFT>`` text."""
    head = "{% for m in messages %}<{{ m.role }}>"
    tail = "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>"
    (tmp_path / "seed.jinja").write_text(
        f"{head}{{% if m.thinking %}}<seed:think>{{{{ m.thinking }}}}</seed:think>\n{{% endif %}}{tail}{{% endif %}}"
    )
    (tmp_path / "open.jinja").write_text(  # the prompt opens the thought
        f"{head}{{% if m.role == 'assistant' %}}<think>\n{{{{ m.thinking }}}}\n</think>\n{{% endif %}}"
        f"{tail}<think>\n{{% endif %}}"
    )
    template: Any = name if name == "chatml" else str(tmp_path / name)
    answer = {"role": "assistant", "content": "So.", "thinking": "Hm."}
    row = {"messages": [{"role": "user", "content": "Why?"}, answer] * n_turns}
    turns = load_samples(lines(tmp_path / "a.jsonl", row), demo_model, context=256, template=template, learn=learn)
    text = demo_model.detokenize(turns.samples[0].tokens, special=True).decode().removeprefix("<s>")
    (tmp_path / "a.txt").write_text(f"<SFT>{text}")
    texts = load_samples(tmp_path / "a.txt", demo_model, context=256, template=template, learn=learn)
    assert texts.samples[0].tokens.tolist() == turns.samples[0].tokens.tolist()
    assert texts.samples[0].weights.tolist() == turns.samples[0].weights.tolist()
    assert ("Hm." in learned(demo_model, texts.samples[0])) == (learn != "answers")
    assert ("So." in learned(demo_model, texts.samples[0])) == (learn != "thinking")
    assert ("think>" in learned(demo_model, texts.samples[0])) == (learn != "answers")


def test_an_empty_thought_is_not_learned_as_one(demo_model: _core.Model, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>"
        "{% if m.role == 'assistant' %}<think>{{ m.thinking }}</think>\n{% endif %}"
        "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    path = lines(tmp_path / "a.jsonl", {"messages": [*CHAT, CHAT[0], {**CHAT[1], "thinking": "Hm."}]})
    for learn, expected in (("answers", "\nb</s>\nb</s>"), ("thinking", "<think>Hm.</think>")):
        (sample,) = load_samples(
            path,
            demo_model,
            context=256,
            template=str(tmp_path / "t.jinja"),
            learn=learn,  # type: ignore[arg-type]
        ).samples
        assert learned(demo_model, sample) == expected


def test_a_row_of_several_samples_is_named_once(demo_model: _core.Model, tmp_path: Path) -> None:
    """As cut, skipped or left out, whichever of its samples it is; all of them are of one group."""
    answer = {**CHAT[1], "content": "b " * 40, "thinking": "Hm. " * 10}
    rows = [{"messages": [CHAT[0], answer] * 3}, {"messages": CHAT}]
    path = lines(tmp_path / "a.jsonl", *rows)
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}<{{ m.role }}>"
        "{% if m.thinking and loop.last %}<think>{{ m.thinking }}</think>{% endif %}"
        "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    named = str(template)
    whole = load_samples(path, demo_model, context=1024, template=named)
    assert whole.samples.rows.tolist() == [1, 1, 1, 2]
    assert whole.report.n_read == 2
    assert len(set(whole.groups.tolist()[:3])) == 1
    cut = load_samples(path, demo_model, context=40, template=named)
    assert list(cut.report.cut_rows) == list(cut.report.skipped_rows) == [1]  # cut, and nothing left of the others
    skipped = load_samples(path, demo_model, context=40, template=named, too_long="skip")
    assert list(skipped.report.skipped_rows) == [1]
    dropped = load_samples(path, demo_model, context=1024, template=named, drop=["repetition"])
    assert {kind: list(rows) for kind, rows in dropped.report.dropped.items()} == {"repetition": [1]}
    assert dropped.samples.rows.tolist() == [2]
