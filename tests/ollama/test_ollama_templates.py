import gguf_samples as samples
import pytest
from go_template_subset import execute, parse, render_chat

from ggtune.data.templates import TEMPLATES
from ggtune.ollama.templates import go_template, known_template_for

EOS = "<eos!>"
SYSTEM = 'You teach "chemistry".\nBe short.'
QUESTION = "What is rust?\nOne line."
CASES = [(name, system) for name, t in TEMPLATES.items() for system in (None, SYSTEM) if t.accepts_system or not system]


def test_subset_interpreter():
    nodes = parse("a \n{{- if .System }} <{{ .System -}}  > {{ else }}none{{ end }}{{ .Prompt }}!\n")
    assert execute(nodes, {"System": "s", "Prompt": "p"}) == "a <s> p!\n"
    assert execute(nodes, {"System": "", "Prompt": "p"}) == "anonep!\n"
    with pytest.raises(ValueError, match="subset"):
        parse("{{ range .Messages }}")


@pytest.mark.parametrize(("name", "system"), CASES)
def test_one_turn_is_the_training_text(name, system):
    template = TEMPLATES[name]
    rendered = template.render(system, QUESTION, "Iron oxide.")
    text = go_template(template, EOS).text
    # what Ollama asks with, behind the BOS that the tokenizer adds
    assert render_chat(text, [(QUESTION, "")], system or "") == rendered.prompt
    written = rendered.answer.removesuffix(template.end)  # what the model writes before its end token
    assert render_chat(text, [(QUESTION, written)], system or "") == rendered.prompt + written
    # the whole template, as for earlier turns, closes the answer as the training did
    whole = execute(parse(text), {"System": system or "", "Prompt": QUESTION, "Response": written})
    assert whole.rstrip("\n") == rendered.prompt + rendered.answer + ("" if template.end else EOS)


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_bos_in_template(name):
    template = TEMPLATES[name]
    assert not template.bos or template.bos not in go_template(template, EOS).text


def test_second_turn_of_a_chat():
    text = go_template(TEMPLATES["chatml"], "</s>").text
    assert render_chat(text, [("1?", "One."), ("2?", "")], "S") == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\nOne.<|im_end|>\n"
        "<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_stops_are_the_templates_own():
    assert go_template(TEMPLATES["llama2"], "</s>").stops == ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
    assert go_template(TEMPLATES["plain"], "</s>").stops == ()


@pytest.mark.parametrize(("jinja", "bos", "eos", "name"), samples.JINJA.values(), ids=samples.JINJA)
def test_known_template_renders_the_same(jinja, bos, eos, name):
    from ggtune.data.chat_template import ChatTemplate
    from ggtune.errors import GgtuneError

    found = known_template_for(jinja, bos=bos, eos=eos)
    assert (found and found.name) == name
    if found is None:
        return
    own = ChatTemplate(jinja, bos=bos, eos=eos, end_of=lambda tail: tail)
    text = go_template(found, eos).text
    assert render_chat(text, [(QUESTION, "")]) == own.render(None, QUESTION, "A.").prompt
    if found.accepts_system:
        assert render_chat(text, [(QUESTION, "")], SYSTEM) == own.render(SYSTEM, QUESTION, "A.").prompt
    else:
        with pytest.raises(GgtuneError):
            own.render(SYSTEM, QUESTION, "A.")


def test_exact_match_is_the_named_template_itself():
    jinja, bos, eos, _ = samples.JINJA["llama2"]
    assert known_template_for(jinja, bos=bos, eos=eos) is TEMPLATES["llama2"]


def test_default_system_text_is_kept():
    jinja, bos, eos, _ = samples.JINJA["chatml with a default system text"]
    found = known_template_for(jinja, bos=bos, eos=eos)
    assert found is not None
    assert found.default_system == "You are a tiny model."


def test_broken_jinja_is_unknown():
    assert known_template_for("{% if %}", bos="", eos="") is None
