import datetime

import pytest

from ggtune.data.chat_template import ChatTemplate, choose_template
from ggtune.data.templates import TEMPLATES
from ggtune.errors import GgtuneError

CHATML = (
    "{% for m in messages %}\n"
    "    {% if m.content %}\n"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endif %}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}"
    "{% elif m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)
END_TEXTS = ("<|im_end|>", "</s>")


def make(source: str, now: datetime.datetime | None = None) -> ChatTemplate:
    def end_of(text: str) -> str:
        return next((text[: text.index(end) + len(end)] for end in END_TEXTS if end in text), "")

    return ChatTemplate(source, bos="<s>", eos="</s>", end_of=end_of, now=now)


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_renders_as_the_named_template(system: str | None) -> None:
    template = make(CHATML)
    rendered = template.render(system, "user", "s>")  # texts that also occur in the template
    assert rendered == TEMPLATES["chatml"].render(system, "user", "s>")
    assert template.render_prompt(system, "user").text == rendered.prompt
    assert (template.bos, template.answer_suffix, template.end) == ("", "", "<|im_end|>")


def test_bos_and_suffix_are_found() -> None:
    template = make(LLAMA2)
    assert template.render(None, "Q?", "A.") == TEMPLATES["llama2"].render(None, "Q?", "A.")
    assert (template.bos, template.answer_suffix, template.end) == ("<s>", " ", "</s>")
    assert template.stops == ("</s>",)


def test_a_chat_of_several_turns_and_the_date_in_it() -> None:
    template = make(
        "On {{ strftime_now('%d.%m.%Y') }}, {{ strftime_now('%H') }}: " + CHATML, datetime.datetime(2026, 3, 4)
    )
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": f"{i}?"} for i, role in enumerate(roles)]
    turns = "".join(f"<|im_start|>{role}\n{i}?<|im_end|>\n" for i, role in enumerate(roles))
    text = template.render_messages(messages, add_generation_prompt=True)
    assert text == f"On 04.03.2026, 00: {turns}<|im_start|>assistant\n"
    assert template.render_messages(messages, add_generation_prompt=False) == f"On 04.03.2026, 00: {turns}"
    assert template.dates_in(text) == ("00", "04.03.2026")
    assert template.dates_in("no date: 0") == ()


def test_refused_and_dropped_system_texts() -> None:
    with pytest.raises(GgtuneError, match="no system here"):
        make(LLAMA2).render("Be kind.", "Q?", "A.")
    dropping = LLAMA2.replace("{{ raise_exception('no system here') }}", "")
    with pytest.raises(GgtuneError, match="leaves out the system text"):
        make(dropping).render("Be kind.", "Q?", "A.")


def test_opened_reasoning_stays_in_the_prompt() -> None:
    thinking = CHATML.replace("'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>\\n' }}")
    rendered = make(thinking).render(None, "Q?", "A.")
    assert rendered.prompt.endswith("<|im_start|>assistant\n<think>\n")
    assert rendered.answer == "A.<|im_end|>"


def test_text_between_prompt_and_answer_is_learned() -> None:
    source = CHATML.replace("m.content +", "('<think></think>' if m.role == 'assistant' else '') + m.content +")
    assert make(source).render(None, "Q?", "A.").answer == "<think></think>A.<|im_end|>"


def test_what_the_environment_offers() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'x' %}{% break %}{% endif %}{{ [m.content] | tojson }}"
        "{% generation %}{{ strftime_now('%Y-%m-%d') }}{% endgeneration %}{% endfor %}"
    )
    rendered = make(source, datetime.datetime(2026, 1, 2)).render(None, "é<b>", "A.")
    assert rendered.text == '["é<b>"]2026-01-02["A."]2026-01-02'.removesuffix('"]2026-01-02')


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "error in line 1"),
        ("{{ messages[0].content", "error in line 1"),
        ("{{ messages[5].content }}", "refuses this conversation"),
        ("{{ messages[0].content }}{{ 1 // 0 }}", "ZeroDivisionError"),
        ("nothing", "does not show the question"),
        ("{{ messages[0].content }}", "does not show the answer"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ 'x' * 10000000 }}", "too large a result"),
        ("{{ 9 ** 9 ** 9 }}", "too large a result"),
        ("{% for i in range(99999) %}{{ 'x' * 100 }}{% endfor %}", "writes more than"),
        ("{{ '(' * 2 }}" + "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "nested too deep"),
    ],
)
def test_bad_templates_are_user_errors(source: str, message: str) -> None:
    with pytest.raises(GgtuneError, match=message):
        make(source)


class Untemplated:
    chat_template: str | None = None
    bos_token = eos_token = -1
    add_bos = False


def test_choice_without_a_template() -> None:
    model = Untemplated()
    assert choose_template(None, model).name == "plain"  # type: ignore[arg-type]
    with pytest.raises(GgtuneError, match=r"no chat template of its own. Choose a --template: alpaca"):
        choose_template("model", model)  # type: ignore[arg-type]
    with pytest.raises(GgtuneError, match="There is no template 'vicuna'"):
        choose_template("vicuna", model)  # type: ignore[arg-type]


def test_a_template_that_loops_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggtune.data.chat_template._MAX_SECONDS", 0.2)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a %}{% endfor %}{% endfor %}"
    with pytest.raises(GgtuneError, match=r"takes more than 0\.2 s"):
        ChatTemplate(loop + "{{ messages[0].content }}", bos="", eos="", end_of=lambda text: "")
