"""Token samples of big data kept from one run to the next, in the user's cache folder.

An entry's name is a hash of all that its samples follow from: the data files, the tokenizer, the template, the options,
and the code that makes samples. It is one file: the arrays one after another, a description of them with a checksum of
each, and how long that is. It is written aside and renamed; one that is damaged is made anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
import time
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ggtune.data.chat_template import TemplatedTokenizer, choose_template, jinja_source
from ggtune.data.doubts import Doubts
from ggtune.data.sources import files_of
from ggtune.data.store import IN_MEMORY_TOKENS, FileValues, SampleStore
from ggtune.setting_texts import DataPart

if TYPE_CHECKING:
    from ggtune.data.dataset import Dataset
    from ggtune.data.options import LoadOptions

_MAGIC = b"ggtune token samples 1\n"
_FOOTER = struct.Struct("<QI")  # length of the description, its checksum
_LEAST_S = 5.0  # what takes less is not kept
_LEAST_BYTES = 1 << 18  # of the data: less can't take long
_MOST_BYTES = 8 << 30  # of all entries
_BLOCK = 1 << 20
_HEADER_BYTES = 1 << 27  # of a model file: what its tokenizer is stands in front of the weights
_UNFINISHED_S = 86400.0  # an unfinished entry of this age belongs to no process
_ROWS = ("empty_rows", "cut_rows", "skipped_rows", "too_long_lengths")  # of a report
_DATE_CALL = re.compile(r"""strftime_now\s*\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")

_DATE_TEST = re.compile(r"strftime_now\s+is\s+(?:not\s+)?defined")


def cached(
    parts: Sequence[DataPart], tokenizer: TemplatedTokenizer, options: LoadOptions, load: Callable[[], Dataset]
) -> Dataset:
    """Give what ``load`` gives, kept from an earlier run where it took more than five seconds.

    ``GGTUNE_CACHE=off`` in the environment keeps and finds nothing. Raises as ``load``.
    """
    folder = cache_folder()
    entry = None
    if folder is not None:
        with contextlib.suppress(OSError):  # load says what is wrong with the data
            entry = _entry(folder, parts, tokenizer, options)
    if entry is None or folder is None:
        return load()
    found = _read(entry, tokenizer, options)
    if found is not None:
        return found
    start = time.monotonic()
    data = load()
    if time.monotonic() - start >= _LEAST_S:
        with contextlib.suppress(OSError):  # a full disk, a folder of somebody else
            if entry == _entry(folder, parts, tokenizer, options):  # the data were not written while they were read
                _write(entry, data)
                _trim(folder)
    return data


def cache_folder() -> Path | None:
    """Give the folder of the entries; None where nothing is to be kept."""
    if os.environ.get("GGTUNE_CACHE", "").lower() in ("off", "0", "no", "false"):
        return None
    configured = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(configured) if Path(configured).is_absolute() else Path("~/.cache").expanduser()
    return base / "ggtune" / "tokens"


