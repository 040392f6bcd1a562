"""The files behind a data path: one file, or those of a folder (shards, a saved Hugging Face data set, texts)."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ggtune.data.readers import READERS
from ggtune.errors import DataError

_TEXT_SUFFIXES = (".txt", ".md", ".text")
_SPLITS = ("train", "training")
_OTHER_SPLITS = {"test", "valid", "validation", "val", "dev", "eval"}
_ABOUT = ("dataset_info.json", "dataset_dict.json", "dataset_infos.json")


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
    data = [
        file
        for file in files
        if file.suffix.lower() in known
        and file.name not in ("dataset_info.json", "dataset_dict.json", "dataset_infos.json")
    ]
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
