"""Chat templates of many models against what transformers renders, and which of the text is the assistant's."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ollama"))

from chats import BOS, CHATS, EOS, NOW, as_messages, digest, end_of, sources

from ggtune.data.chat_template import ChatTemplate
from ggtune.data.conversation import Conversation, Turn
from ggtune.data.templates import TEMPLATES, RenderedConversation
from ggtune.errors import GgtuneError

GOLDEN = json.loads((Path(__file__).parent / "golden/chat_renders.json").read_text(encoding="utf-8"))
SOURCES = sources()
# they need more than a conversation
REFUSED = {
    "CohereForAI-c4ai-command-r-plus-tool_use.jinja": "NoneType",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja": "NoneType",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja": "NoneType",
    "fireworks-ai-llama-3-firefunction-v2.jinja": "functions",
    "asks in capitals": "does not show the question",
}


def template_of(name: str) -> ChatTemplate:
    return ChatTemplate(SOURCES[name], bos=BOS, eos=EOS, end_of=end_of, now=NOW)


def test_every_vendored_template_has_golden_texts() -> None:
    assert set(GOLDEN) == set(SOURCES)
    assert len(SOURCES) > 80


@pytest.mark.parametrize("name", REFUSED)
def test_templates_that_are_refused_say_why(name: str) -> None:
    with pytest.raises(GgtuneError, match=REFUSED[name]):
        template_of(name)


@pytest.mark.parametrize("name", sorted(set(SOURCES) - set(REFUSED)))
def test_texts_are_those_of_transformers(name: str) -> None:
    template = template_of(name)
    n_rendered = 0
    for chat, conversation in CHATS.items():
        messages = as_messages(conversation)
        for ask, expected in enumerate(GOLDEN[name][chat]):
            given = messages[:-1] if ask else messages
            try:
                text = template.render_messages(given, add_generation_prompt=bool(ask), tools=conversation.tools)
            except GgtuneError:
                assert expected is None, chat
                continue
            assert digest(text) == expected, chat
            n_rendered += 1
    assert n_rendered >= 4


def learned_of(rendered: RenderedConversation, turn: int) -> str:
    return "".join(segment.text for segment in rendered.segments if segment.turn == turn)


@pytest.mark.parametrize("name", sorted(set(SOURCES) - set(REFUSED)))
def test_the_mask_covers_the_assistants_words_and_end_tokens(name: str) -> None:
    template = template_of(name)
    n_checked = 0
    for chat, conversation in CHATS.items():
        messages = as_messages(conversation)
        try:
            whole = template.render_messages(messages, add_generation_prompt=False, tools=conversation.tools)
            prompt = template.render_messages(messages[:-1], add_generation_prompt=True, tools=conversation.tools)
        except GgtuneError:
            continue
        try:
            rendered = template.render_conversation(conversation)
        except GgtuneError as error:
            if chat == "tools" or (chat == "thinking" and "leaves out what the assistant thinks" in str(error)):
                continue
            if "leaves out the text of turn 1 (system)" in str(error) and "You teach chemistry." not in whole:
                continue
            raise
        n_checked += 1
        written = (
            rendered.text.replace("<think>\nPatina.\n</think>\n\n", "") if "Patina." not in whole else rendered.text
        )
        assert rendered.text.startswith(prompt) or whole.startswith(written), chat
        if whole.startswith(prompt):  # the text that transformers gives, up to the last end token
            assert whole.startswith(written)
        last = len(conversation.turns) - 1
        for i, turn in enumerate(conversation.turns):
            learned = learned_of(rendered, i)
            if turn.role != "assistant":
                assert learned == ""
                continue
            assert "get_weather" in learned or not turn.fields.get("tool_calls")
            others = [other for j, other in enumerate(conversation.turns) if j != i and other.text]
            assert not any(other.text in learned for other in others), chat
            assert learned.count(turn.text) == 1 or not turn.text
            ends = [segment.is_end for segment in rendered.segments if segment.turn == i]
            assert not any(ends[:-1])
            assert ends[-1] or i < last  # between turns a template may have no end token
            assert rendered.segments[-1].turn == last
        thoughts = "".join(segment.text for segment in rendered.segments if segment.thinking and segment.literal)
        assert thoughts in ("", "Patina.", "Redox, I think.Patina.")
        assert ("Patina." in thoughts) == ("Patina." in rendered.text)
    assert n_checked >= 2


@pytest.mark.parametrize("name", TEMPLATES)
def test_named_templates_render_several_turns(name: str) -> None:
    template = TEMPLATES[name]
    chat = CHATS["multi with system" if template.accepts_system else "multi"]
    rendered = template.render_conversation(chat)
    answers = [turn for turn in chat.turns if turn.role == "assistant"]
    first = template.render(chat.system, chat.turns[-2 * len(answers)].text, answers[0].text)
    assert rendered.text.startswith(first.text)
    for i, turn in enumerate(chat.turns):
        expected = template.answer_prefix + turn.text + template.answer_suffix + template.end
        assert learned_of(rendered, i) == (expected if turn.role == "assistant" else "")
    with pytest.raises(GgtuneError, match=r"no place for user and user as turns 1 and 2"):
        template.render_conversation(Conversation((Turn("user", "a"), Turn("user", "b"), Turn("assistant", "c")), 1))
    called = Turn("assistant", "", fields={"tool_calls": []})
    with pytest.raises(GgtuneError, match=r"no place for tool_calls"):
        template.render_conversation(Conversation((Turn("user", "a"), called), 1))


def test_chatml_is_what_the_named_template_writes() -> None:
    """The same text and the same mask, whether by Jinja or by name."""
    template = template_of("chatml")
    for chat in ("single", "single with system", "multi", "multi with system"):
        by_jinja, by_name = (t.render_conversation(CHATS[chat]) for t in (template, TEMPLATES["chatml"]))
        assert by_jinja.text == by_name.text
        for i in range(len(CHATS[chat].turns)):
            assert learned_of(by_jinja, i) == learned_of(by_name, i)
