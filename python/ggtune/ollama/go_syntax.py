"""Syntax of the part of Go's text/template that ggtune evaluates (pkg.go.dev/text/template and text/template/parse).

Text, actions with trim markers and comments, ``if``/``else if``/``else``, ``range`` with and without variables,
variables (``:=`` and ``=``), pipelines, fields, parentheses and literals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ggtune.errors import GgtuneError

Value = Any  # None, bool, int, str, list, mapping, or a dataclass in the place of a Go struct

_SPACE = " \t\r\n"
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
    | (?P<number>-?\d+)
    | (?P<variable>\$\w*)
    | (?P<field>\.[A-Za-z_]\w*)
    | (?P<name>[A-Za-z_]\w*)
    | (?P<mark>:=|=|[()|,.])
    )""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|(.))")
_SIMPLE_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`')
_COMMENT = re.compile(r"\s*/\*.*?\*/", re.DOTALL)
_LEFT_TRIM = re.compile(r"-[ \t\r\n]")
_RIGHT_TRIM = re.compile(r"[ \t\r\n]-\Z")
_KEYWORD = re.compile(r"(if|range|else|end)(?![\w.])\s*")
_CONSTANTS = {"true": True, "false": False, "nil": None}


class GoTemplateError(GgtuneError):
    """A template that Go's text/template, or this part of it, refuses."""


@dataclass(frozen=True)
class Literal:
    """A constant."""

    value: Value


@dataclass(frozen=True)
class Name:
    """A function's name, or a command that calls it without arguments."""

    name: str


@dataclass(frozen=True)
class Chain:
    """``.A.B``, ``$x.A``, ``(...).A``: the fields of a value, of the dot where ``base`` is None."""

    base: str | Pipeline | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class Pipeline:
    """Commands, each given what the one before it gives; its value may go to variables."""

    commands: tuple[tuple[Operand, ...], ...]
    declared: tuple[str, ...] = ()  # names of variables
    assigns: bool = False  # to variables that are there already


Operand = Literal | Name | Chain | Pipeline


@dataclass
class Block:
    """``if`` or ``range``; ``branches`` are taken in turn, the last one may have no condition (``else``)."""

    kind: str
    branches: list[tuple[Pipeline | None, list[Node]]] = field(default_factory=list)


Node = str | Pipeline | Block


def _pieces(text: str) -> Iterator[tuple[str, str | None]]:
    """Text and the action behind it, trimmed as the markers say; the last text has no action."""
    position = 0
    trim_next = False
    while True:
        start = text.find("{{", position)
        literal = text[position:] if start < 0 else text[position:start]
        if trim_next:
            literal = literal.lstrip(_SPACE)
        if start < 0:
            yield literal, None
            return
        start += 2
        if _LEFT_TRIM.match(text, start):
            literal = literal.rstrip(_SPACE)
            start += 1
        end = _end_of_action(text, start)
        action = text[start:end]
        position = end + 2
        trim_next = _RIGHT_TRIM.search(action) is not None
        yield literal, (action[:-1] if trim_next else action).strip(_SPACE)


def _end_of_action(text: str, start: int) -> int:
    position = start
    comment = _COMMENT.match(text, start)
    if comment:
        position = comment.end()
    while not text.startswith("}}", position):
        if position >= len(text):
            raise GoTemplateError("an action is not closed")
        quoted = _QUOTED.match(text, position)
        position = quoted.end() if quoted else position + 1
    return position


def parse(text: str) -> list[Node]:
    """Parse a template. Raises :class:`GoTemplateError` for what Go, or this part of it, refuses."""
    root: list[Node] = []
    nodes = root
    open_blocks: list[tuple[Block, list[Node]]] = []  # with the list that the block stands in
    for literal, action in _pieces(text):
        if literal:
            nodes.append(literal)
        if action is None or action.startswith("/*"):
            continue
        match = _KEYWORD.match(action)
        keyword = match[1] if match else None
        rest = action[match.end() :] if match else action
        if keyword in ("if", "range"):
            block = Block(keyword)
            nodes.append(block)
            open_blocks.append((block, nodes))
            nodes = []
            block.branches.append((_Parser(rest).pipeline(in_range=keyword == "range"), nodes))
        elif keyword is None:
            nodes.append(_Parser(action).pipeline())
        elif not open_blocks or (keyword == "end" and rest):
            raise GoTemplateError(f"unexpected {{{{{action}}}}}")
        elif keyword == "end":
            nodes = open_blocks.pop()[1]
        else:
            block = open_blocks[-1][0]
            condition = _KEYWORD.match(rest)
            if block.branches[-1][0] is None or (rest and not (condition and condition[1] == block.kind == "if")):
                raise GoTemplateError(f"unexpected {{{{{action}}}}}")
            nodes = []
            block.branches.append((_Parser(rest[condition.end() :]).pipeline() if condition else None, nodes))
    if open_blocks:
        raise GoTemplateError(f"an {{{{{open_blocks[-1][0].kind}}}}} has no {{{{end}}}}")
    return root


