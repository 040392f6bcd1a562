"""Message trees (OASST): a row for each message, with the one that it answers. Each path becomes a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ggtune.data.conversation import Conversation, Turn
from ggtune.data.readers.reader import Findings
from ggtune.data.shapes import RowError, turns_of

_ID, _PARENT = "message_id", "parent_id"


def is_tree(row: Mapping[str, Any]) -> bool:
    """Whether rows are messages of trees."""
    return _ID in row and _PARENT in row


def conversations_of_tree(rows: Sequence[tuple[int, Mapping[str, Any]]], findings: Findings) -> Iterator[Conversation]:
    """Give each path from a first question to a last answer; what two paths share is learned once."""
    by_id: dict[Any, tuple[int, Mapping[str, Any]]] = {}
    answered: set[Any] = set()
    for number, row in rows:
        if row.get(_ID) is None:
            findings.add_bad(number, f"the message has no {_ID}")
        elif row[_ID] in by_id:
            findings.add_bad(number, f"the {_ID} {row[_ID]!r} is that of row {by_id[row[_ID]][0]}")
        else:
            by_id[row[_ID]] = number, row
            answered.add(row.get(_PARENT))
    learned: set[Any] = set()
    for identity, (number, row) in by_id.items():
        if identity in answered:
            continue
        path: list[Any] = []
        at: Any = identity
        while at is not None and at in by_id and at not in path:
            path.append(at)
            at = by_id[at][1].get(_PARENT)
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
