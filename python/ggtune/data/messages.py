"""Turns as the messages that chat templates take.

Templates disagree about a turn that calls a tool and says nothing: some want an empty text, some none, some fail
without the key. They disagree about the call's arguments, too: an object, or its JSON text as OpenAI's API has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ggtune.data.conversation import Turn


@dataclass(frozen=True)
class MessageStyle:
    """How a turn that only calls tools is written."""

    content: Literal["empty", "none", "absent"] = "empty"
    arguments: Literal["object", "text"] = "object"

    def message(self, turn: Turn) -> dict[str, Any]:
        """Make the message that a template gets."""
        message: dict[str, Any] = {"role": turn.role, "content": turn.text, **turn.fields}
        if turn.thinking:  # templates know it by one of these names
            message |= {"reasoning_content": turn.thinking, "thinking": turn.thinking}
        calls = turn.fields.get("tool_calls")
        if not calls:
            return message
        if not turn.text and self.content == "none":
            message["content"] = None
        elif not turn.text and self.content == "absent":
            del message["content"]
        if self.arguments == "text":
            message["tool_calls"] = [_with_text(call) for call in calls]
        return message


_CONTENTS: tuple[Literal["empty", "none", "absent"], ...] = ("empty", "none", "absent")
STYLES = (
    *(MessageStyle(content) for content in _CONTENTS),
    *(MessageStyle(content, "text") for content in _CONTENTS),
)
"""In the order in which they are tried."""


def _with_text(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or isinstance(function.get("arguments", ""), str):
        return call
    text = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def calls_of(turn: Turn) -> Iterator[tuple[str, Any]]:
    """Names and arguments of the functions that an assistant's turn calls."""
    for call in turn.fields.get("tool_calls") or []:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and "name" in function:
            yield str(function["name"]), function.get("arguments")
