"""The part of Go's text/template that ggtune writes for Ollama, evaluated (pkg.go.dev/text/template).

Strings are UTF-8 bytes to Go's ``len`` and ``slice``, and so they are here. Whatever lies outside of
:mod:`ggtune.ollama.go_syntax` and the functions here raises :class:`GoTemplateError`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from ggtune.ollama.go_syntax import Block, GoTemplateError, Literal, Name, Node, Operand, Pipeline, Value, parse


class GoTemplate:
    """A parsed template."""

    def __init__(self, text: str) -> None:
        """Raise :class:`GoTemplateError` for a text that does not parse."""
        self._nodes = parse(text)

    def execute(self, data: Value) -> str:
        """Run the template on ``data``, its dot. Raises :class:`GoTemplateError` where Go would fail."""
        scope = _Scope()
        scope.declare("$", data)
        return "".join(_run(self._nodes, data, scope))


@dataclass(frozen=True)
class Message:
    """A message of a chat as Ollama hands it to a template."""

    role: str
    content: str


def render_for_ollama(template: GoTemplate, messages: Sequence[Message]) -> str:
    """Give the text that Ollama asks with, for a template with ``.Messages`` (ollama/ollama, ``template/template.go``).

    Messages of one role in a row are one, with an empty line between; ``.System`` is all system texts. Raises
    :class:`GoTemplateError` where Go would fail.
    """
    collated: list[Message] = []
    for message in messages:
        if collated and collated[-1].role == message.role:
            collated[-1] = Message(message.role, f"{collated[-1].content}\n\n{message.content}")
        else:
            collated.append(message)
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    return template.execute({"System": system, "Messages": collated, "Response": ""})


class _Scope:
    def __init__(self) -> None:
        self._levels: list[dict[str, Value]] = [{}]

    def push(self) -> None:
        self._levels.append({})

    def pop(self) -> None:
        self._levels.pop()

    def declare(self, name: str, value: Value) -> None:
        self._levels[-1][name] = value

    def assign(self, name: str, value: Value) -> None:
        self._level_of(name)[name] = value

    def get(self, name: str) -> Value:
        return self._level_of(name)[name]

    def _level_of(self, name: str) -> dict[str, Value]:
        for level in reversed(self._levels):
            if name in level:
                return level
        raise GoTemplateError(f"undefined variable {name}")


def _run(nodes: Sequence[Node], dot: Value, scope: _Scope) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif isinstance(node, Pipeline):
            value = _evaluate(node, dot, scope)
            if not node.declared:
                yield _printed(value)
        elif node.kind == "if":
            yield from _run_if(node, dot, scope)
        else:
            yield from _run_range(node, dot, scope)


def _run_if(block: Block, dot: Value, scope: _Scope) -> Iterator[str]:
    scope.push()
    for condition, nodes in block.branches:
        if condition is None or _evaluate(condition, dot, scope):
            yield from _run(nodes, dot, scope)
            break
    scope.pop()


def _run_range(block: Block, dot: Value, scope: _Scope) -> Iterator[str]:
    pipeline, nodes = block.branches[0]
    assert pipeline is not None
    scope.push()
    value = _evaluate(Pipeline(pipeline.commands), dot, scope)
    if value is not None and not isinstance(value, (list, tuple)):
        raise GoTemplateError(f"range can't iterate over {value!r}")
    for index, element in enumerate(value or ()):
        scope.push()
        # one variable takes the element, two take index and element
        for name, item in zip(reversed(pipeline.declared), (element, index), strict=False):
            (scope.assign if pipeline.assigns else scope.declare)(name, item)
        yield from _run(nodes, element, scope)
        scope.pop()
    if not value and len(block.branches) > 1:
        yield from _run(block.branches[1][1], dot, scope)
    scope.pop()


def _evaluate(pipeline: Pipeline, dot: Value, scope: _Scope) -> Value:
    final: list[Value] = []  # what the command before gives: the last argument of the next
    for command in pipeline.commands:
        final = [_call(command, final, dot, scope)]
    for name in pipeline.declared:
        (scope.assign if pipeline.assigns else scope.declare)(name, final[0])
    return final[0]


def _call(command: tuple[Operand, ...], final: list[Value], dot: Value, scope: _Scope) -> Value:
    head, *rest = command
    if not isinstance(head, Name):
        if rest or final:
            raise GoTemplateError("arguments are given to something that is no function")
        return _operand(head, dot, scope)
    arguments = [*rest, *map(Literal, final)]
    if head.name in ("and", "or"):  # they stop at the first argument that decides
        value = None
        if not arguments:
            raise GoTemplateError(f"{head.name} has no arguments")
        for argument in arguments:
            value = _operand(argument, dot, scope)
            if bool(value) == (head.name == "or"):
                break
        return value
    if head.name not in _FUNCTIONS:
        raise GoTemplateError(f"the function {head.name} is outside of what is evaluated here")
    try:
        return _FUNCTIONS[head.name](*(_operand(argument, dot, scope) for argument in arguments))
    except TypeError as error:
        raise GoTemplateError(f"{head.name}: {error}") from None


def _operand(operand: Operand, dot: Value, scope: _Scope) -> Value:
    if isinstance(operand, Literal):
        return operand.value
    if isinstance(operand, Name):
        return _call((operand,), [], dot, scope)
    if isinstance(operand, Pipeline):
        return _evaluate(operand, dot, scope)
    if operand.base is None:
        value = dot
    elif isinstance(operand.base, str):
        value = scope.get(operand.base)
    else:
        value = _evaluate(operand.base, dot, scope)
    for name in operand.names:
        value = _field(value, name)
    return value


def _field(value: Value, name: str) -> Value:
    if isinstance(value, Mapping):
        return value.get(name)  # a missing key is nil
    if is_dataclass(value) and name in (known.name.title() for known in fields(value)):
        return getattr(value, name.lower())
    raise GoTemplateError(f"there is no field {name} in {value!r}")


def _printed(value: Value) -> str:
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int)):
        return str(value)
    raise GoTemplateError(f"printing {value!r} is outside of what is evaluated here")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # a slice may have cut a character


def _comparable(a: Value, b: Value) -> tuple[Value, Value]:
    if type(a) is not type(b) or not isinstance(a, (bool, int, str)):
        raise GoTemplateError(f"incompatible types for comparison: {a!r} and {b!r}")
    return (_bytes(a), _bytes(b)) if isinstance(a, str) else (a, b)


def _ordering(compare: Callable[[Any, Any], bool]) -> Callable[[Value, Value], bool]:
    def function(a: Value, b: Value) -> bool:
        if isinstance(a, bool):
            raise GoTemplateError("true and false have no order")
        return compare(*_comparable(a, b))

    return function


def _equal(first: Value, *others: Value) -> bool:
    if not others:
        raise GoTemplateError("eq has nothing to compare with")
    return any(operator.eq(*_comparable(first, other)) for other in others)


def _length(value: Value) -> int:
    if not isinstance(value, (str, list, tuple, Mapping)):
        raise GoTemplateError(f"len of {value!r}")
    return len(_bytes(value)) if isinstance(value, str) else len(value)


def _slice(value: Value, *bounds: Value) -> Value:
    if not isinstance(value, (str, list, tuple)) or len(bounds) > 2:
        raise GoTemplateError(f"slice of {value!r}")
    length = _length(value)
    start = bounds[0] if bounds else 0
    end = bounds[1] if len(bounds) > 1 else length
    for bound in (start, end):
        if isinstance(bound, bool) or not isinstance(bound, int) or not 0 <= bound <= length:
            raise GoTemplateError(f"index out of range: {bound}")
    if start > end:
        raise GoTemplateError(f"invalid slice index: {start} > {end}")
    if isinstance(value, str):
        return _bytes(value)[start:end].decode("utf-8", "surrogateescape")
    return value[start:end]


def _index(value: Value, *keys: Value) -> Value:
    for key in keys:
        if isinstance(value, Mapping) and isinstance(key, str):
            value = value.get(key)
        elif not isinstance(value, (list, tuple)) or isinstance(key, bool) or not isinstance(key, int):
            raise GoTemplateError(f"can't index {value!r} with {key!r}")
        elif not 0 <= key < len(value):
            raise GoTemplateError(f"index out of range: {key}")
        else:
            value = value[key]
    return value


_FUNCTIONS: Mapping[str, Callable[..., Value]] = {
    "not": operator.not_,
    "eq": _equal,
    "ne": lambda a, b: not _equal(a, b),
    "lt": _ordering(operator.lt),
    "le": _ordering(operator.le),
    "gt": _ordering(operator.gt),
    "ge": _ordering(operator.ge),
    "len": _length,
    "slice": _slice,
    "index": _index,
}
