"""Rows of tables and JSON files to conversations: which columns or keys hold what.

The shapes are those that data sets come in: question and answer under their usual names (Alpaca's ``instruction``,
``input``, ``output``; Dolly's and SQuAD's ``context``), OpenAI's ``messages``, ShareGPT's ``conversations``, ``text``.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from ggtune.data.conversation import Conversation, Document, Role, Turn, exchange

QUESTION_KEYS = ("question", "prompt", "instruction", "query", "user", "input")
ANSWER_KEYS = ("answer", "response", "output", "completion", "reply", "assistant", "answers")
CONTEXT_KEYS = ("context", "input", "passage")
SYSTEM_KEYS = ("system", "system_prompt")
THINKING_KEYS = ("reasoning_content", "thinking", "reasoning")
CHAT_KEYS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")
TEXT_KEYS = ("text", "content", "chunk")
WEIGHT_KEYS = ("weight",)
CATEGORY_KEYS = ("category", "topic", "label")
_CALL_ROLES = ("function_call", "tool_call")  # of ShareGPT with tools: the text is the call
# names of the sides, as OpenAI, ShareGPT and others have them
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "ai", "chatbot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "ipython"), "tool"),
    **dict.fromkeys(_CALL_ROLES, "assistant"),
}
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value", "text")
_FIELDS = ("tool_calls", "tool_call_id", "name")


class RowError(ValueError):
    """A row that can't be used; the message says why, without file and row."""


@dataclass(frozen=True)
class Columns:
    """Names that the user gave; None: found by the usual names."""

    question: str | None = None
    answer: str | None = None
    context: str | None = None
    weight: str | None = None
    category: str | None = None


@dataclass(frozen=True)
class Shape:
    """Which key of a row holds what; "" where none does."""

    chat: str = ""
    question: str = ""
    answer: str = ""
    context: str = ""
    system: str = ""
    thinking: str = ""
    text: str = ""
    weight: str = ""
    tools: str = ""
    category: str = ""

    @property
    def used(self) -> set[str]:
        """The keys that are read."""
        return {key for key in vars(self).values() if key}


def find_shape(keys: Sequence[str], columns: Columns = Columns()) -> Shape:
    """Find the shape of rows with these keys (any case). Raises :class:`RowError` where no known one is there."""
    by_name = {}
    for key in keys:
        name = str(key).strip().lower()
        if name in by_name:
            raise RowError(f"two columns are called {name!r}; rename one")
        by_name[name] = key

    def given(wanted: str | None, role: str) -> str | None:
        if wanted is None:
            return None
        if wanted.strip().lower() not in by_name:
            raise RowError(
                f"there is no column {wanted!r} for the {role}; the columns are {', '.join(map(repr, keys))}"
            )
        return by_name[wanted.strip().lower()]

    def first(names: Sequence[str], *taken: str) -> str:
        return next((by_name[name] for name in names if name in by_name and by_name[name] not in taken), "")

    chosen = [given(columns.question, "question"), given(columns.answer, "answer")]
    common = {
        "system": first(SYSTEM_KEYS),
        "weight": given(columns.weight, "weight") or first(WEIGHT_KEYS),
        "category": given(columns.category, "category") or first(CATEGORY_KEYS, *(name or "" for name in chosen)),
    }
    if not any(chosen) and (chat := first(CHAT_KEYS)):
        return Shape(chat=chat, tools=first(("tools", "functions")), **common)
    question = chosen[0] or first(QUESTION_KEYS, chosen[1] or "") or first(QUESTION_KEYS)
    answer = chosen[1] or first(ANSWER_KEYS, question) or first(ANSWER_KEYS)
    if question and answer:
        if question == answer:
            raise RowError(f"the column {question!r} can't be both question and answer")
        context = given(columns.context, "context") or first(CONTEXT_KEYS, question, answer)
        return Shape(question=question, answer=answer, context=context, thinking=first(THINKING_KEYS), **common)
    if text := first(TEXT_KEYS):
        return Shape(text=text, weight=common["weight"], category=common["category"])
    missing = "answer" if question else "question"
    known = ANSWER_KEYS if question else QUESTION_KEYS
    raise RowError(
        f"no {missing} column found among {', '.join(map(repr, keys))}; name it with --{missing}-column, or call it "
        f"one of {', '.join(known)} (or give messages, conversations or text)"
    )


def item_of(row: Mapping[str, Any], shape: Shape, number: int) -> Conversation | Document | None:
    """Make the conversation of a row; None for one that is empty. Raises :class:`RowError`."""
    item = _item_of(row, shape, number)
    category = _category(row.get(shape.category)) if shape.category else ""
    return replace(item, category=category) if item is not None and category else item


def _category(value: Any) -> str:
    """What a row is of, for a report: nothing hangs on it, so that anything may stand there."""
    return "" if value is None or value != value or isinstance(value, (Mapping, list, tuple)) else str(value).strip()