def _entry(folder: Path, parts: Sequence[DataPart], tokenizer: TemplatedTokenizer, options: LoadOptions) -> Path | None:
    """Give the file of an entry; None for what is not kept: small data, a tokenizer or template of no file."""
    model = getattr(tokenizer, "path", None)
    if not isinstance(model, str) or not (options.template is None or isinstance(options.template, str)):
        return None
    files = [(part, file) for part in parts for file in files_of(part.path)]
    if sum(file.stat().st_size for _, file in files) < _LEAST_BYTES:
        return None
    jinja = jinja_source(options.template) if options.template else None
    source = jinja[0] if jinja else tokenizer.chat_template or ""
    key = {
        "code": _code(),
        "data": [[part.path, part.weight, part.repeat, str(file), _contents(file)] for part, file in files],
        "model": _model(Path(model)),
        "template": source,
        "dates": _dates(source, options.now),
        "options": repr(dataclasses.replace(options, now=None)),
    }
    text = json.dumps(key, sort_keys=True)
    return folder / hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def _contents(file: Path, most: int | None = None) -> str:
    """Hash a file, or its first ``most`` bytes: an edit may leave size and time as they were."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        left = most
        while block := stream.read(_BLOCK if left is None else min(_BLOCK, left)):
            digest.update(block)
            left = left if left is None else left - len(block)
    return digest.hexdigest()


def _model(file: Path) -> list[Any]:
    """What a tokenizer follows from. Weights are not read: the times and the inode tell that a large file changed."""
    about = file.stat()
    size = about.st_size
    changed = [about.st_mtime_ns, about.st_ctime_ns, about.st_ino] if size > _HEADER_BYTES else []
    return [_contents(file, _HEADER_BYTES), size, *changed]


@cache
def _code() -> str:
    """Hash of the code that makes samples: it may change within a version."""
    from ggtune._native import core
    from ggtune.version import version

    digest = hashlib.blake2b(version().encode(), digest_size=16)
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    about = Path(core.__file__ or "").stat()
    digest.update(f"{about.st_size} {about.st_mtime_ns}".encode())
    return digest.hexdigest()


def _dates(source: str, now: datetime.datetime | None) -> list[str]:
    """What a template writes of the time."""
    at = now or datetime.datetime.now()
    formats = [a or b for a, b in _DATE_CALL.findall(source)]
    other_uses = "strftime_now" in _DATE_TEST.sub("", _DATE_CALL.sub("", source))
    return [at.strftime(form) for form in formats] + ([str(at)] if other_uses else [])


def _arrays(data: Dataset) -> dict[str, Any]:
    store = data.samples
    return {
        "tokens": store.tokens,
        "weight_ids": store.weight_ids,
        "weights": store.weights,
        "ends": store.ends,
        "n_targets": store.n_targets,
        "n_prompts": store.n_prompts,
        "rows": store.rows,
        "groups": data.groups,
    }


_DTYPES: dict[str, Any] = {
    "tokens": np.int32,
    "weight_ids": np.uint8,
    "weights": np.float32,
    "ends": np.uint32,
    "n_targets": np.int32,
    "n_prompts": np.int32,
    "rows": np.uint32,
    "groups": np.int64,
}


def _write(entry: Path, data: Dataset) -> None:
    """Write an entry aside and rename it. Raises :class:`OSError`."""
    arrays = _arrays(data)
    n_bytes = sum(len(values) * np.dtype(_DTYPES[name]).itemsize for name, values in arrays.items())
    entry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if n_bytes > _MOST_BYTES or 2 * n_bytes > shutil.disk_usage(entry.parent).free:
        return
    with tempfile.NamedTemporaryFile(dir=entry.parent, suffix=".part", delete=False) as file:
        try:
            file.write(_MAGIC)
            about = [[name, len(values), _write_array(file, name, values)] for name, values in arrays.items()]
            report = {field.name: getattr(data.report, field.name) for field in dataclasses.fields(data.report)}
            report["doubts"] = data.report.doubts.to_json()
            report["files"] = [dataclasses.astuple(file) for file in data.report.files]
            report = {name: value.tolist() if isinstance(value, array) else value for name, value in report.items()}
            report["dropped"] = {kind: list(rows) for kind, rows in data.report.dropped.items()}
            text = json.dumps({"arrays": about, "report": report}).encode()
            file.write(text)
            file.write(_FOOTER.pack(len(text), zlib.crc32(text)))
            file.flush()
            Path(file.name).replace(entry)
        except BaseException:  # Ctrl-C, too, leaves nothing behind
            Path(file.name).unlink(missing_ok=True)
            raise


def _write_array(file: IO[bytes], name: str, values: Any) -> int:
    """Write an array and give its checksum."""
    checksum = 0
    for start in range(0, len(values), _BLOCK):
        block = np.ascontiguousarray(values[start : start + _BLOCK], _DTYPES[name]).tobytes()
        checksum = zlib.crc32(block, checksum)
        file.write(block)
    return checksum


def _read(entry: Path, tokenizer: TemplatedTokenizer, options: LoadOptions) -> Dataset | None:
    """Read an entry; None where there is none, or a damaged one."""
    from ggtune.data.dataset import Dataset, FileRows, LoadReport

    try:
        with entry.open("rb") as file:
            about = _description(file)
            arrays: dict[str, Any] = {}
            at = len(_MAGIC)
            for name, length, checksum in about["arrays"]:
                arrays[name] = _read_array(file, name, length, at, checksum)
                at += length * np.dtype(_DTYPES[name]).itemsize
        report = about["report"]
        doubts = report.pop("doubts")
        report["files"] = tuple(FileRows(*file) for file in report["files"])
        for name in _ROWS:
            report[name] = array("I", report[name])
        report["dropped"] = {kind: array("I", rows) for kind, rows in report["dropped"].items()}
        report["bad_rows"] = [tuple(bad) for bad in report["bad_rows"]]
        groups: NDArray[np.int64] = arrays.pop("groups")
        store = SampleStore(*(arrays[name] for name in _DTYPES if name != "groups"))
        found = LoadReport(**report)
        found.doubts = Doubts.from_json(doubts, found.row)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    with contextlib.suppress(OSError):
        os.utime(entry)  # the entries that are used stay
    name = options.template if found.template and isinstance(options.template, str) else found.template
    template = choose_template(name, tokenizer, now=options.now) if name else None
    return Dataset(store, template, found, groups)


def _description(file: IO[bytes]) -> dict[str, Any]:
    """Read what an entry says of itself. Raises :class:`ValueError` for a damaged one."""
    end = file.seek(0, os.SEEK_END) - _FOOTER.size
    file.seek(max(0, end))
    length, checksum = _FOOTER.unpack(file.read(_FOOTER.size))
    start = end - length
    if start < len(_MAGIC):
        raise ValueError("the description is too long")
    file.seek(start)
    text = file.read(length)
    file.seek(0)
    if zlib.crc32(text) != checksum or file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("the description is damaged")
    found: dict[str, Any] = json.loads(text)
    return found


def _read_array(file: IO[bytes], name: str, length: int, at: int, checksum: int) -> Any:
    """Read an array, or leave a long one in the file. Raises :class:`ValueError` for a damaged one."""
    file.seek(at)
    dtype = np.dtype(_DTYPES[name])
    stays = name in ("tokens", "weight_ids") and length > IN_MEMORY_TOKENS
    blocks: list[bytes] = []
    found, left = 0, length * dtype.itemsize
    while left and (block := file.read(min(_BLOCK, left))):
        left -= len(block)
        found = zlib.crc32(block, found)
        if not stays:
            blocks.append(block)
    if left or found != checksum:
        raise ValueError(f"{name} is damaged")
    return FileValues(file, _DTYPES[name], length, at) if stays else np.frombuffer(b"".join(blocks), dtype)


def _trim(folder: Path) -> None:
    """Remove the entries that were not used for longest where all of them take too much, and unfinished ones."""
    entries = []
    for file in _files(folder):
        with contextlib.suppress(OSError):  # another process removes, too
            about = file.stat()
            if file.suffix == ".part":
                if time.time() - about.st_mtime > _UNFINISHED_S:
                    file.unlink()
            else:
                entries.append((about.st_mtime_ns, about.st_size, file))
    total = sum(size for _, size, _ in entries)
    for _, size, file in sorted(entries):
        if total <= _MOST_BYTES:
            break
        with contextlib.suppress(OSError):
            file.unlink()
        total -= size


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.iterdir() if file.is_file())
