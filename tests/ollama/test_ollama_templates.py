from dataclasses import replace
from pathlib import Path

import gguf_samples as samples
import pytest

from ggtune.data.templates import TEMPLATES
from ggtune.errors import GgtuneError
from ggtune.gguf.vocabulary import SpecialTokens
from ggtune.ollama.chat_format import NotExpressibleError
from ggtune.ollama.go_template import GoTemplate, Message, render_for_ollama
from ggtune.ollama.modelfile import Modelfile
from ggtune.ollama.templates import choose_ollama_template, model_template, ollama_template

LLAMA_TOKENS = SpecialTokens("<s>", "</s>", add_bos=True, ends=("</s>",))
SYSTEM = 'You teach "chemistry".\nBe short.'
TURNS = [("What is rust?\nOne line.", "Iron oxide."), ("And patina?", "Copper\ncarbonate."), ("Which is red?", "Rust.")]
VENDORED = sorted((Path(__file__).parents[2] / "vendor/llama.cpp/models/templates").glob("*.jinja"))
CHATS = [(system, n_turns) for system in (None, SYSTEM) for n_turns in (1, 2, 3)]
EXPRESSED = [name for name in samples.JINJA if name != "asks in capitals"]


def tokens_of(name, *, add_bos=True):
    _, bos, eos = samples.JINJA[name]
    ends = {eos, "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"}
    return SpecialTokens(bos, eos, add_bos and bool(bos), tuple(ends))


def template_of(name, **options):
    tokens = tokens_of(name, **options)
    return ollama_template(model_template(samples.JINJA[name][0], tokens), tokens)


def as_messages(system, turns, question):
    messages = [{"role": "system", "content": system}] if system else []
    for asked, answered in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return [*messages, {"role": "user", "content": question}]


def asked_by_ollama(text, system, turns, question):
    chat = [Message(message["role"], message["content"]) for message in as_messages(system, turns, question)]
    return render_for_ollama(GoTemplate(text), chat)


@pytest.mark.parametrize(("system", "n_turns"), CHATS)
@pytest.mark.parametrize("name", EXPRESSED)
def test_model_template_is_the_jinja_template(name, system, n_turns):
    template = template_of(name)
    if system and not template.chat.accepts_system:
        with pytest.raises(GgtuneError, match=r"refuses"):
            template.check_system(system)
        return
    template.check_system(system)
    bos = samples.JINJA[name][1]
    turns, question = TURNS[: n_turns - 1], TURNS[n_turns - 1][0]
    expected = template.source.render_messages(as_messages(system, turns, question), add_generation_prompt=True)
    # the same behind the BOS, which Ollama adds: the model was trained with one even where the Jinja text has none
    assert asked_by_ollama(template.text, system, turns, question) == expected.removeprefix(bos)
    # a client gives an answer back as the model wrote it
    rendered = template.source.render(system, *TURNS[0])
    written = [(q, rendered.answer.removesuffix(template.chat.end).replace(TURNS[0][1], a)) for q, a in turns]
    assert asked_by_ollama(template.text, system, written, question) == expected.removeprefix(bos)
    assert template.self_test() == ()


@pytest.mark.parametrize("name", TEMPLATES)
def test_named_template_is_the_training_text(name):
    source = TEMPLATES[name]
    tokens = replace(LLAMA_TOKENS, ends=("</s>", source.end))
    template = ollama_template(source, tokens)
    end = source.end or "</s>"
    for system in (None, SYSTEM) if source.accepts_system else (None,):
        first = source.render(system, *TURNS[0])
        assert asked_by_ollama(template.text, system, [], TURNS[0][0]) == first.prompt
        second = replace(source, default_system=None).render_prompt(None, TURNS[1][0])
        between = {"chatml": "\n", "gemma": "\n", "phi3": "\n", "llama2": "<s>"}.get(name, "")
        answer = first.answer.removesuffix(source.end)
        expected = first.prompt + answer + end + between + second.prompt
        for given in (TURNS[0][1], answer):
            assert asked_by_ollama(template.text, system, [(TURNS[0][0], given)], TURNS[1][0]) == expected
    assert template.self_test() == ()
    assert template.stops == tuple(dict.fromkeys((*source.stops, end)))


