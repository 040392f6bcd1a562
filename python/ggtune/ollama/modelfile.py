"""Ollama's Modelfile: written with ``str()``, read with :meth:`Modelfile.parse`.

A value is bare to the end of its line, or in ``"``, or in three of them, and there are no escapes: a quoted value ends
at the first line that ends in its closing quotes. So a text with a line that ends in three of them can't be written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ggtune.errors import GgtuneError
from ggtune.ollama.parameters import Parameters, parse_parameter, plain_parameters

# instructions that take one text, by the field that holds it
_TEXTS = {
    "FROM": "model",
    "ADAPTER": "adapter",
    "TEMPLATE": "template",
    "SYSTEM": "system",
    "RENDERER": "renderer",
    "PARSER": "parser",
    "REQUIRES": "requires",
}
ROLES = ("system", "user", "assistant")
"""Who can say a MESSAGE."""


@dataclass(frozen=True)
class Statement:
    """One instruction with its unquoted value, or (``instruction`` "") a comment or blank line."""

    line: int  # from 1
    instruction: str  # in capitals
    argument: str  # PARAMETER's name, MESSAGE's role, else ""
    value: str
    raw: str  # as it stands, with its line end


@dataclass
class Modelfile:
    """What a Modelfile says. ``model`` is the value of FROM: a path, or the name of a model that Ollama has."""

    model: str
    adapter: str | None = None
    template: str | None = None
    system: str | None = None
    license: list[str] = field(default_factory=list)  # texts, each a LICENSE of its own
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None
    parameters: Parameters = field(default_factory=dict)
    messages: list[tuple[str, str]] = field(default_factory=list)  # (role, text)

    def __str__(self) -> str:
        """Write the file's text. Raises :class:`GgtuneError` for a text or parameter that a Modelfile can't express."""
        lines = []
        for instruction, name in _TEXTS.items():
            value = getattr(self, name)
            if value:
                lines.append(format_statement(instruction, "", value))
        lines += [format_statement("LICENSE", "", text) for text in self.license]
        for name, value in plain_parameters(self.parameters).items():
            lines += [
                format_statement("PARAMETER", name, item) for item in (value if isinstance(value, list) else [value])
            ]
        lines += [format_statement("MESSAGE", role, text) for role, text in self.messages]
        return "".join(lines)

    def lost_characters(self) -> str:
        """List the characters, each once, that Ollama drops when it reads the file: those that do not print."""
        texts = [*(getattr(self, name) or "" for name in _TEXTS.values()), *self.license, *_stops(self.parameters)]
        text = "".join([*texts, *(message for _, message in self.messages)])
        return "".join(sorted({c for c in text if not c.isprintable() and c not in "\n\r\t"}))

    @classmethod
    def parse(cls, text: str, *, path: str = "Modelfile") -> Modelfile:
        """Read a Modelfile; ``path`` is for messages. Raises :class:`GgtuneError` with the line number."""
        texts: dict[str, str] = {}
        licenses: list[str] = []
        parameters: dict[str, int | float | bool | list[str]] = {}
        messages: list[tuple[str, str]] = []
        for statement in parse_statements(text, path=path):
            where = f"{path}, line {statement.line}"
            instruction, argument, value = statement.instruction, statement.argument, statement.value
            if instruction in _TEXTS:
                if instruction == "ADAPTER" and "adapter" in texts:
                    raise GgtuneError(f"{where}: a second ADAPTER; Ollama takes one.")
                texts[_TEXTS[instruction]] = value
            elif instruction == "LICENSE":
                licenses.append(value)
            elif instruction == "PARAMETER":
                try:
                    parsed = parse_parameter(argument, value)
                except GgtuneError as error:
                    raise GgtuneError(f"{where}: {error}") from None
                if isinstance(parsed, str):
                    stops = parameters.setdefault(argument, [])
                    assert isinstance(stops, list)
                    stops.append(parsed)
                else:
                    parameters[argument] = parsed
            elif instruction == "MESSAGE":
                if argument not in ROLES:
                    raise GgtuneError(f'{where}: MESSAGE has the role "{argument}", not one of {", ".join(ROLES)}.')
                messages.append((argument, value))
        if "model" not in texts:
            raise GgtuneError(f"{path}: a Modelfile needs a FROM line.")
        return cls(**texts, license=licenses, parameters=parameters, messages=messages)


def check_role(role: str) -> None:
    """Raise :class:`GgtuneError` for a role that no MESSAGE can have."""
    if role not in ROLES:
        raise GgtuneError(f'A MESSAGE has the role "{role}"; it must be one of {", ".join(ROLES)}.')


def format_statement(instruction: str, argument: str, value: int | float | bool | str) -> str:
    """Write one instruction with its line end. Raises :class:`GgtuneError` for a text that can't be expressed."""
    if instruction == "MESSAGE":
        check_role(argument)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    name = f"{instruction} {argument}" if argument else instruction
    return f"{name} {_quote(text, name, always=instruction == 'PARAMETER' and isinstance(value, str))}\n"


def _stops(parameters: Parameters) -> list[str]:
    stops = parameters.get("stop", [])
    return list(stops) if not isinstance(stops, (int, float)) else []


def _quote(text: str, instruction: str, *, always: bool = False) -> str:
    lines = re.split(r"[\r\n]", text)
    # trailing blanks do not hide the quotes: Ollama strips the line before it looks at its end
    for number, line in enumerate(lines, start=1):
        if line.rstrip().endswith('"""'):
            raise GgtuneError(
                f"The text of {instruction} has three quotation marks at the end of its line {number}; a Modelfile "
                "can't express that. Change the text, or write the model into the store alone."
            )
    plain = len(lines) == 1 and text == text.strip() and not text.startswith('"')
    if plain and not always:
        return text
    if '"' not in text:
        return f'"{text}"'
    return f'"""{text}"""'


def _unquote(text: str) -> str | None:
    """Strip the quotes; None where the closing ones are still to come."""
    for quotes in ('"""', '"'):
        if text.startswith(quotes):
            closed = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if closed else None
    return text


def parse_statements(text: str, *, path: str = "Modelfile") -> Iterator[Statement]:
    """Take a Modelfile apart; the ``raw`` texts joined are ``text``. Raises as :meth:`Modelfile.parse`."""
    lines = enumerate(re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$", text), start=1)
    for number, line in lines:
        if not line.strip() or line.startswith("#"):
            yield Statement(number, "", "", "", line)
            continue
        where = f"{path}, line {number}"
        raw = line
        instruction, _, rest = line.strip(" \t").partition(" ")
        instruction = instruction.strip().upper()
        argument = ""
        if instruction in ("PARAMETER", "MESSAGE"):
            argument, _, rest = rest.strip(" \t").partition(" ")
            argument = argument.strip()
        elif instruction not in _TEXTS and instruction != "LICENSE":
            raise GgtuneError(f'{where}: "{instruction}" is not an instruction.')
        while (value := _unquote(rest.strip())) is None:
            try:
                more = next(lines)[1]
            except StopIteration:
                raise GgtuneError(f"{where}: the quotes of {instruction} are never closed.") from None
            rest += more
            raw += more
        if not value:
            raise GgtuneError(f"{where}: {instruction} has no value.")
        yield Statement(number, instruction, argument, value, raw)