def _item_of(row: Mapping[str, Any], shape: Shape, number: int) -> Conversation | Document | None:
    weight = _weight(row.get(shape.weight)) if shape.weight else 1.0
    if shape.text:
        text = _text(row.get(shape.text), shape.text).strip()
        return Document(text, number, weight) if text else None
    system = _text(row.get(shape.system), shape.system).strip() if shape.system else ""
    if shape.chat:
        turns = turns_of(_loaded(row.get(shape.chat), shape.chat), shape.chat)
        if not turns:
            return None
        tools = _tools(row.get(shape.tools), bare=shape.tools.strip().lower() == "functions") if shape.tools else ()
        return Conversation(turns, number, weight, tools).with_system(system)
    question, answer = row.get(shape.question), row.get(shape.answer)
    if _is_messages(question) or _is_messages(answer):
        sides = [*_side(question, "user", shape.question), *_side(answer, "assistant", shape.answer)]
        return Conversation(_checked(_answered(sides)), number, weight).with_system(system) if sides else None
    asked, answered = _text(question, shape.question).strip(), _answer(answer, shape.answer).strip()
    if not asked or not answered:
        return None
    context = _text(row.get(shape.context), shape.context).strip() if shape.context else ""
    if context:  # a question comes behind its text, an instruction before what it is about
        is_question = shape.question.strip().lower() in ("question", "query")
        asked = f"{context}\n\n{asked}" if is_question else f"{asked}\n\n{context}"
    thinking = _text(row.get(shape.thinking), shape.thinking).strip() if shape.thinking else ""
    found, answered = _thinking(answered)
    if not answered:
        return None
    return exchange(asked, answered, row=number, system=system or None, weight=weight, thinking=thinking or found)


def turns_of(messages: Any, key: str) -> tuple[Turn, ...]:
    """Make turns of OpenAI's or ShareGPT's messages. Raises :class:`RowError`."""
    if messages is None:
        return ()
    if not isinstance(messages, (list, tuple)):
        raise RowError(f"{key!r} is {_kind(messages)}, not a list of messages")
    return _checked(_answered([_turn(message, i) for i, message in enumerate(messages, start=1)]))


def _turn(message: Any, number: int) -> Turn:
    if not isinstance(message, Mapping):
        raise RowError(f"message {number} is {_kind(message)}, not an object with role and content")
    named = next((message[key] for key in _ROLE_KEYS if key in message), None)
    role = _ROLES.get(str(named).strip().lower())
    if role is None:
        raise RowError(
            f"message {number} has no role" if named is None else f"message {number} has the unknown role {named!r}"
        )
    content = next((message[key] for key in _CONTENT_KEYS if key in message), None)
    fields = {key: message[key] for key in _FIELDS if message.get(key) is not None}
    called = message.get("function_call")
    if str(named).strip().lower() in _CALL_ROLES:
        called, content = content, None
    if called:
        if fields.get("tool_calls"):
            raise RowError(f"message {number} has both tool_calls and a function_call")
        fields["tool_calls"] = _legacy_calls(called, number)
    if not isinstance(fields.get("tool_calls", []), (list, tuple)):
        raise RowError(f"the tool_calls of message {number} are {_kind(fields['tool_calls'])}, not a list")
    if "tool_calls" in fields:
        fields["tool_calls"] = [_call(call, number) for call in fields["tool_calls"] or []]
    text = _content(content, number)
    thinking = next((str(message[key]) for key in THINKING_KEYS if message.get(key)), "").strip()
    if role == "assistant" and not thinking:
        thinking, text = _thinking(text)
    weight = _weight(message.get("weight"))
    learned = False if weight == 0 or message.get("learned") is False else None
    return Turn(role, text, learned, weight or 1.0, thinking, fields)


def _content(content: Any, number: int) -> str:
    """Text of a message: a text, or a list of parts."""
    if content is None:
        return ""
    if isinstance(content, (list, tuple)):
        texts = []
        for part in content:
            kind = part.get("type", "text") if isinstance(part, Mapping) else _kind(part)
            if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
                raise RowError(f"message {number} has a part of type {kind!r}: only text can be trained on")
            texts.append(part["text"])
        content = "\n".join(texts)
    return _text(content, f"content of message {number}")


def _call(call: Any, number: int) -> Any:
    """A tool call with its arguments as an object, as templates expect them."""
    if not isinstance(call, Mapping):
        raise RowError(f"a tool call of message {number} is {_kind(call)}, not an object")
    function = call.get("function")
    if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
        try:
            return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
        except ValueError as error:
            raise RowError(f"the arguments of a tool call of message {number} are no JSON: {error}") from error
    return dict(call)


def _legacy_calls(called: Any, number: int) -> list[Any]:
    """Make tool calls of OpenAI's former ``function_call``, or of its JSON text."""
    loaded = _loaded(called, f"function_call of message {number}")
    calls = loaded if isinstance(loaded, (list, tuple)) else [loaded]
    for call in calls:
        if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
            raise RowError(f"the function_call of message {number} is no object with name and arguments")
    return [
        {
            "id": _legacy_id(number, i),
            "type": "function",
            "function": {"name": call["name"], "arguments": call.get("arguments", call.get("parameters")) or {}},
        }
        for i, call in enumerate(calls)
    ]