def test_default_system_text_comes_once_and_not_beside_a_given_one():
    for template in (
        template_of("chatml with a default system text"),
        ollama_template(TEMPLATES["alpaca"], LLAMA_TOKENS),
    ):
        text = "You are a tiny model." if template.name == "model" else TEMPLATES["alpaca"].default_system
        assert asked_by_ollama(template.text, None, TURNS[:2], TURNS[2][0]).count(text) == 1
        assert text not in asked_by_ollama(template.text, SYSTEM, TURNS[:2], TURNS[2][0])


def test_a_dropped_system_text_is_an_error():
    jinja = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}<assistant>"
    template = ollama_template(model_template(jinja, LLAMA_TOKENS), LLAMA_TOKENS)
    template.check_system(None)
    with pytest.raises(GgtuneError, match="leaves the system text out"):
        template.check_system("S")
    with pytest.raises(GgtuneError, match="no place for a system text"):
        ollama_template(TEMPLATES["gemma"], LLAMA_TOKENS).check_system("S")


@pytest.mark.parametrize("name", [*EXPRESSED, *TEMPLATES])
def test_chats_that_no_training_has(name):
    """Ollama cuts a long chat at its front, wherever that is, and goes on with an answer that a client has begun."""
    source = TEMPLATES.get(name)
    template = template_of(name) if source is None else ollama_template(source, LLAMA_TOKENS)
    go = GoTemplate(template.text)
    begun = render_for_ollama(go, [Message("user", "Q1"), Message("assistant", "A begun")])
    assert begun.endswith("A begun")
    cut = render_for_ollama(go, [Message("assistant", "A1"), Message("user", "Q2"), Message("tool", "ignored")])
    assert cut.index("A1") < cut.index("Q2")
    assert "ignored" not in cut
    assert asked_by_ollama(template.text, None, [("Q1", "")], "Q2").endswith(
        asked_by_ollama(template.text, None, [("Q1", "A")], "Q2").partition("Q2")[2]
    )


@pytest.mark.parametrize("add_bos", [True, False])
def test_bos_is_left_out_only_where_ollama_adds_it(add_bos):
    # SmolLM2's: the BOS is the text of a tag, and nobody adds it
    text = template_of("the BOS is a tag", add_bos=add_bos).text
    asked = asked_by_ollama(text, SYSTEM, TURNS[:1], TURNS[1][0])
    assert ("<|im_start|>" * add_bos + asked).startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n")
    text = ollama_template(TEMPLATES["llama2"], replace(LLAMA_TOKENS, add_bos=add_bos)).text
    assert text.startswith("[INST] " if add_bos else "<s>[INST] ")
    # a BOS of another model is no BOS here; training writes none
    other = SpecialTokens("<bos>", "<eos>", add_bos=False, ends=("<eos>",))
    assert ollama_template(TEMPLATES["llama2"], other).text.startswith("[INST] ")
    # training with chatml starts with the tag where that is no BOS, and where the BOS would double it
    for tokens in (tokens_of("the BOS is a tag", add_bos=add_bos), LLAMA_TOKENS):
        text = ollama_template(TEMPLATES["chatml"], tokens).text
        asked = tokens.bos * tokens.add_bos + asked_by_ollama(text, None, [], "Q")
        assert asked.removeprefix("<s>").startswith("<|im_start|>user\nQ")


