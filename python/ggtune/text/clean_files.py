"""Files and folders cleaned into files: what goes where, and what was done to each."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ggtune.errors import DataError, GgtuneError
from ggtune.files import replace_text, replacing
from ggtune.text.clean import Cleaned, clean_text
from ggtune.text.encoding import decode
from ggtune.text.sources import Source


@dataclass(frozen=True)
class CleanedFile:
    """A file that was written."""

    source: Source
    path: Path
    encoding: str  # that it had; it is UTF-8 now
    n_characters: int  # before
    cleaned: Cleaned


def plan_outputs(sources: Sequence[Source], inputs: Sequence[Path], out: Path) -> list[tuple[Source, Path]]:
    """Say where each file goes: a single one to ``out`` itself unless that is a folder, others below it by their names.

    Raises :class:`DataError` where a file would be written over a source, or two to one place.
    """
    single = len(sources) == 1 and inputs[0].is_file() and not out.is_dir()
    pairs = [(source, out if single else out / source.name) for source in sources]
    own = {source.path.resolve(): source.path for source in sources}
    taken: dict[Path, Source] = {}
    problems = []
    for folder in inputs:
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            problems.append(f"{out}: lies in {folder}, so that it would be read the next time. Name another folder.")
    for source, path in pairs:
        if path.resolve() in own:
            problems.append(f"{path}: is one of the files to clean. Name another place by --out.")
        elif path in taken:
            problems.append(f"{source.path} and {taken[path].path} would both become {path}. Clean them apart.")
        taken[path] = source
    if problems:
        raise DataError("\n".join(dict.fromkeys(problems)))
    return pairs


def clean_files(
    pairs: Sequence[tuple[Source, Path]],
    *,
    keep: Collection[str] = (),
    encoding: str | None = None,
    removed: Path | None = None,
    done: Callable[[CleanedFile], None] = lambda file: None,
) -> list[str]:
    """Clean each file; ``done`` hears of it. Returns what is wrong with those that could not be, which are left out.

    ``removed`` gets each passage that was taken out as a line of JSON: source, kind, line, text. Raises
    :class:`ggtune.files.WriteError`.
    """
    problems: list[str] = []
    with ExitStack() as stack:
        record = None
        if removed is not None:
            temporary = stack.enter_context(replacing(removed))
            record = stack.enter_context(temporary.open("w", encoding="utf-8", newline="\n"))
        for source, path in pairs:
            try:
                data = source.path.read_bytes()
                text, used = decode(data, str(source.path), encoding=encoding)
                cleaned = clean_text(text, keep=keep)
                if not cleaned.text:
                    raise DataError(f"{source.path}: nothing is left of it. Keep more (--keep), or leave the file out.")
            except OSError as error:
                problems.append(f"{source.path}: can't be read: {error.strerror or error}.")
                continue
            except DataError as error:
                problems.append(str(error))
                continue
            replace_text(path, cleaned.text)
            for passage in cleaned.removed if record else ():
                row = {"source": source.name, "kind": passage.kind, "line": passage.line, "text": passage.text}
                print(json.dumps(row, ensure_ascii=False), file=record)
            done(CleanedFile(source, path, used, len(text), cleaned))
    if len(problems) == len(pairs):
        raise GgtuneError("\n".join(problems))
    return problems