class _Parser:
    """Recursive descent over the tokens of one action."""

    def __init__(self, action: str) -> None:
        self._action = action
        self._tokens: list[tuple[str, str, bool]] = []  # kind, text, whether a blank stands before it
        position = 0
        while action[position:].strip(_SPACE):
            match = _TOKEN.match(action, position)
            if match is None or match.lastgroup is None:
                raise GoTemplateError(f"can't read {{{{{action}}}}}")
            spaced = match.start(match.lastgroup) > position or position == 0
            self._tokens.append((match.lastgroup, match[match.lastgroup], spaced))
            position = match.end()
        self._position = 0

    def pipeline(self, *, in_range: bool = False) -> Pipeline:
        parsed = self._pipeline(in_range=in_range)
        if self._peek()[0] != "end":
            raise GoTemplateError(f"unexpected {self._peek()[1]!r} in {{{{{self._action}}}}}")
        return parsed

    def _peek(self, ahead: int = 0) -> tuple[str, str, bool]:
        position = self._position + ahead
        return self._tokens[position] if position < len(self._tokens) else ("end", "", True)

    def _take(self) -> tuple[str, str, bool]:
        token = self._peek()
        self._position += 1
        return token

    def _pipeline(self, *, in_range: bool = False) -> Pipeline:
        declared: tuple[str, ...] = ()
        assigns = False
        marks = [self._peek(ahead)[1] for ahead in range(4)]
        if self._peek()[0] == "variable" and marks[1] in (":=", "="):
            declared, assigns = (marks[0],), marks[1] == "="
            self._position += 2
        elif in_range and self._peek()[0] == "variable" and marks[1] == "," and marks[3] in (":=", "="):
            declared, assigns = (marks[0], marks[2]), marks[3] == "="
            self._position += 4
        commands = [self._command()]
        while self._peek()[1] == "|":
            self._take()
            commands.append(self._command())
        return Pipeline(tuple(commands), declared, assigns)

    def _command(self) -> tuple[Operand, ...]:
        operands = []
        while self._peek()[0] != "end" and self._peek()[1] not in (")", "|"):
            operands.append(self._operand())
        if not operands:
            raise GoTemplateError(f"a command is missing in {{{{{self._action}}}}}")
        return tuple(operands)

    def _operand(self) -> Operand:
        kind, text, _ = self._take()
        if kind == "string":
            return Literal(text[1:-1] if text[0] == "`" else _unescape(text[1:-1]))
        if kind == "number":
            return Literal(int(text))
        if kind == "name":
            return Literal(_CONSTANTS[text]) if text in _CONSTANTS else Name(text)
        if kind == "variable":
            return Chain(text, self._fields())
        if kind == "field":
            return Chain(None, (text[1:], *self._fields()))
        if text == ".":
            return Chain(None, ())
        if text == "(":
            inner = self._pipeline()
            if self._take()[1] != ")":
                raise GoTemplateError(f"a parenthesis is not closed in {{{{{self._action}}}}}")
            names = self._fields()
            return Chain(inner, names) if names else inner
        raise GoTemplateError(f"unexpected {text!r} in {{{{{self._action}}}}}")

    def _fields(self) -> tuple[str, ...]:
        names = []
        while self._peek()[0] == "field" and not self._peek()[2]:
            names.append(self._take()[1][1:])
        return tuple(names)


def _unescape(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        code = match[1] or match[2]
        if code:
            return chr(int(code, 16))
        if match[3] or match[4] not in _SIMPLE_ESCAPES:
            raise GoTemplateError(f"the escape {match[0]} is outside of what is evaluated here")
        return _SIMPLE_ESCAPES[match[4]]

    return _ESCAPE.sub(replace, text)