def test_end_token_of_the_training_ends_answers():
    # the training falls back to the EOS where the model does not know the template's end token
    template = ollama_template(TEMPLATES["chatml"], LLAMA_TOKENS)
    assert "One.</s>\n<|im_start|>user" in asked_by_ollama(template.text, None, [("1?", "One.")], "2?")
    assert template.stops == ("<|im_start|>", "<|im_end|>", "</s>")
    assert ollama_template(TEMPLATES["plain"], LLAMA_TOKENS).stops == ("</s>",)


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("llama2", ("</s>", "[INST]")),
        ("chatml", ("<|im_end|>", "<|im_start|>")),
        ("llama3", ("<|eot_id|>", "<|start_header_id|>")),
        ("gemma", ("<end_of_turn>", "<start_of_turn>")),
        ("phi3", ("<|end|>", "<|user|>")),
        ("zephyr", ("</s>", "<|user|>")),
        ("command-r", ("<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>")),
        ("system text in the last question", ("</s>", "[INST]")),
        # what the model writes before its answer has tags: one alone could be within an answer
        ("thoughts before the answer", ("<|im_end|>", "<|im_start|>user")),
    ],
)
def test_stops_of_a_model_template(name, stops):
    assert template_of(name).stops == stops


def test_text_that_go_and_modelfiles_read_otherwise(tmp_path):
    jinja = (
        "{{ '{{ .System }} {' }}\u00a0\u200d\r{{ '{' }}{% for m in messages %}{{ m.role }} \"\"\"\n{{ m.content }}"
        "{{ '{{{' }}\"\"\"\n{% endfor %}{% if add_generation_prompt %}-}} \\{{ '{' }}{% endif %}"
    )
    template = ollama_template(model_template(jinja, LLAMA_TOKENS), LLAMA_TOKENS)
    assert template.self_test() == ()
    modelfile = Modelfile(model="./m.gguf", template=template.text)
    assert Modelfile.parse(str(modelfile)).template == template.text
    assert modelfile.lost_characters() == ""


def jinja_limit(jinja, tokens=LLAMA_TOKENS):
    template, messages = choose_ollama_template("model", jinja, tokens)
    return template, "\n".join(messages)


@pytest.mark.parametrize(
    ("jinja", "said"),
    [
        ("Q: {{ messages[-1].content | upper }} A:", "does not show the question"),
        ("{% for m in messages %}<{{ m.content }}{{ messages | length }}>{% endfor %}", "more than the place"),
        ("{% for m in messages | reverse %}<{{ m.content }}>{% endfor %}", "in turn"),
        ("{% for m in messages %}<{{ m.content }}{{ m.content }}>{% endfor %}", "twice"),
        ("{% if", "has an error"),
        ("{% for t in tools %}{{ t }}{% endfor %}{{ messages[0].content }}", "'NoneType' object is not iterable"),
    ],
)
def test_what_go_can_not_express_is_said(jinja, said):
    template, messages = jinja_limit(jinja)
    assert template is None
    assert "No TEMPLATE was written" in messages
    assert said in messages


def test_limits_are_said():
    chat = "{% for m in messages %}<{{ m.role }}>{{ CONTENT }}</s>{% endfor %}<assistant>"
    template, said = jinja_limit("Today is {{ strftime_now('%d %B, %Y') }}." + chat.replace("CONTENT", "m.content"))
    assert template.self_test() == ()
    assert "it holds the date of today (" in said
    template, said = jinja_limit(chat.replace("CONTENT", "m.content | trim"))
    assert "white space" in said
    _, said = jinja_limit(chat.replace("CONTENT", "m.content.split('</think>')[-1]"))
    assert "<think>...</think>" in said
    one_turn = "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}"
    template, said = jinja_limit(one_turn + chat.replace("CONTENT", "m.content"))
    assert template.self_test() == ()
    assert "refuses 2 turns without a system text" in said
    assert "one turn only" in said
    _, said = jinja_limit(chat.replace("CONTENT", "m.content"))
    assert said == "TEMPLATE was run and gives the training's text, in chats of one to three turns."


