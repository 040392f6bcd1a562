"""From files to token samples, with the tokenizers of real model files: byte-level BPE and SentencePiece."""

import datetime
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from ggtune import _core
from ggtune.data.chat_template import ChatTemplate, choose_template
from ggtune.data.conversation import exchange
from ggtune.data.dataset import Dataset
from ggtune.data.load import load_samples
from ggtune.data.records import Record, read_csv
from ggtune.data.samples import Sample, text_windows
from ggtune.data.sft import find_template, read_sft, split_samples, write_sft
from ggtune.data.system_text import SystemText, system_of_prompts
from ggtune.data.templates import TEMPLATES
from ggtune.data.tokenization import TurnEncoder, encode_prompt
from ggtune.errors import DataError, GgtuneError, ModelError

ROOT = Path(__file__).parents[2]
RECORDS = (
    Record("Which gas do plants take in?", "Carbon dioxide.", None, 2),
    Record("Name two metals.", "Iron and\ncopper.", None, 3),
    Record("Ist Wasser naß?", "Ja, «sehr».", None, 4),
)


@pytest.fixture(scope="module")
def sentencepiece_model() -> _core.Model:
    """SentencePiece with a space put before every text; no chat template."""
    return _core.Model(str(ROOT / "tests/golden/llama.gguf"), vocab_only=True)


@pytest.fixture(scope="module")
def other_model() -> _core.Model:
    """Byte-level BPE that asks for no BOS and does not know ``</s>`` as a special token."""
    return _core.Model(str(ROOT / "tests/golden/qwen2.gguf"), vocab_only=True)


@pytest.fixture(params=["demo_model", "sentencepiece_model", "other_model"])
def model(request: pytest.FixtureRequest) -> _core.Model:
    fixture: _core.Model = request.getfixturevalue(request.param)
    return fixture


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    cells = [("Question", "Answer"), *((record.question, f" {record.answer} ") for record in RECORDS)]
    path = tmp_path / "train.csv"
    path.write_text("".join(f'"{a}","{b}"\n' for a, b in cells), encoding="utf-8")
    return path


def text_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "train.txt"
    path.write_text(text, encoding="utf-8")
    return path


def shown(model: _core.Model, tokens: object) -> str:
    """The text of tokens, each on its own: the text that SentencePiece's first space belongs to is not known."""
    return b"".join(model.detokenize([int(token)], special=True) for token in np.asarray(tokens)).decode()


def content(samples: tuple[Sample, ...]) -> list[tuple[list[int], list[float], int]]:
    return [(s.tokens.tolist(), s.weights.tolist(), s.n_prompt) for s in samples]


def report_of(dataset: Dataset) -> str:
    return "\n".join(dataset.report.lines())


@pytest.mark.parametrize("template", [None, "llama2", "model"])
def test_guide_format(demo_model: _core.Model, csv_file: Path, template: str | None) -> None:
    dataset = load_samples(csv_file, demo_model, context=128, template=template)
    assert [sample.row for sample in dataset.samples] == [2, 3, 4]
    for sample, record in zip(dataset.samples, RECORDS, strict=True):
        prompt, answer = sample.tokens[: sample.n_prompt], sample.tokens[sample.n_prompt :]
        assert shown(demo_model, prompt) == f"<s>[INST] {record.question} [/INST]"
        assert shown(demo_model, answer) == f" {record.answer} </s>"
        assert sample.tokens[0] == demo_model.bos_token
        assert sample.tokens.tolist().count(demo_model.bos_token) == 1
        assert sample.tokens[-1] == demo_model.eos_token
        assert sample.weights.tolist() == [0.0] * len(prompt) + [1.0] * len(answer)
    assert report_of(dataset) == f"{csv_file}: 3 rows, template '{template or 'model'}'"


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_prompt_is_what_generation_sees(model: _core.Model, csv_file: Path, template: str) -> None:
    dataset = load_samples(csv_file, model, context=1024, template=template)
    for sample, record in zip(dataset.samples, RECORDS, strict=True):
        prompt = encode_prompt(model, TEMPLATES[template], record.question)
        assert sample.tokens[: sample.n_prompt].tolist() == prompt.tolist()
        rendered = TEMPLATES[template].render(None, record.question, record.answer)
        answer = shown(model, sample.tokens[sample.n_prompt : -1])
        assert answer == rendered.answer.removesuffix(TEMPLATES[template].end)
        assert model.is_end_token(int(sample.tokens[-1]))


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_csv_and_sft_text_give_the_same_samples(model: _core.Model, csv_file: Path, tmp_path: Path, name: str) -> None:
    template = TEMPLATES[name]
    text = write_sft(csv_file, read_csv(csv_file).records, template)
    from_text = load_samples(text_file(tmp_path, text), model, context=1024, template=name)
    for loss_on in ("answer", "all"):
        from_csv = load_samples(csv_file, model, context=1024, template=name, loss_on=loss_on)  # type: ignore[arg-type]
        from_text = load_samples(tmp_path / "train.txt", model, context=1024, template=name, loss_on=loss_on)  # type: ignore[arg-type]
        assert content(from_text.samples) == content(from_csv.samples)


