import pytest

from ggtune.data.templates import TEMPLATES
from ggtune.errors import GgtuneError

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."

# name, system, prompt, answer, BOS: written out as the formats are documented
TURNS = [
    ("alpaca", None, f"{ALPACA}\n\n### Instruction:\nQ?\n\n### Response:\n", "A.", ""),
    ("alpaca", "S.", "S.\n\n### Instruction:\nQ?\n\n### Response:\n", "A.", ""),
    ("llama2", None, "[INST] Q? [/INST]", " A. </s>", "<s>"),
    ("llama2", "S.", "[INST] <<SYS>>\nS.\n<</SYS>>\n\nQ? [/INST]", " A. </s>", "<s>"),
    ("mistral", None, "[INST] Q? [/INST]", " A.</s>", "<s>"),
    ("chatml", None, "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n", "A.<|im_end|>", ""),
    (
        "chatml",
        "S.",
        "<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n",
        "A.<|im_end|>",
        "",
    ),
    (
        "llama3",
        "S.",
        "<|start_header_id|>system<|end_header_id|>\n\nS.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nQ?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "A.<|eot_id|>",
        "<|begin_of_text|>",
    ),
    (
        "gemma",
        None,
        "<start_of_turn>user\nQ?<end_of_turn>\n<start_of_turn>model\n",
        "A.<end_of_turn>",
        "<bos>",
    ),
    ("phi3", "S.", "<|system|>\nS.<|end|>\n<|user|>\nQ?<|end|>\n<|assistant|>\n", "A.<|end|>", ""),
    ("plain", None, "Q?\n", "A.", ""),
]


@pytest.mark.parametrize(("name", "system", "prompt", "answer", "bos"), TURNS)
def test_render_and_parse(name: str, system: str | None, prompt: str, answer: str, bos: str) -> None:
    rendered = TEMPLATES[name].render(system, "Q?", "A.")
    assert (rendered.prompt, rendered.answer, rendered.bos) == (prompt, answer, bos)
    assert rendered.text == bos + prompt + answer
    literal = [s.text for s in (*rendered.prompt_segments, *rendered.answer_segments) if s.literal]
    assert literal[-2:] == ["Q?", "A."]
    assert TEMPLATES[name].render_prompt(system, "Q?").text == bos + prompt
    assert TEMPLATES[name].parse(rendered.text) == (system, "Q?", "A.")
    without_bos_and_end = prompt + answer.removesuffix(TEMPLATES[name].end)
    assert TEMPLATES[name].parse(f" {without_bos_and_end}\n") == (system, "Q?", "A.")


def test_every_template_is_covered() -> None:
    assert {turn[0] for turn in TURNS} == set(TEMPLATES)


@pytest.mark.parametrize("name", sorted(name for name, t in TEMPLATES.items() if not t.accepts_system))
def test_system_text_is_refused(name: str) -> None:
    with pytest.raises(GgtuneError, match=f"'{name}' has no place for a system text.*alpaca, llama2, chatml"):
        TEMPLATES[name].render("Be kind.", "Q?", "A.")


@pytest.mark.parametrize("text", ["", "Q? A.", "<s>[INST] Q? A. </s>", "<s>[INST] <<SYS>>\nS. Q? [/INST] A."])
def test_parse_refuses_another_form(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|missing"):
        TEMPLATES["llama2"].parse(text)