def test_self_test_finds_a_wrong_template(monkeypatch):
    template = template_of("chatml with a default system text")
    wrong = replace(template, text=template.text.replace("{{ else }}You are a tiny model.", ""))
    differences = wrong.self_test()
    assert [(difference.n_turns, difference.system) for difference in differences] == [
        (1, False),
        (2, False),
        (3, False),
    ]
    assert "one turn without a system text: " in str(differences[0])
    assert "'ou are a ti" in str(differences[0]) or "You are a tiny" in str(differences[0])
    wrong = replace(template, text=template.text.replace("{{ if not $last }}<|im_end|>", "{{ if not $last }}"))
    assert {difference.n_turns for difference in wrong.self_test()} == {2, 3}

    jinja, _, _ = samples.JINJA["chatml"]
    for fault, n_turns in (("<|im_start|>assistant", 1), ("{{ if not $last }}<|im_end|>", 2)):
        monkeypatch.setattr(
            "ggtune.ollama.templates.write_template",
            lambda chat, fault=fault: template_of_chat(chat).replace(fault, fault[:-1]),
        )
        found, messages = choose_ollama_template("model", jinja, tokens_of("chatml"))
        assert (found is None) == (n_turns == 1)
        assert any(
            "No TEMPLATE was written" in m if n_turns == 1 else "differs in a chat of 2 turns" in m for m in messages
        )


def template_of_chat(chat):
    from ggtune.ollama.template_writer import write_template

    return write_template(chat)


def test_choice_of_the_template():
    jinja, _, _ = samples.JINJA["chatml"]
    assert choose_ollama_template(None, jinja, LLAMA_TOKENS)[0].name == "model"
    template, messages = choose_ollama_template(None, None, LLAMA_TOKENS)
    assert template.name == "plain"
    assert "no chat template" in messages[0]
    assert choose_ollama_template("llama2", jinja, LLAMA_TOKENS)[0].source is TEMPLATES["llama2"]
    with pytest.raises(GgtuneError, match='no template "chatlm"'):
        choose_ollama_template("chatlm", jinja, LLAMA_TOKENS)
    with pytest.raises(GgtuneError, match="no chat template of its own"):
        choose_ollama_template("model", None, LLAMA_TOKENS)


def test_not_expressible_has_its_own_error():
    jinja = "{% for m in messages | reverse %}<{{ m.content }}>{% endfor %}"
    with pytest.raises(NotExpressibleError, match="in turn"):
        ollama_template(model_template(jinja, LLAMA_TOKENS), LLAMA_TOKENS)


# templates for calling tools, which fail without a list of them
NEED_TOOLS = {
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "fireworks-ai-llama-3-firefunction-v2",
}


@pytest.mark.skipif(not VENDORED, reason="vendor/llama.cpp is filled by a build")
def test_every_chat_template_that_llama_cpp_is_tested_with():
    ends = ("</s>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|end_of_text|>", "<|return|>")
    missing = {}
    for path in VENDORED:
        for tokens in (replace(LLAMA_TOKENS, ends=ends), replace(LLAMA_TOKENS, add_bos=False, ends=ends)):
            template, messages = choose_ollama_template("model", path.read_text(), tokens)
            if template is None:
                missing[path.stem] = messages[-1]
                continue
            assert template.self_test() == (), path.name
            modelfile = Modelfile(model="./m.gguf", template=template.text, parameters={"stop": list(template.stops)})
            assert Modelfile.parse(str(modelfile)) == modelfile
            for system in (None, SYSTEM) if template.chat.accepts_system else (None,):
                messages = as_messages(system, TURNS[:2], TURNS[2][0])
                expected = template.source.render_messages(messages, add_generation_prompt=True)
                asked = asked_by_ollama(template.text, system, TURNS[:2], TURNS[2][0])
                bos = tokens.bos if tokens.add_bos or expected.startswith(tokens.bos) else ""
                assert bos * tokens.add_bos + asked == bos + expected.removeprefix(bos), path.name
    assert set(missing) == NEED_TOOLS
    assert all("refuses" in reason or "fails" in reason for reason in missing.values())


def test_a_jinja_file_is_shown_by_its_title(tmp_path):
    """By the source that an adapter has of it, or by the file; never with all of its text."""
    source = samples.JINJA["chatml"][0]
    (tmp_path / "mine.jinja").write_text(source)
    tokens = tokens_of("chatml")
    for name, shown in (("jinja:" + source, "a Jinja file"), (str(tmp_path / "mine.jinja"), "mine.jinja")):
        template, _ = choose_ollama_template(name, samples.JINJA["zephyr"][0], tokens)
        assert template.name == shown
        assert template.text == template_of("chatml").text
