"""Message trees (OASST): a row for each message, with the one that it answers. Each path becomes a conversation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ggtune.data.conversation import Conversation, Turn
from ggtune.data.readers.reader import Findings
from ggtune.data.shapes import RowError, turns_of

_ID, _PARENT = "message_id", "parent_id"
_FLOAT_OF_WHOLE = re.compile(r"-?\d+\.0+")


def is_tree(row: Mapping[str, Any]) -> bool:
    """Whether rows are messages of trees."""
    return _ID in row and _PARENT in row


def _identity(value: Any) -> str | None:
    """Name a message alike wherever its number stands: a column with gaps is one of floats, 1 is 1.0 there."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    return text.partition(".")[0] if _FLOAT_OF_WHOLE.fullmatch(text) else text


def conversations_of_tree(rows: Sequence[tuple[int, Mapping[str, Any]]], findings: Findings) -> Iterator[Conversation]:
    """Give each path from a first question to a last answer; what two paths share is learned once."""
    by_id: dict[Any, tuple[int, Mapping[str, Any]]] = {}
    answered: set[Any] = set()
    for number, row in rows:
        identity = _identity(row.get(_ID))
        if identity is None:
            findings.add_bad(number, f"the message has no {_ID}")
        elif identity in by_id:
            findings.add_bad(number, f"the {_ID} {row[_ID]!r} is that of {findings.unit} {by_id[identity][0]}")
        else:
            by_id[identity] = number, row
            answered.add(_identity(row.get(_PARENT)))
    learned: set[Any] = set()
    for identity, (number, row) in by_id.items():
        if identity in answered:
            continue
        path: list[Any] = []
        at: Any = identity
        while at is not None and at in by_id and at not in path:
            path.append(at)
            at = _identity(by_id[at][1].get(_PARENT))
        if at is not None:
            findings.add_bad(
                number, f"its {_PARENT} {at!r} is no message of the file" if at not in path else "it answers itself"
            )
            continue
        path.reverse()
        if str(row.get("role")).lower() == "prompter":
            path.pop()  # nobody has answered it
        if len(path) < 2:
            findings.empty.append(number)
            continue
        try:
            turns = turns_of([by_id[key][1] for key in path], "messages")
        except RowError as error:
            findings.add_bad(number, str(error))
            continue
        shared = [key in learned for key in path]
        learned.update(path)
        if all(known or turn.role != "assistant" for known, turn in zip(shared, turns, strict=True)):
            continue
        yield Conversation(
            tuple(
                Turn(turn.role, turn.text, False if known else turn.learned, turn.weight, turn.thinking, {})
                for known, turn in zip(shared, turns, strict=True)
            ),
            number,
        )