@pytest.mark.parametrize("written", ["guide", "no end token", "no BOS", "two BOS", "surplus space"])
def test_variants_of_sft_text(demo_model: _core.Model, csv_file: Path, tmp_path: Path, written: str) -> None:
    text = "skipped\n" + write_sft(csv_file, RECORDS, TEMPLATES["llama2"])
    changed = {
        "guide": text,
        "no end token": text.replace("</s>", ""),
        "no BOS": text.replace("<s>", ""),
        "two BOS": text.replace("<s>", "<s><s>"),
        "surplus space": text.replace(" [/INST]", "  [/INST]").replace(" </s>", " \n </s>"),
    }[written]
    dataset = load_samples(text_file(tmp_path, changed), demo_model, context=128)
    assert content(dataset.samples) == content(load_samples(csv_file, demo_model, context=128).samples)
    assert [sample.row for sample in dataset.samples] == [2, 3, 5] if "space" not in written else True
    assert ("end token missing and appended: 3 samples" in report_of(dataset)) == (written == "no end token")


def test_system_text(demo_model: _core.Model, csv_file: Path, tmp_path: Path) -> None:
    system = "You are a chemist."
    dataset = load_samples(csv_file, demo_model, context=128, system=system)
    start = shown(demo_model, dataset.samples[0].tokens)
    assert start.startswith(f"<s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\nWhich gas")
    table = "question,answer,system\na?,b,\nc?,d,Own.\n"
    (tmp_path / "own.csv").write_text(table)
    both = load_samples(tmp_path / "own.csv", demo_model, context=128, system=system)
    assert system in shown(demo_model, both.samples[0].tokens)
    assert "<<SYS>>\nOwn.\n<</SYS>>" in shown(demo_model, both.samples[1].tokens)
    with pytest.raises(GgtuneError, match="'gemma' has no place for a system text"):
        load_samples(csv_file, demo_model, context=128, template="gemma", system=system)
    with pytest.raises(DataError, match=r"own\.csv: 1 row can't be used:\n  row 3: The template 'mistral'"):
        load_samples(tmp_path / "own.csv", demo_model, context=128, template="mistral")


@pytest.mark.parametrize("template", ["llama2", "chatml", "plain", "model"])
def test_special_tokens_in_cells_stay_text(demo_model: _core.Model, tmp_path: Path, template: str) -> None:
    question, answer = "Is <s> a word </s>?", "No, </s> is a mark."
    path = tmp_path / "x.csv"
    path.write_text(f'question,answer\n{question},"{answer}"\nplain?,text\n')
    sample = load_samples(path, demo_model, context=256, template=template).samples[0]
    tokens = sample.tokens.tolist()
    assert tokens.count(demo_model.bos_token) == 1
    assert tokens.count(demo_model.eos_token) == 1
    assert tokens[0] == demo_model.bos_token
    assert tokens[-1] == demo_model.eos_token
    rendered = choose_template(template, demo_model).render(None, question, answer)
    assert shown(demo_model, tokens[1 : sample.n_prompt]) == rendered.prompt
    assert shown(demo_model, tokens[sample.n_prompt : -1]) == rendered.answer.removesuffix("</s>").removesuffix(
        "<|im_end|>"
    )


