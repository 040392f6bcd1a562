"""Where a run writes: a run folder, or the file names of the old ``finetune``."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ggtune.files import check_writable, replacing
from ggtune.setting_texts import EVENT_LOGS

MADE_OF_RUN = ("before_after.jsonl", "worst_rows.json", "comparison.json", "general.json", "diagnosis.json")
"""Files of a run folder that are about its training alone: a new run in the folder makes them anew."""


EVALUATIONS = "evaluation"
"""Folder of a run folder with a folder for each evaluation of it."""


@dataclass(frozen=True)
class Outputs:
    """Names of what a run writes. ITERATION in ``adapter`` and ``checkpoint`` stands for the step.

    Where ``latest`` is given, a name with ITERATION also gets a copy with that in its place.
    """

    adapter: Path
    checkpoint: Path
    metrics: Path
    config: Path | None = None
    status: Path | None = None
    latest: str = ""

    @classmethod
    def folder(cls, out: Path) -> "Outputs":
        """Name the files of a run folder."""
        return cls(
            adapter=out / "adapter.gguf",
            checkpoint=out / "checkpoint-ITERATION.gguf",
            metrics=out / "metrics.jsonl",
            config=out / "config.json",
            status=out / "status.json",
        )

    @property
    def best_adapter(self) -> Path:
        """Name of the adapter file of a run folder's best step, which is written when it is asked for."""
        return self.adapter.with_name("adapter-best.gguf")

    @property
    def samples(self) -> Path:
        """Name of the file with the answers to fixed questions, which is there where some are asked."""
        return self.metrics.with_name(self.metrics.name.removesuffix("metrics.jsonl") + "samples.jsonl")

    def event_log(self, name: str) -> Path:
        """Name the folder of an event log: of a run folder ``events`` (TensorBoard's), ``wandb`` or ``mlflow``."""
        folder = "events" if name == "tensorboard" else name
        if self.config is not None:
            return self.metrics.with_name(folder)
        return self.metrics.with_suffix(".logs") / folder  # the files of several runs lie beside each other

    def existing_folders(self) -> list[Path]:
        """Find the folders of event logs and evaluations that are there."""
        folders = [self.event_log(name) for name in EVENT_LOGS]
        if self.config is not None:
            folders.append(self.metrics.with_name(EVALUATIONS))
        return [path for path in folders if path.is_dir()]

    @property
    def lock(self) -> Path:
        """Name of the file that keeps a second job out."""
        return self.metrics.with_name(f".{self.metrics.name}.lock")

    def remove_leftovers(self) -> None:
        """Remove temporary files of killed processes; only for who holds the lock."""
        best = self.best_adapter if self.config is not None else None
        for pattern in (self.adapter, best, self.checkpoint, self.metrics, self.samples, self.config, self.status):
            for leftover in _temporary(pattern) if pattern is not None else []:
                leftover.unlink(missing_ok=True)

    @staticmethod
    def at_step(pattern: Path, step: int) -> Path:
        """Put the step in a name."""
        return Path(str(pattern).replace("ITERATION", str(step)))

    def latest_of(self, pattern: Path) -> Path | None:
        """Return the name of the copy that is always the newest, None where there is none."""
        if not self.latest or "ITERATION" not in str(pattern):
            return None
        return Path(str(pattern).replace("ITERATION", self.latest))

    def update_latest(self, pattern: Path, step: int) -> None:
        """Make the newest file stand under the name with ``latest`` too."""
        latest = self.latest_of(pattern)
        if latest is None:
            return
        source = self.at_step(pattern, step)
        with replacing(latest, needed_bytes=source.stat().st_size) as temporary:
            shutil.copyfile(source, temporary)

    def checkpoints(self) -> dict[int, Path]:
        """Find the checkpoints that are there, by step; a name without ITERATION counts as step 0."""
        return numbered(self.checkpoint)

    def existing(self) -> list[Path]:
        """Return what is already there of a run folder."""
        best = self.best_adapter if self.config is not None else None
        files = [self.adapter, best, self.metrics, self.samples, self.config, self.status, *self.checkpoints().values()]
        if self.config is not None:  # what commands after the training have made of it
            files += [self.metrics.with_name(name) for name in MADE_OF_RUN]
        return [path for path in files if path is not None and path.exists()]

    def check_writable(self) -> None:
        """Raise :class:`ggtune.files.WriteError` for a folder that can't be written; leaves nothing."""
        for folder in {self.adapter.parent, self.checkpoint.parent, self.metrics.parent}:
            check_writable(folder)


def numbered(pattern: Path) -> dict[int, Path]:
    """Find the files that a name with ITERATION stands for, by their number."""
    if "ITERATION" not in pattern.name:
        return {0: pattern} if pattern.exists() else {}
    before, _, after = pattern.name.partition("ITERATION")
    return dict(_matching(pattern.parent, before, after))


def _matching(folder: Path, before: str, after: str) -> Iterator[tuple[int, Path]]:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        name = path.name
        if len(name) > len(before) + len(after) and name.startswith(before) and name.endswith(after):
            number = name[len(before) : len(name) - len(after)]
            if number.isdecimal() and number.isascii():
                yield int(number), path


def _temporary(pattern: Path) -> list[Path]:
    """Find the temporary files (as of :mod:`ggtune.files`) of a name with ITERATION."""
    if not pattern.parent.is_dir():
        return []
    name = re.escape(pattern.name).replace("ITERATION", r"\w+")
    form = re.compile(rf"\.{name}\.\d+-\d+\.tmp")
    return [path for path in pattern.parent.iterdir() if form.fullmatch(path.name)]
