"""Chat templates of many models against what transformers renders, and which of the text is the assistant's."""

import contextlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ollama"))

from chats import BOS, CHATS, EOS, NOW, as_messages, digest, end_of, golden_name, sources, styles_of

from ggtune import _core
from ggtune.data.chat_template import ChatTemplate
from ggtune.data.conversation import Conversation, Turn
from ggtune.data.load import load_samples
from ggtune.data.options import Learn
from ggtune.data.segments import RenderedConversation
from ggtune.data.templates import TEMPLATES
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
NAMES = sorted(set(SOURCES) - set(REFUSED))
# they cut a thought that stands in front of an answer, and know no other
WITHOUT_THINKING = {
    "thoughts before the answer",
    "Reka-Edge.jinja",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja",
    "deepseek-ai-DeepSeek-V3.1.jinja",
    "llama-cpp-deepseek-r1.jinja",
    "llama-cpp-rwkv-world.jinja",
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


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_those_of_transformers(name: str) -> None:
    template = template_of(name)
    n_rendered = 0
    for chat, conversation in CHATS.items():
        for style in styles_of(conversation):
            messages = as_messages(conversation, style)
            for ask, expected in enumerate(GOLDEN[name][golden_name(chat, style)]):
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


def thought_of(rendered: RenderedConversation, turn: int) -> str:
    return "".join(segment.text for segment in rendered.segments if segment.turn == turn and segment.thinking)


def texts_of(template: ChatTemplate, conversation: Conversation) -> list[tuple[str, str]]:
    """What transformers writes of a conversation, and of the prompt for its last answer, in all ways that it takes."""
    texts = []
    for style in styles_of(conversation):
        messages = as_messages(conversation, style)
        with contextlib.suppress(GgtuneError):
            whole = template.render_messages(messages, add_generation_prompt=False, tools=conversation.tools)
            prompt = template.render_messages(messages[:-1], add_generation_prompt=True, tools=conversation.tools)
            texts.append((whole, prompt))
    return texts


@pytest.mark.parametrize("name", NAMES)
def test_the_mask_covers_the_assistants_words_and_end_tokens(name: str) -> None:
    template = template_of(name)
    n_checked = 0
    for chat, conversation in CHATS.items():
        texts = texts_of(template, conversation)
        try:
            rendered = template.render_conversation(conversation)
        except GgtuneError:
            refusable = any(text not in texts[0][0] for text in ("You teach chemistry.", "Patina.")) if texts else True
            assert refusable or "tools" in chat
            continue
        n_checked += 1
        last = len(conversation.turns) - 1
        inlined = f"<think>\n{conversation.turns[last].thinking}\n</think>\n\n"
        fits = []
        for whole, prompt in texts:
            written = (
                rendered.text if conversation.turns[last].thinking in whole else rendered.text.replace(inlined, "")
            )
            if whole.startswith(prompt):  # the text that transformers gives, up to the last end token
                fits.append(whole.startswith(written))
            else:
                fits.append(rendered.text.startswith(prompt) or whole.startswith(written))
        assert any(fits), chat
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
            thoughts = [segment.text for segment in rendered.segments if segment.turn == i and segment.literal]
            assert (turn.thinking in thoughts) != (i in rendered.without_thinking) or not turn.thinking
    assert n_checked >= 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chat", ["tools", "tools and thinking"])
def test_a_turn_that_only_calls_a_tool_is_learned_where_transformers_writes_it(name: str, chat: str) -> None:
    """Whatever its message has to be: a text that is empty, None, or not there; arguments as an object or as text."""
    template, conversation = template_of(name), CHATS[chat]
    question, tool = conversation.turns[0].text, conversation.turns[2].text
    written = []
    for whole, _ in texts_of(template, conversation):
        call = whole[whole.rfind(question) : whole.rfind("rain", 0, whole.rfind("it rains"))]
        shows = "get_weather" in call and "Ulm" in call.removeprefix(question) and "{'town'" not in call
        written.append(shows and "rain" in whole[len(call) :] and tool != "")
    if not any(written):
        with pytest.raises(GgtuneError):
            template.render_conversation(conversation)
        return
    if chat == "tools and thinking" and name in WITHOUT_THINKING:
        with pytest.raises(GgtuneError, match="leaves out what the assistant thinks"):
            template.render_conversation(conversation)
        return
    rendered = template.render_conversation(conversation)
    call = learned_of(rendered, 1)
    assert "get_weather" in call
    assert "Ulm" in call
    assert '"rain"' not in call
    assert learned_of(rendered, 3).count("Yes, it rains there.") == 1


@pytest.mark.parametrize("chat", ["tools", "tools and thinking"])
@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("openai-gpt-oss-120b.jinja", "<|call|>"),  # its thoughts have an end token of their own
        ("Qwen-Qwen3-0.6B.jinja", "<|im_end|>"),
        ("meetkai-functionary-medium-v3.1.jinja", "<|eom_id|>"),
    ],
)
@pytest.mark.parametrize("n_turns", [2, 4])
def test_the_end_token_of_a_call_stands_behind_it(name: str, end: str, chat: str, n_turns: int) -> None:
    rendered = template_of(name).render_conversation(replace(CHATS[chat], turns=CHATS[chat].turns[:n_turns]))
    *call, last = (segment for segment in rendered.segments if segment.turn == 1)
    assert (last.text, last.is_end) == (end, True)
    assert "get_weather" in "".join(segment.text for segment in call)