def test_special_tokens_in_cells_stay_text_with_sentencepiece(sentencepiece_model: _core.Model, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("question,answer\nIs </s> a word?,Not </s> here\n")
    sample = load_samples(path, sentencepiece_model, context=256, template="llama2").samples[0]
    # SentencePiece puts one space before the text, and none where an answer goes on
    assert shown(sentencepiece_model, sample.tokens) == "<s> [INST] Is </s> a word? [/INST] Not </s> here </s>"
    assert sample.tokens.tolist().count(sentencepiece_model.eos_token) == 1


def test_answer_continues_the_prompt(sentencepiece_model: _core.Model) -> None:
    encoder = TurnEncoder(sentencepiece_model, TEMPLATES["llama2"])
    rendered = TEMPLATES["llama2"].render_conversation(exchange("a?", "b", row=1))
    tokens, _, n_prompt = encoder.encode_conversation(rendered, lambda segment: float(segment.turn >= 0))
    assert tokens == sentencepiece_model.tokenize("<s>[INST] a? [/INST] b </s>").tolist()
    assert tokens[:n_prompt] == encoder.encode_prompt(TEMPLATES["llama2"].render_prompt(None, "a?"))


def test_end_tokens_that_the_model_does_not_know(demo_model: _core.Model, csv_file: Path, tmp_path: Path) -> None:
    from_csv = load_samples(csv_file, demo_model, context=256, template="chatml")
    assert from_csv.samples[0].tokens[-1] == demo_model.eos_token
    assert shown(demo_model, from_csv.samples[0].tokens).endswith("assistant\nCarbon dioxide.</s>")
    assert "'<|im_end|>' of the template 'chatml' is not an end token of the model" in report_of(from_csv)


def test_model_without_end_token() -> None:
    class Endless:
        bos_token = eos_token = -1
        add_bos = False

        def tokenize(self, text: str, **_: bool) -> np.ndarray:  # type: ignore[type-arg]
            return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

        def is_end_token(self, token: int) -> bool:
            return False

    with pytest.raises(ModelError, match="no end-of-sequence token"):
        TurnEncoder(Endless(), TEMPLATES["plain"])  # type: ignore[arg-type]


def test_template_is_found_by_its_tag(other_model: _core.Model, csv_file: Path, tmp_path: Path) -> None:
    for name in ("alpaca", "llama2", "chatml", "llama3", "gemma", "phi3"):
        samples = split_samples("x", write_sft(csv_file, RECORDS, TEMPLATES[name]))
        found = find_template(samples, TEMPLATES.values())
        assert found is not None
        assert found.name == ("llama2" if name == "mistral" else name)
    path = text_file(tmp_path, "<SFT>one\n<SFT>Q: two A: three\n")
    with pytest.raises(DataError, match="no known answer tag in the samples at lines 1, 2"):
        load_samples(path, other_model, context=64)
    with pytest.raises(DataError, match=r"no answer tag '\[/INST\]' of the template 'llama2'.* --loss-on all"):
        load_samples(path, other_model, context=64, template="llama2")
    dataset = load_samples(path, other_model, context=64, loss_on="all")
    assert shown(other_model, dataset.samples[1].tokens[:-1]) == "Q: two A: three"
    assert dataset.samples[1].weights[1:].all()


def test_other_marker_and_marker_in_the_sample(demo_model: _core.Model, tmp_path: Path) -> None:
    path = text_file(tmp_path, "head\n### <s>[INST] a? [/INST] b </s>### \n### <s>[INST] c? [/INST] </s>")
    dataset = load_samples(path, demo_model, context=64, sample_start="###")
    assert [shown(demo_model, s.tokens) for s in dataset.samples] == ["<s>[INST] a? [/INST] b </s>"]
    assert list(dataset.report.empty_rows) == [3]
    dataset = load_samples(path, demo_model, context=64, sample_start="###", include_sample_start=True)
    assert shown(demo_model, dataset.samples[0].tokens) == "<s>###[INST] a? [/INST] b </s>"
    with pytest.raises(DataError, match="the marker '<SFT>' does not occur"):
        load_samples(path, demo_model, context=64, sample_start="<SFT>")
    with pytest.raises(DataError, match="no text behind any '<SFT>'"):
        load_samples(text_file(tmp_path, "<SFT> \n<SFT>"), demo_model, context=64)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_sft_text_back_to_records(tmp_path: Path, name: str) -> None:
    template = TEMPLATES[name]
    system = "Be brief." if template.accepts_system else None
    path = text_file(tmp_path, write_sft("x.csv", RECORDS, template, system=system))
    table = read_sft(path, template)
    assert [(r.question, r.answer, r.system) for r in table.records] == [
        (r.question, r.answer, system) for r in RECORDS
    ]


def test_sft_text_of_another_form(tmp_path: Path) -> None:
    path = text_file(tmp_path, "<SFT><s>[INST] a? [/INST] b\n\n<SFT>c? d\n")
    with pytest.raises(DataError, match=r"not in the form of the template 'llama2': line 3: expected '\[INST\] '"):
        read_sft(path, TEMPLATES["llama2"])


def test_texts_that_sft_can_not_hold() -> None:
    records = [
        Record("a?", "b <SFT>", None, 2),
        Record("[/INST]", "b", None, 3),
        Record("fine?", "[/INST] fine", None, 4),
        Record("c?", "</s>", None, 5),
    ]
    with pytest.raises(DataError) as caught:
        write_sft("x.csv", records, TEMPLATES["llama2"])
    assert "row 2 holds '<SFT>'; row 3 holds '[/INST]'; row 5 holds '</s>'." in str(caught.value)


@pytest.mark.parametrize("overlapping", [False, True])
def test_plain_text_windows(model: _core.Model, tmp_path: Path, overlapping: bool) -> None:
    text = "".join(f"Line {i} of the text.\n" for i in range(40))
    tokens = model.tokenize(text)
    windows = text_windows(model, text, 32, overlapping=overlapping)
    given = 1  # the BOS, or the first token
    assert all(w.n_rows <= 32 and w.n_prompt == (1 if model.add_bos else 0) for w in windows)
    targets = [w.tokens[given:].tolist() for w in windows]
    assert all(w.weights.tolist() == [0.0] + [1.0] * w.n_rows for w in windows)
    if overlapping:
        assert targets[0][16:] == targets[1][:16]
    else:
        assert list(chain.from_iterable(targets)) == [*tokens.tolist(), model.eos_token][0 if model.add_bos else 1 :]
    dataset = load_samples(text_file(tmp_path, text), model, context=32, overlapping_samples=overlapping)
    assert content(dataset.samples) == content(tuple(windows))
    assert dataset.template is None
    assert "plain text: the loss is on every token" in report_of(dataset)


def test_report_of_lengths_and_columns(demo_model: _core.Model, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(
        "id,question,answer\n1,short?,yes\n2,,x\n3,long?," + " ".join(f"very {i};" for i in range(60)) + " long.\n"
    )
    dataset = load_samples(path, demo_model, context=32)
    assert dataset.report.lines() == [
        f"{path}: 2 rows, template 'model'",
        "skipped, question or answer empty: rows 3",
        "cut to the context: rows 4",
        "columns not used: id",
    ]
    assert [len(sample.tokens) for sample in dataset.samples][1] == 33
    skipped = load_samples(path, demo_model, context=32, too_long="skip")
    assert "skipped, too long for the context: rows 4" in skipped.report.lines()
    with pytest.raises(DataError, match=r"context of 5 tokens: the shortest needs \d+, all of them \d+"):
        load_samples(path, demo_model, context=5)


def test_which_reader_a_file_gets(demo_model: _core.Model, tmp_path: Path) -> None:
    table = text_file(tmp_path, "question;answer\na?;b\n")
    assert load_samples(table, demo_model, context=64).report.kind == "csv"
    assert load_samples(table, demo_model, context=64, sample_start="").report.kind == "text"
    for name in ("x.xlsx", "x.gguf"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(DataError, match="files are not read"):
            load_samples(tmp_path / name, demo_model, context=64)


def test_a_dated_template_is_repeatable(demo_model: _core.Model, csv_file: Path) -> None:
    class Dated:
        chat_template = "{{ strftime_now('%d %b %Y') }}" + str(demo_model.chat_template)

        def __getattr__(self, name: str) -> object:
            return getattr(demo_model, name)

    days = [datetime.datetime(2026, 1, day) for day in (2, 2, 3)]
    first, second, third = (
        content(load_samples(csv_file, Dated(), context=128, now=day).samples)  # type: ignore[arg-type]
        for day in days
    )
    assert first == second
    assert first != third


def test_a_dated_answer_tag_is_looked_for_as_of_the_given_time(demo_model: _core.Model, tmp_path: Path) -> None:
    class Dated:
        chat_template = (
            "{% for m in messages %}{{ m.content }}"
            "{% if m.role == 'user' %} |{{ strftime_now('%Y-%m-%d') }}| {% endif %}{% endfor %}"
        )

        def __getattr__(self, name: str) -> object:
            return getattr(demo_model, name)

    path = text_file(tmp_path, "<SFT>Which day? |2026-01-02| That one.\n")
    now = datetime.datetime(2026, 1, 2)
    dataset = load_samples(path, Dated(), context=64, now=now)  # type: ignore[arg-type]
    assert dataset.report.template == "model"


def system_of(dataset: Dataset) -> tuple[str | None, bool]:
    return dataset.report.system, dataset.report.system_differs


@pytest.mark.parametrize(
    ("cells", "given", "expected"),
    [
        (("S.", "S."), None, ("S.", False)),
        (("S.", "S."), "Other.", ("S.", False)),  # no sample has the other one
        (("S.", ""), "S.", ("S.", False)),
        (("S.", ""), "Other.", (None, True)),
        (("S.", ""), None, (None, True)),
        (("", ""), None, ("", False)),
    ],
)
def test_system_text_that_the_rows_really_have(
    demo_model: _core.Model,
    tmp_path: Path,
    cells: tuple[str, str],
    given: str | None,
    expected: tuple[str | None, bool],
) -> None:
    path = tmp_path / "x.csv"
    path.write_text("question,answer,system\n" + "".join(f"q{i}?,a,{cell}\n" for i, cell in enumerate(cells)))
    dataset = load_samples(path, demo_model, context=128, system=given)
    assert system_of(dataset) == expected
    system, differs = expected
    notes = {"template": "model", "system": system or "", "system_differs": "true" if differs else "false"}
    assert dataset.report.asked_with() == notes
    assert ("different system texts" in report_of(dataset)) == differs
    assert ("in no sample" in report_of(dataset)) == (given == "Other." and all(cells))


def test_a_row_that_is_skipped_has_no_say(demo_model: _core.Model, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"question,answer,system\nq?,a,S.\n{'long ' * 80}?,a,T.\n")
    assert system_of(load_samples(path, demo_model, context=64)) == ("S.", False)
    assert system_of(load_samples(path, demo_model, context=512)) == (None, True)


@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if template.accepts_system])
@pytest.mark.parametrize("system", [None, "Be brief.", "Two lines,\n\nand a gap."])
def test_system_text_is_found_in_sft_text(demo_model: _core.Model, tmp_path: Path, name: str, system: str) -> None:
    path = text_file(tmp_path, write_sft("x.csv", RECORDS, TEMPLATES[name], system=system))
    dataset = load_samples(path, demo_model, context=1024, template=name, system="Not in the text.")
    assert system_of(dataset) == (system or "", False)
    mixed = write_sft("x.csv", RECORDS, TEMPLATES[name], system="Another one.")
    path = text_file(tmp_path, mixed + write_sft("x.csv", RECORDS, TEMPLATES[name], system=system))
    assert system_of(load_samples(path, demo_model, context=1024, template=name)) == (None, True)


SYSTEM_FORMS = {
    "default": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are tiny.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "in front of the question": (
        "{% set s = '' %}{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}"
        "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}<start_of_turn>"
        "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ s if loop.first else '' }}{{ m.content }}"
        "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
}


@pytest.mark.parametrize("form", SYSTEM_FORMS)
@pytest.mark.parametrize("systems", [("",), ("Be brief.",), ("Be brief.\n\nBe right.",), ("Be brief.", "Be long.")])
def test_system_text_in_text_of_the_models_own_template(form: str, systems: tuple[str, ...]) -> None:
    template = ChatTemplate(SYSTEM_FORMS[form], bos="", eos="<|im_end|>", end_of=lambda text: "")
    questions = ["What?", "Why?\n\nSay it in two lines.", "Who?"]
    prompts = [template.render_prompt(system or None, q).prompt for system in systems for q in questions]
    expected = SystemText(systems[0]) if len(systems) == 1 else SystemText(differs=True)
    if expected.differs and form != "default":
        expected = SystemText("")  # without a tag around it, it can't be told from the question
    assert system_of_prompts(prompts, template) == expected


def test_text_of_another_form_leaves_the_system_text_open(demo_model: _core.Model, tmp_path: Path) -> None:
    text = "<SFT>[INST] <<SYS>>\nS.\n<</SYS>>\n\nq? [/INST] a\n<SFT>Ask: q? [/INST] a\n"
    dataset = load_samples(text_file(tmp_path, text), demo_model, context=64, template="llama2")
    assert system_of(dataset) == (None, False)
    assert dataset.report.asked_with() == {"template": "llama2"}
    assert "not all samples have the form of the template 'llama2'" in report_of(dataset)
