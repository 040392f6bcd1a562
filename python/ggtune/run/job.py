"""What a running job keeps in its folder: the lock, the settings, ``status.json``."""

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError
from ggtune.files import making_folder, replace_text, replacing_text
from ggtune.run.interrupts import RunInterruptedError
from ggtune.run.lock import Lock
from ggtune.run.outputs import Outputs
from ggtune.run.status import FAILED, FINISHED, INTERRUPTED, RUNNING, write_status


@dataclass
class Job:
    """Context manager around a run: takes the lock, clears away what a killed process left, says how the run stands.

    ``command`` is what ``ggtune resume`` needs to call it again; ``overwrite`` removes the files of an earlier run,
    once those of this one could be written; ``texts`` are written then, by their paths; ``places`` are layers and
    predicted memory by device. A job that can't begin leaves no new file.
    """

    config: TrainConfig
    outputs: Outputs
    total_steps: int | None
    version: str
    command: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    texts: Mapping[Path, str] = field(default_factory=dict)
    places: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __enter__(self) -> "Job":
        with ExitStack() as stack:
            stack.enter_context(making_folder(self.outputs.lock.parent))
            stack.enter_context(Lock(self.outputs.lock))
            self._begin()
            self._held = stack.pop_all()
        return self

    def _begin(self) -> None:
        outputs = self.outputs
        outputs.remove_leftovers()
        earlier = outputs.existing()
        own = [path for path in (outputs.config, outputs.status) if path is not None]
        try:
            text = self.config.to_json() + "\n"
            with replacing_text(outputs.config, text) if outputs.config is not None else nullcontext():
                self._say(RUNNING, "")  # may fail too: then the old settings stay
        except BaseException:
            for path in own:
                if path not in earlier:
                    path.unlink(missing_ok=True)
            raise
        if self.overwrite:
            for path in earlier:
                if path not in own:
                    path.unlink()
            for folder in outputs.existing_folders():
                shutil.rmtree(folder, ignore_errors=True)
        for path, text in self.texts.items():
            replace_text(path, text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, RunInterruptedError):
            # the error itself is what counts
            with suppress(GgtuneError):
                self._say(FAILED, str(error) or type(error).__name__)
        self._held.__exit__(kind, error, trace)

    def finished(self, reason: str, step: int) -> None:
        """The run has come to its end."""
        with suppress(GgtuneError):
            self._say(FINISHED, reason, step)

    def failed(self, reason: str, step: int) -> None:
        """The run has come to its end, but to no good one."""
        with suppress(GgtuneError):
            self._say(FAILED, reason, step)

    def interrupted(self, reason: str, step: int) -> None:
        """A signal has ended the run."""
        with suppress(GgtuneError):
            self._say(INTERRUPTED, reason, step)

    def _say(self, state: str, reason: str, step: int | None = None) -> None:
        if self.outputs.status is None:
            return
        more = {
            "step": step,
            "total_steps": self.total_steps,
            "version": self.version,
            "working_folder": str(Path.cwd()),
            "command": dict(self.command),
            **({"devices": {name: dict(use) for name, use in self.places.items()}} if self.places else {}),
        }
        write_status(self.outputs.status, state, reason, more)


def read_settings(path: Path) -> TrainConfig | None:
    """Return the settings in the ``config.json`` of a run, None where there is none.

    Raises :class:`GgtuneError` for one that can't be read.
    """
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise GgtuneError(f"can't read {path}: {error}") from error
    if not isinstance(values, dict):
        raise GgtuneError(f"{path} has no settings in it")
    return TrainConfig.from_dict(values)
