"""Ollama's Modelfile: written with ``str()``, read with :meth:`Modelfile.parse`.

A value is bare to the end of its line, or in ``"``, or in three of them, and there are no escapes: a quoted value ends
at the first line that ends in its closing quotes. So a text with a line that ends in three of them can't be written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ggtune.errors import GgtuneError
from ggtune.ollama.parameters import Parameters, check_parameters, parse_parameter

# instructions that take one text, by the field that holds it
_TEXTS = {
    "FROM": "model",
    "ADAPTER": "adapter",
    "TEMPLATE": "template",
    "SYSTEM": "system",
    "LICENSE": "license",
    "RENDERER": "renderer",
    "PARSER": "parser",
    "REQUIRES": "requires",
}
_ROLES = ("system", "user", "assistant")


@dataclass
class Modelfile:
    """What a Modelfile says. ``model`` is the value of FROM: a path, or the name of a model that Ollama has."""

    model: str
    adapter: str | None = None
    template: str | None = None
    system: str | None = None
    license: str | None = None
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
                lines.append(f"{instruction} {_quote(value, instruction)}")
        for name, value in check_parameters(self.parameters).items():
            for item in value if isinstance(value, list) else [value]:
                text = str(item).lower() if isinstance(item, bool) else str(item)
                lines.append(f"PARAMETER {name} {_quote(text, f'PARAMETER {name}', always=isinstance(item, str))}")
        for role, text in self.messages:
            if role not in _ROLES:
                raise GgtuneError(f'A MESSAGE has the role "{role}"; it must be one of {", ".join(_ROLES)}.')
            lines.append(f"MESSAGE {role} {_quote(text, 'MESSAGE')}")
        return "\n".join(lines) + "\n"

    def lost_characters(self) -> str:
        """List the characters, each once, that Ollama drops when it reads the file: those that do not print."""
        text = "".join(
            value for value in [*(getattr(self, name) for name in _TEXTS.values()), *_stops(self.parameters)] if value
        ) + "".join(message for _, message in self.messages)
        return "".join(sorted({c for c in text if not c.isprintable() and c not in "\n\r\t"}))

    @classmethod
    def parse(cls, text: str) -> Modelfile:
        """Read a Modelfile. Raises :class:`GgtuneError` with the line number."""
        texts: dict[str, str] = {}
        parameters: dict[str, int | float | bool | list[str]] = {}
        messages: list[tuple[str, str]] = []
        for line_number, instruction, argument, value in _instructions(text):
            where = f"Modelfile, line {line_number}"
            if instruction in _TEXTS:
                if instruction == "ADAPTER" and "adapter" in texts:
                    raise GgtuneError(f"{where}: a second ADAPTER; Ollama takes one.")
                texts[_TEXTS[instruction]] = value
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
            elif argument in _ROLES:
                messages.append((argument, value))
            else:
                raise GgtuneError(f'{where}: MESSAGE has the role "{argument}", not one of {", ".join(_ROLES)}.')
        if "model" not in texts:
            raise GgtuneError("A Modelfile needs a FROM line.")
        return cls(**texts, parameters=parameters, messages=messages)


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


def _instructions(text: str) -> Iterator[tuple[int, str, str, str]]:
    """Line number, instruction, argument (PARAMETER's name, MESSAGE's role, else empty) and unquoted value."""
    lines = enumerate(re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$", text), start=1)
    for number, line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        instruction, _, rest = line.strip(" \t").partition(" ")
        instruction = instruction.strip().upper()
        argument = ""
        if instruction in ("PARAMETER", "MESSAGE"):
            argument, _, rest = rest.strip(" \t").partition(" ")
            argument = argument.strip()
        elif instruction not in _TEXTS:
            raise GgtuneError(f'Modelfile, line {number}: "{instruction}" is not an instruction.')
        while (value := _unquote(rest.strip())) is None:
            try:
                rest += next(lines)[1]
            except StopIteration:
                raise GgtuneError(f"Modelfile, line {number}: the quotes of {instruction} are never closed.") from None
        if not value:
            raise GgtuneError(f"Modelfile, line {number}: {instruction} has no value.")
        yield number, instruction, argument, value
