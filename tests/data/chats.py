"""Conversations, and chat templates to render them with."""

import datetime
import hashlib
from pathlib import Path
from typing import Any

import gguf_samples

from ggtune.data.conversation import Conversation, Turn
from ggtune.data.messages import STYLES, MessageStyle

VENDORED = Path(__file__).parents[2] / "vendor/llama.cpp/models/templates"
NOW = datetime.datetime(2026, 3, 4, 5, 6, 7)
BOS, EOS = "<s>", "</s>"
# of the vendored templates' models
END_TEXTS = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "</s>", "<end_of_turn>", "<|end|>", "<|return|>", "<|call|>"),
    *("<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>", "<|end_of_text|>", "<turn|>", "<|role_end|>", "<|eom|>"),
    *("<|user|>", "<|observation|>", "<|end_of_msg|>", "<|endoftext|>"),
)

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a town.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "description": "Its name."}},
            "required": ["town"],
        },
    },
}
_CALL = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"town": "Ulm"}},
}
_ASKED, _ANSWERED = (
    Turn("user", "Why does iron rust?\nBriefly, please."),
    Turn("assistant", "Water and air oxidize it."),
)
_ASKED_AGAIN, _ANSWERED_AGAIN = Turn("user", "And copper?"), Turn("assistant", "It grows a green coat.")
_LAST, _LAST_ANSWER = Turn("user", "Is gold safe?"), Turn("assistant", "Yes: it hardly reacts.")
_SYSTEM = Turn("system", "You teach chemistry.")

CHATS = {
    "single": Conversation((_ASKED, _ANSWERED), 1),
    "single with system": Conversation((_SYSTEM, _ASKED, _ANSWERED), 1),
    "multi": Conversation((_ASKED, _ANSWERED, _ASKED_AGAIN, _ANSWERED_AGAIN, _LAST, _LAST_ANSWER), 1),
    "multi with system": Conversation((_SYSTEM, _ASKED, _ANSWERED, _ASKED_AGAIN, _ANSWERED_AGAIN), 1),
    "thinking": Conversation(
        (
            _ASKED,
            Turn("assistant", "Water and air oxidize it.", thinking="Redox, I think."),
            _ASKED_AGAIN,
            Turn("assistant", "It grows a green coat.", thinking="Patina."),
        ),
        1,
    ),
    "tools": Conversation(
        (
            Turn("user", "Does it rain in Ulm?"),
            Turn("assistant", "", fields={"tool_calls": [_CALL]}),
            Turn("tool", '{"rain": true}', fields={"name": "get_weather", "tool_call_id": "call12345"}),
            Turn("assistant", "Yes, it rains there."),
        ),
        1,
        tools=(_WEATHER,),
    ),
    "tools and thinking": Conversation(
        (
            Turn("user", "Does it rain in Ulm?"),
            Turn("assistant", "", thinking="I look it up.", fields={"tool_calls": [_CALL]}),
            Turn("tool", '{"rain": true}', fields={"name": "get_weather", "tool_call_id": "call12345"}),
            Turn("assistant", "Yes, it rains there.", thinking="So it says."),
            _LAST,
            Turn("assistant", "Yes: it hardly reacts.", thinking="Noble."),
        ),
        1,
        tools=(_WEATHER,),
    ),
}


def styles_of(conversation: Conversation) -> tuple[MessageStyle, ...]:
    """Ways in which a conversation's messages may be written."""
    return STYLES if any(turn.fields.get("tool_calls") for turn in conversation.turns) else STYLES[:1]


def golden_name(chat: str, style: MessageStyle) -> str:
    return chat if style == STYLES[0] else f"{chat} (content {style.content}, arguments {style.arguments})"


def sources() -> dict[str, str]:
    """Jinja sources by name."""
    vendored = {path.name: path.read_text(encoding="utf-8") for path in sorted(VENDORED.glob("*.jinja"))}
    return {**{name: source for name, (source, _, _) in gguf_samples.JINJA.items()}, **vendored}


def as_messages(conversation: Conversation, style: MessageStyle = STYLES[0]) -> list[dict[str, Any]]:
    """Messages as transformers takes them."""
    return [style.message(turn) for turn in conversation.turns]


def digest(text: str) -> str:
    """Give a text, or of a long one its hash."""
    return text if len(text) < 400 else hashlib.sha256(text.encode()).hexdigest()


def end_of(text: str) -> str:
    """Cut a text behind its first end token."""
    found = [text[: text.index(end) + len(end)] for end in END_TEXTS if end in text]
    return min(found, key=len, default="")
