"""``metrics.jsonl``: one JSON object per optimizer step."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ggtune.errors import GgtuneError
from ggtune.train.files import replacing


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines up to the first that is not whole (a killed process may leave one)."""
    records: list[dict[str, Any]] = []
    if not path.exists():
        return records
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict) or "step" not in record:
            break
        records.append(record)
    return records


class MetricsFile:
    """Appends lines; each is on its way to the disk when :meth:`write` returns."""

    def __init__(self, path: Path, *, after_step: int) -> None:
        """Keep the lines up to ``after_step`` of a file that is there, so that each step stands once."""
        kept = [record for record in read_metrics(path) if record["step"] <= after_step]
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise GgtuneError(f"can't write {path}: {error.strerror}") from error

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
