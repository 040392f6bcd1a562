"""A :class:`ChatFormat` as Go text/template for Ollama (ollama/ollama, ``template/template.go``).

It is the form with ``.Messages``: Ollama runs it once for the whole chat, so the first turn and the last one can be
told from the others. The older form (``.System .Prompt .Response``) runs once per turn, with ``.System`` empty after
the first: a default system text would come again in every turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ggtune.ollama.chat_format import HOLE, ChatFormat, Texts, common_prefix, common_suffix

# braces that Go would take for an action's start (one, if an action follows), quotation marks that would end
# the value in a Modelfile, and characters that may not print, which Ollama drops from a Modelfile
_QUOTED = re.compile(r'\{{2,}|\{(?=[^\n\t\x20-\x7e]|"""|\Z)|"{3,}|[^\n\t\x20-\x7e]+')


@dataclass(frozen=True)
class _Action:
    code: str


class _Break:
    """A line break for the reader, where two actions meet: it is trimmed away."""


_Item = str | _Action | _Break
_BREAK = _Break()
_SYSTEM = "$.System"
_FIRST = "$first"  # no answer came before
_LAST = "$last"  # this is the last message


def write_template(chat: ChatFormat) -> str:
    """Write the TEMPLATE of a format."""
    openings = {where: text.removesuffix(chat.question_start) for where, text in chat.opening.items()}
    turn_ends = {where: text.removesuffix(chat.question_start) for where, text in chat.after_answer.items()}
    answer_starts = {where: text.removeprefix(chat.question_end) for where, text in chat.after_question.items()}
    generation = {where: text.removeprefix(chat.question_end) for where, text in chat.generation.items()}

    before_loop: list[_Item] = []
    question: list[_Item] = []
    if _depends(openings, "last"):  # on whether there are more turns: written with the first question
        conditions = {"system": _SYSTEM, "last": _LAST}
        question = _if(_FIRST, _select(openings, conditions))
    else:
        before_loop = _select(openings, {"system": _SYSTEM})
    question += [chat.question_start, _Action(".Content"), chat.question_end]
    asked = _select(generation, {"first": _FIRST, "system": _SYSTEM})
    question += _if(_LAST, asked)

    places = {"last": "$latest", "first": _FIRST, "system": _SYSTEM}
    answer = _select(answer_starts, places) + _content(chat)
    suffix = chat.answer_suffix
    if suffix and all(text.startswith(suffix) for text in turn_ends.values()):
        turn_ends = {where: text.removeprefix(suffix) for where, text in turn_ends.items()}
        closing = _if(f"not ({_ends_in(suffix)})", [suffix])
    else:
        closing = []
    answer += _if(f"not {_LAST}", closing + _select(turn_ends, places))

    messages: list[_Item] = [
        _Action('if eq .Role "user"'),
        *question,
        _BREAK,
        _Action('else if eq .Role "assistant"'),
        *answer,
    ]
    text = _joined(before_loop + messages)
    variables: list[_Item] = []
    for name, n_left in ((_LAST, 1), ("$latest", 2)):
        if name in text:
            variables += [_BREAK, _Action(f"{name} := le (len (slice $.Messages $i)) {n_left}")]
    uses_first = _FIRST in text
    if uses_first:
        before_loop = [_Action(f"{_FIRST} := true"), _BREAK, *before_loop]
        messages.append(_Action(f"{_FIRST} = false"))
    return _joined(
        [
            *before_loop,
            _BREAK,
            _Action("range $i, $message := .Messages"),
            *variables,
            _BREAK,
            *messages,
            _BREAK,
            _Action("end"),
            _BREAK,
            _Action("end"),
        ]
    )


def _if(condition: str, then: list[_Item], otherwise: Sequence[_Item] = ()) -> list[_Item]:
    if not then and not otherwise:
        return []
    if condition == _SYSTEM and then == [_Action(_SYSTEM)] and not otherwise:
        return then  # an empty text is as good as none
    return [
        _Action(f"if {condition}"),
        *then,
        *([_Action("else"), *otherwise] if otherwise else []),
        _Action("end"),
    ]


def _content(chat: ChatFormat) -> list[_Item]:
    """Write an answer. A client may send it as the model wrote it: what stands before it is not written twice."""
    prefix = chat.answer_prefix
    if not prefix:
        return [_Action(".Content")]
    length = len(prefix.encode())
    return [
        _Action(f"if and (ge (len .Content) {length}) (eq (slice .Content 0 {length}) {_go_string(prefix)})"),
        _Action(f"slice .Content {length}"),
        _Action("else"),
        _Action(".Content"),
        _Action("end"),
    ]


def _ends_in(suffix: str) -> str:
    # Go's templates can't subtract: what is left of the text without as many bytes has the length to cut at
    length = len(suffix.encode())
    end = f"slice .Content (len (slice .Content {length}))"
    return f"and (ge (len .Content) {length}) (eq ({end}) {_go_string(suffix)})"


def _depends(texts: Texts, on: str) -> bool:
    return any(texts.get(replace(where, **{on: not getattr(where, on)}), text) != text for where, text in texts.items())


def _select(texts: Texts, conditions: Mapping[str, str]) -> list[_Item]:
    """Write the one of ``texts`` whose place it is; ``conditions`` are Go's, by the name of what they ask for."""
    prefix = common_prefix(list(texts.values()))
    rest = {where: text[len(prefix) :] for where, text in texts.items()}
    suffix = common_suffix(list(rest.values()))
    rest = {where: text[: len(text) - len(suffix)] for where, text in rest.items()}
    chosen: list[_Item] = []
    for name, condition in conditions.items():
        if _depends(rest, name):
            then = _select({where: text for where, text in rest.items() if getattr(where, name)}, conditions)
            otherwise = _select({where: text for where, text in rest.items() if not getattr(where, name)}, conditions)
            chosen = _if(condition, then, otherwise) if then else _if(f"not {condition}", otherwise)
            break
    else:
        chosen = _with_system(next(iter(rest.values())))
    return [*_with_system(prefix), *chosen, *_with_system(suffix)]


def _with_system(text: str) -> list[_Item]:
    items: list[_Item] = []
    for part in re.split(f"({HOLE})", text):
        items.append(_Action(_SYSTEM) if part == HOLE else part)
    return [item for item in items if item != ""]


def _joined(items: Sequence[_Item]) -> str:
    text = ""
    literal = ""
    break_wanted = False  # behind an action, with nothing written since
    for item in [*items, _BREAK]:
        if isinstance(item, str):
            literal += item
        elif isinstance(item, _Break):
            break_wanted = text != "" and not literal
        else:
            if literal:
                text += _QUOTED.sub(_quoted, literal)
            elif break_wanted:
                text = text.removesuffix("}}") + "-}}\n"
            text += f"{{{{ {item.code} }}}}"
            literal = ""
            break_wanted = False
    return text + _QUOTED.sub(_quoted, literal)


def _quoted(match: re.Match[str]) -> str:
    text = match[0]
    return text if text[0] not in '{"' and text.isprintable() else f"{{{{ {_go_string(text)} }}}}"


def _go_string(text: str) -> str:
    """Write a Go string literal without characters that do not print."""
    escaped = []
    for character in text:
        if character in '"\\':
            escaped.append("\\" + character)
        elif character == "\n":
            escaped.append("\\n")
        elif character.isprintable():
            escaped.append(character)
        else:
            escaped.append(f"\\u{ord(character):04x}" if ord(character) <= 0xFFFF else f"\\U{ord(character):08x}")
    return f'"{"".join(escaped)}"'
