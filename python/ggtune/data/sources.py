"""The files behind a data path: one file, or those of a folder (shards, a saved Hugging Face data set, texts)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ggtune.data.conversation import Conversation
from ggtune.data.readers import READERS, has_reader, reader_for
from ggtune.data.readers.decoding import encoding_of, head_of
from ggtune.data.readers.reader import Findings, Item, ReadOptions
from ggtune.errors import DataError

_TEXT_SUFFIXES = (".txt", ".md", ".text")
_SPLITS = ("train", "training")
_OTHER_SPLITS = {"test", "valid", "validation", "val", "dev", "eval"}
_ABOUT = ("dataset_info.json", "dataset_dict.json", "dataset_infos.json")
_BINARY_HEADS = (b"PAR1", b"ARROW1", b"GGUF", b"PK\x03\x04", b"\x1f\x8b", b"%PDF")


def files_of(path: str | Path) -> list[Path]:
    """Give the files of a path, in order of their names. Raises :class:`DataError` for a folder without any."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    folder = _split_folder(path)
    if (state := folder / "state.json").is_file():
        return _saved_dataset(folder, state)
    known = {suffix for reader in READERS for suffix in reader.suffixes}
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    data = [file for file in files if file.suffix.lower() in known and file.name not in _ABOUT]
    words = {file: set(re.split(r"[^a-z]+", file.stem.lower())) for file in data}
    train = [file for file in data if words[file] & set(_SPLITS)]
    rest = [file for file in data if not words[file] & _OTHER_SPLITS]
    found = train or rest or data or [file for file in files if file.suffix.lower() in _TEXT_SUFFIXES]
    if not found:
        raise DataError(
            f"{path}: the folder holds no data file ({', '.join(sorted(known))}) and no text "
            f"({', '.join(_TEXT_SUFFIXES)})."
        )
    return found


def _split_folder(path: Path) -> Path:
    """``datasets.DatasetDict.save_to_disk`` has a folder for each split."""
    if not (path / "dataset_dict.json").is_file():
        return path
    try:
        splits = list(json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path / 'dataset_dict.json'}: names no splits: the data set is damaged.") from error
    chosen = next((split for split in _SPLITS if split in splits), None)
    if chosen is None:
        raise DataError(
            f"{path}: has no split 'train', but {', '.join(splits)}. Give the folder of one: {path / splits[0]}."
        )
    return path / chosen


def _saved_dataset(folder: Path, state: Path) -> list[Path]:
    try:
        names = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{state}: names no data files: the data set is damaged.") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder}: {', '.join(missing)} is missing: the data set is not whole.")
    return [folder / name for name in names]


@dataclass(frozen=True)
class Source:
    """A data file that is being read."""

    path: Path
    kind: str
    items: Iterator[Item]
    findings: Findings


def open_source(path: Path, options: ReadOptions) -> Source:
    """Begin to read a file. Raises :class:`DataError` for one that nothing here reads."""
    head = "" if options.format or has_reader(path) else _head(path, options.encoding)
    reader = reader_for(path, head, options)
    findings = Findings()
    return Source(path, reader.name, reader.read(path, options, findings), findings)


def is_rendered(path: str | Path, options: ReadOptions) -> bool:
    """Whether data are texts (rendered conversations, or plain), not turns. Raises :class:`DataError`."""
    source = open_source(files_of(path)[0], options)
    return not isinstance(next(source.items, None), Conversation)


def _head(path: Path, encoding: str) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}.") from error
    if start.startswith(_BINARY_HEADS):
        return start.decode("latin-1")
    return head_of(path, encoding_of(path, [], encoding))
