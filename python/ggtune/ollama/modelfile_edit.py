"""A Modelfile that is there already: replaced where ggtune wrote it, extended where a user did.

ggtune's own files start with a comment that holds the hash of the rest: a file that no longer has that hash was edited.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggtune.errors import GgtuneError
from ggtune.ollama.modelfile import Modelfile, Statement, format_statement, parse_statements
from ggtune.version import version

_SIGNATURE = re.compile(r"# Written by ggtune [^\r\n]*sha256:([0-9a-f]{64})\r?\n")
# where a statement that is not there yet goes: behind the last of those up to it
_ORDER = ("FROM", "ADAPTER", "TEMPLATE", "SYSTEM", "LICENSE", "PARAMETER", "MESSAGE")


def read_modelfile(path: Path) -> str:
    """Read the text of a Modelfile. Raises :class:`GgtuneError` for one that can't be read."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise GgtuneError(f"{path}: can't be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise GgtuneError(f"{path}: is not UTF-8 text. Save it as UTF-8, or move it away.") from error


def signed(body: str) -> str:
    """Put the comment in front by which :func:`is_signed` knows an unchanged file."""
    return f"# Written by ggtune {version()}; sha256:{_digest(body)}\n{body}"


def is_signed(text: str) -> bool:
    """Whether ggtune wrote this, and nobody changed it."""
    found = _SIGNATURE.match(text)
    return found is not None and _digest(text[found.end() :]) == found[1]


@dataclass(frozen=True)
class Extended:
    """A Modelfile that was extended: its text, and what of the old one is left in it."""

    text: str
    kept: tuple[str, ...]  # kinds of statements: "SYSTEM", "PARAMETER temperature"
    n_comments: int

    @property
    def what_stays(self) -> str:
        """List it for the user; "" for nothing."""
        parts = [key for key in self.kept if not key.startswith("PARAMETER ")]
        if parameters := [key.partition(" ")[2] for key in self.kept if key.startswith("PARAMETER ")]:
            parts.append("PARAMETER " + ", ".join(parameters))
        if self.n_comments:
            parts.append(f"{self.n_comments} comment{'s' if self.n_comments > 1 else ''}")
        return "; ".join(parts)


def extend(text: str, wanted: Modelfile, given: Collection[str], *, path: str = "Modelfile") -> Extended:
    """Put ``wanted`` into the Modelfile ``text``: what that says stays, with its comments and order.

    FROM and ADAPTER are set; so is whatever ``given`` names (``TEMPLATE``, ``SYSTEM``, ``LICENSE``, ``MESSAGE``,
    ``PARAMETER <name>``), and what the file does not have. Stops add up. Raises :class:`GgtuneError` for a file that is
    no Modelfile, and for texts that one can't express.
    """
    Modelfile.parse(text, path=path)
    match = _SIGNATURE.match(text)
    statements = list(parse_statements(text[match.end() :] if match else text, path=path))
    there = {_key(statement) for statement in statements}
    stops = [statement.value for statement in statements if _key(statement) == "PARAMETER stop"]
    new = {
        key: [item for item in items if key != "PARAMETER stop" or item[2] not in stops]
        for key, items in _wanted(wanted).items()
    }
    replaced = {"FROM", "ADAPTER", *given} - {"PARAMETER stop"}
    added = {key for key in new if key not in there or key == "PARAMETER stop"}

    pieces: list[tuple[str, str]] = []  # instruction and text
    kept: dict[str, None] = {}
    n_comments = 0
    for statement in statements:
        key = _key(statement)
        if key in replaced:
            # the first one's place is that of all
            lines = "".join(format_statement(*item) for item in new.pop(key, []))
            pieces.append((statement.instruction, lines))
            continue
        if key:
            kept[key] = None
        else:
            n_comments += bool(statement.raw.strip())
        pieces.append((statement.instruction, statement.raw))
    for key in sorted((key for key in new if key in added and new[key]), key=_place):
        _insert(pieces, key.partition(" ")[0], "".join(format_statement(*item) for item in new[key]))
    return Extended("".join(piece for _, piece in pieces), tuple(kept), n_comments)


def _wanted(modelfile: Modelfile) -> dict[str, list[tuple[str, str, int | float | bool | str]]]:
    """What a Modelfile says, as arguments of :func:`format_statement`, by the keys that :func:`_key` gives."""
    found: dict[str, list[tuple[str, str, int | float | bool | str]]] = {}
    texts: dict[str, Sequence[str | None]] = {
        "FROM": [modelfile.model],
        "ADAPTER": [modelfile.adapter],
        "TEMPLATE": [modelfile.template],
        "SYSTEM": [modelfile.system],
        "LICENSE": modelfile.license,
    }
    for instruction, values in texts.items():
        if any(values):
            found[instruction] = [(instruction, "", value) for value in values if value]
    for name, value in modelfile.parameters.items():
        values_of_it = [value] if isinstance(value, (int, float)) else value
        found[f"PARAMETER {name}"] = [("PARAMETER", name, item) for item in values_of_it]
    if modelfile.messages:
        found["MESSAGE"] = [("MESSAGE", role, text) for role, text in modelfile.messages]
    return found


def _key(statement: Statement) -> str:
    """Kind of a statement; "" for a comment."""
    return f"PARAMETER {statement.argument}" if statement.instruction == "PARAMETER" else statement.instruction


def _place(key: str) -> int:
    return _ORDER.index(key.partition(" ")[0])


def _insert(pieces: list[tuple[str, str]], instruction: str, lines: str) -> None:
    there = any(each == instruction for each, _ in pieces)
    before = (instruction,) if there else _ORDER[: _ORDER.index(instruction)]
    at = max((i + 1 for i, (each, _) in enumerate(pieces) if each in before), default=len(pieces))
    if at and pieces[at - 1][1] and not pieces[at - 1][1].endswith(("\n", "\r")):
        pieces[at - 1] = (pieces[at - 1][0], pieces[at - 1][1] + "\n")
    pieces.insert(at, (instruction, lines))


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8", "surrogateescape")).hexdigest()