def _legacy_id(number: int, index: int) -> str:
    """Id of a call that has none; templates that show it want nine letters and digits."""
    return f"call{100 * number + index:05d}"


def _answered(turns: Sequence[Turn]) -> list[Turn]:
    """Give the results of former function calls the name and id of the call that they follow."""
    found: list[Turn] = []
    calls: list[Any] = []
    for number, turn in enumerate(turns, start=1):
        if turn.role == "assistant":
            made = turn.fields.get("tool_calls") or []
            calls = [call for i, call in enumerate(made) if call.get("id") == _legacy_id(number, i)]
        elif turn.role == "tool" and calls and "tool_call_id" not in turn.fields:
            call = calls.pop(0)
            turn = replace(turn, fields={"name": call["function"]["name"], "tool_call_id": call["id"], **turn.fields})
        found.append(turn)
    return found


def _checked(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Raises :class:`RowError` for turns in an order that no chat has."""
    for i, turn in enumerate(turns):
        if turn.role == "system" and i:
            raise RowError(
                f"message {i + 1} is a second system text"
                if turns[0].role == "system"
                else f"message {i + 1} is a system text: only the first one can be"
            )
        if turn.role == "assistant" and not any(before.role == "user" for before in turns[:i]):
            raise RowError(f"message {i + 1} is the assistant's, and nobody has asked yet")
        if not turn.text.strip() and not turn.fields.get("tool_calls") and turn.role != "tool":
            raise RowError(f"message {i + 1} ({turn.role}) is empty")
    if turns and not any(turn.role == "assistant" for turn in turns):
        raise RowError("no message is the assistant's: there is nothing to learn")
    return tuple(turns)


def _is_messages(value: Any) -> bool:
    first = value[0] if isinstance(value, (list, tuple)) and value else None
    return isinstance(first, Mapping) and any(key in first for key in _ROLE_KEYS)


def _side(value: Any, role: Role, key: str) -> list[Turn]:
    """Turns of a prompt or completion that is a list of messages, or a text."""
    if isinstance(value, list):
        return [_turn(message, i) for i, message in enumerate(value, start=1)]
    text = _text(value, key).strip()
    return [Turn(role, text)] if text else []


def _answer(value: Any, key: str) -> str:
    """SQuAD has several answers in a list, or their texts in one."""
    if isinstance(value, (list, tuple)) and len(value) > 1 and key.strip().lower() != "answers":
        raise RowError(f"{key!r} holds {len(value)} texts: one is learned")
    while isinstance(value, (Mapping, list, tuple)):
        if isinstance(value, Mapping) and "text" not in value:
            break
        value = value["text"] if isinstance(value, Mapping) else next(iter(value), "")
    return _text(value, key)


def _thinking(answer: str) -> tuple[str, str]:
    """Cut ``<think>...</think>`` off the start of an answer."""
    stripped = answer.lstrip()
    if not stripped.startswith("<think>") or "</think>" not in stripped:
        return "", answer
    thinking, _, rest = stripped.removeprefix("<think>").partition("</think>")
    return thinking.strip(), rest.strip()


def _text(value: Any, what: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RowError(f"{what!r} holds half a character (a lone surrogate)") from error
        return value
    if isinstance(value, bytes):  # a Parquet column of bytes that no one has called a text
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise RowError(f"{what!r} holds bytes that are no UTF-8 text") from error
    if isinstance(value, (Decimal, datetime.date, datetime.time)):
        return str(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowError(f"{what!r} is {_kind(value)}, not a text")
    return "" if value != value else str(value)  # NaN: an empty cell


def _weight(value: Any) -> float:
    if value is None or value == "" or value != value:  # NaN: an empty cell
        return 1.0
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise RowError(f"the weight {value!r} is no number of at least 0")
    return weight


def _tools(value: Any, *, bare: bool) -> tuple[Any, ...]:
    """Descriptions of tools; ``bare``: of OpenAI's former ``functions``, which had no type around them."""
    loaded = _loaded(value, "tools")
    if loaded is None:
        return ()
    if not isinstance(loaded, list):
        raise RowError(f"'tools' is {_kind(loaded)}, not a list")
    if bare:
        return tuple(
            {"type": "function", "function": tool} if isinstance(tool, Mapping) and "function" not in tool else tool
            for tool in loaded
        )
    return tuple(loaded)


def _loaded(value: Any, key: str) -> Any:
    """A list that stands in the row as it is, or as JSON text (in a table)."""
    if isinstance(value, str) and value.strip():
        try:
            return json.loads(value)
        except ValueError as error:
            raise RowError(f"{key!r} is a text that is no JSON: {error}") from error
    return value or None


def _kind(value: Any) -> str:
    return {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }.get(type(value), f"of type {type(value).__name__}")