CLOSING = re.compile(r"</[\w:]*think|END_THINKING|think<\|sep|FINAL RESPONSE|</?thought")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chat", ["thinking", "tools and thinking"])
def test_tags_belong_to_the_thought_and_the_rest_to_the_answer(name: str, chat: str) -> None:
    template, conversation = template_of(name), CHATS[chat]
    try:
        rendered = template.render_conversation(conversation)
    except GgtuneError:
        assert chat != "thinking" or name in WITHOUT_THINKING
        return
    n_thoughts = 0
    for i, turn in enumerate(conversation.turns):
        thought, learned = thought_of(rendered, i), learned_of(rendered, i)
        assert learned.startswith(thought)
        answer = learned.removeprefix(thought)
        assert not CLOSING.search(answer)
        assert "<think" not in answer
        if turn.text and turn.role == "assistant":
            assert turn.text in answer
        if i in rendered.without_thinking or not turn.thinking:
            assert turn.thinking not in learned or not turn.thinking
            continue
        n_thoughts += 1
        assert turn.thinking not in answer
        _, found, tags = thought.partition(turn.thinking)
        assert found
        # one tag, and what it has in common with the opening one
        assert re.fullmatch(r"\s*(<[^<>\s]+>(think<\|sep\|>)?|\[[A-Z ]+\])", tags), tags
    assert n_thoughts
    assert conversation.turns[-1].thinking in thought_of(rendered, len(conversation.turns) - 1)


TAGS = {  # what stands around the thought, and what the answer starts with
    "Qwen-Qwen3-0.6B.jinja": ("<think>\nPatina.\n</think>", "\n\n"),
    "GLM-4.6.jinja": ("\n<think>Patina.</think>", "\n"),
    "Apriel-1.6-15b-Thinker-fixed.jinja": ("Patina.\n[BEGIN FINAL RESPONSE]", "\n"),
    "Cohere2MoE.jinja": ("Patina.<|END_THINKING|>", "<|START_TEXT|>"),
    "Kimi-K3.jinja": ("Patina.<|close|>think<|sep|>", "<|open|>response<|sep|>"),
    "openai-gpt-oss-120b.jinja": (
        "<|channel|>analysis<|message|>Patina.<|end|>",
        "<|start|>assistant<|channel|>final<|message|>",
    ),
    "MiniMax-M3.jinja": ("<mm:think>Patina.</mm:think>", ""),
    "chatml": ("<think>\nPatina.\n</think>", "\n\n"),
}


@pytest.mark.parametrize("name", TAGS)
def test_what_is_the_thought(name: str) -> None:
    rendered = template_of(name).render_conversation(CHATS["thinking"])
    thought, learned = thought_of(rendered, 3), learned_of(rendered, 3)
    assert (thought, learned.removeprefix(thought).partition("It grows")[0]) == TAGS[name]
    named = TEMPLATES["chatml"].render_conversation(CHATS["thinking"])
    assert thought_of(named, 3) == TAGS["chatml"][0]
    # an empty block is a thought's tags
    without = template_of("Qwen-Qwen3-0.6B.jinja").render_conversation(CHATS["single"])
    assert thought_of(without, 1) == "<think>\n\n</think>"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chat", ["thinking", "tools and thinking"])
@pytest.mark.parametrize("learn", ["all-assistant", "thinking", "answers"])
def test_every_thought_is_learned_once(
    name: str, chat: str, learn: Learn, demo_model: _core.Model, tmp_path: Path
) -> None:
    """In samples that end with their turn, where the template leaves out earlier thoughts; each as it is asked for."""
    template, conversation = template_of(name), CHATS[chat]
    row: dict[str, Any] = {"messages": as_messages(conversation), "tools": conversation.tools}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    try:
        left_out = template.render_conversation(conversation).without_thinking
    except GgtuneError:
        return
    whole, split = (
        load_samples(
            tmp_path / "a.jsonl", demo_model, context=4096, template=template, learn=learn, split_turns=split_turns
        )
        for split_turns in (False, True)
    )
    learned = [demo_model.detokenize(sample.tokens[sample.weights > 0]).decode() for sample in split.samples]
    assert len(whole.samples) == 1
    never = set()  # thoughts that it shows nowhere
    for i in left_out:
        try:
            template.render_conversation(replace(conversation, turns=conversation.turns[: i + 1]))
        except GgtuneError:
            never.add(i)
    assert (len(split.samples) > 1) == bool(left_out - never)
    for data, said in ((whole, "they are not learned"), (split, f"these are {len(split.samples)} samples")):
        notes = [note for note in data.report.notes if "leaves out what the assistant thought" in note]
        assert [said in note for note in notes] == [True] * bool(left_out)
    for i, turn in enumerate(conversation.turns):
        wanted = [turn.text] * (learn != "thinking") + [turn.thinking] * (learn != "answers" and i not in never)
        assert all("".join(learned).count(text) == (turn.role == "assistant") for text in wanted if text)
        unexpected = [turn.text] * (learn == "thinking") + [turn.thinking] * (learn == "answers")
        assert not any(text in "".join(learned) for text in unexpected if text)
    # each is the conversation up to one of its turns
    ends = [i for i, turn in enumerate(conversation.turns) if turn.role == "assistant" and i not in never]
    rows = [{**row, "messages": row["messages"][: i + 1]} for i in ends]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(part) + "\n" for part in rows), encoding="utf-8")
    parts = load_samples(tmp_path / "a.jsonl", demo_model, context=4096, template=template, split_turns=False)
    expected = [sample.tokens.tolist() for sample in parts.samples]
    assert all(sample.tokens.tolist() in expected for sample in split.samples)
    assert split.samples[-1].tokens.tolist() == expected[-1] == whole.samples[0].tokens.tolist()


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
