"""What a sweep has in its folder: ``sweep.json``, what was asked for, and ``results.json``, what has come of it.

``sweep.json`` is written once. ``results.json`` is written anew after everything that is decided, so that a sweep that
was killed goes on with the same decisions.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError
from ggtune.files import replace_text
from ggtune.sweep.space import Changes
from ggtune.train.halving import Rung
from ggtune.version import version

SHEET, RESULTS = "sweep.json", "results.json"
_FORMAT = 1

WAITING, LEFT, FINISHED, DIVERGED, FAILED = "waiting", "left", "finished", "diverged", "failed"
MAX_DEATHS = 3  # of the process at the same place of the same trial


@dataclass(frozen=True)
class Trial:
    """A training of a sweep."""

    name: str  # its folder
    changes: Changes
    total_steps: int | None = None  # None where it could not be predicted
    seconds: float | None = None  # predicted
    eval_every: str = ""  # in the place of what the settings say


@dataclass(frozen=True)
class Sheet:
    """What was asked for."""

    settings: Mapping[str, Any]  # of the training, without what is swept
    axes: Mapping[str, str]
    trials: tuple[Trial, ...]
    rungs: tuple[Rung, ...]
    working_folder: str = ""

    def config(self, trial: Trial, more: Mapping[str, Any] | None = None) -> TrainConfig:
        """Return the settings of a trial."""
        often = {"eval_every": trial.eval_every} if trial.eval_every else {}
        return TrainConfig.from_dict({**self.settings, **trial.changes, **often, **(more or {})})

    def write(self, folder: Path) -> None:
        """Raises :class:`ggtune.files.WriteError`."""
        values = {
            "format": _FORMAT,
            "version": version(),
            "working_folder": self.working_folder,
            "axes": dict(self.axes),
            "rungs": [{"share": str(rung.share), "n_trials": rung.n_trials} for rung in self.rungs],
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
            "settings": dict(self.settings),
        }
        replace_text(folder / SHEET, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


@dataclass
class Outcome:
    """How a trial stands."""

    state: str = WAITING
    reason: str = ""
    losses: list[float | None] = field(default_factory=list)  # the best held-out loss until the end of each rung
    best_held_out: float | None = None
    best_step: int | None = None
    held_out_before: float | None = None
    steps: int = 0
    elapsed_s: float = 0.0


@dataclass
class Attempt:
    """A trial that was begun, or gone on with, and has not come to the end of its rung."""

    trial: str
    rung: int
    step: int  # of the checkpoint that it began at
    n: int = 1  # how often in a row it began there


@dataclass
class Results:
    """What has come of it: a row for each trial, in their order."""

    outcomes: dict[str, Outcome]
    attempt: Attempt | None = None

    def write(self, folder: Path, sheet: Sheet) -> None:
        """Raises :class:`ggtune.files.WriteError`."""
        values = {
            "format": _FORMAT,
            "trials": [
                {"name": trial.name, "settings": trial.changes, **dataclasses.asdict(self.outcomes[trial.name])}
                for trial in sheet.trials
            ],
            "attempt": dataclasses.asdict(self.attempt) if self.attempt else None,
        }
        replace_text(folder / RESULTS, json.dumps(values, indent=2) + "\n")


def read_sheet(folder: Path) -> Sheet | None:
    """Return what a sweep was asked for, None where there is none. Raises :class:`GgtuneError` for a bad file."""
    path = folder / SHEET
    if not path.exists():
        return None
    values = _read(path)
    try:
        return Sheet(
            settings=TrainConfig.from_dict(values["settings"]).to_dict(),
            axes={str(name): str(text) for name, text in values["axes"].items()},
            trials=tuple(Trial(**trial) for trial in values["trials"]),
            rungs=tuple(Rung(Fraction(rung["share"]), int(rung["n_trials"])) for rung in values["rungs"]),
            working_folder=str(values["working_folder"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GgtuneError(
            f"{path} is none that this version of ggtune wrote ({error!r}): give another --out"
        ) from error


def read_results(folder: Path, sheet: Sheet) -> Results:
    """Return what there is. Raises :class:`GgtuneError` for a file that can't be read."""
    fresh = Results({trial.name: Outcome() for trial in sheet.trials})
    path = folder / RESULTS
    if not path.exists():
        return fresh
    values = _read(path)
    names = {f.name for f in dataclasses.fields(Outcome)}
    try:
        for row in values["trials"]:
            fresh.outcomes[row["name"]] = Outcome(**{name: row[name] for name in names})
        if values["attempt"] is not None:
            fresh.attempt = Attempt(**values["attempt"])
    except (KeyError, TypeError) as error:
        raise GgtuneError(
            f"{path} is damaged ({error!r}): remove it, and the trials are gone through again from their checkpoints"
        ) from error
    return fresh


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise GgtuneError(f"can't read {path}: {error}") from error
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise GgtuneError(f"{path} is not of this version of ggtune: give another --out")
    return values
