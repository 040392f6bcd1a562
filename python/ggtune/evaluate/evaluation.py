"""An evaluation: scores with their intervals, of what and by which settings; and the files that hold it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggtune.errors import GgtuneError
from ggtune.evaluate.answers import AnsweredSample, read_answers
from ggtune.files import replace_text
from ggtune.run.outputs import EVALUATIONS
from ggtune.scores.metrics import METRICS
from ggtune.scores.statistics import Estimate

EVALUATION = "evaluation.json"
FORMAT = 1


class OtherSettingsError(GgtuneError):
    """A folder that holds an evaluation with other settings."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on samples. ``folder`` holds its files."""

    label: str
    subject: Mapping[str, Any]  # model, adapters, run, which, step
    data: str
    split: str
    template: str | None
    system: str | None
    n_samples: int
    n_questions: int  # different ones that were answered; 0 where nothing was generated
    settings: Mapping[str, Any]  # all that the figures depend on
    scores: Mapping[str, Estimate]  # by the names of METRICS
    seconds: float
    version: str
    notes: tuple[str, ...] = ()
    folder: Path | None = field(default=None, compare=False)

    def answers(self) -> list[AnsweredSample]:
        """Read what was measured of each sample. Raises :class:`GgtuneError` where the file is gone."""
        if self.folder is None:
            raise GgtuneError("the evaluation has no files")
        return read_answers(self.folder)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``evaluation.json`` holds them."""
        return {
            "format": FORMAT,
            "label": self.label,
            "subject": dict(self.subject),
            "data": self.data,
            "split": self.split,
            "template": self.template,
            "system": self.system,
            "n_samples": self.n_samples,
            "n_questions": self.n_questions,
            "settings": dict(self.settings),
            "scores": {name: estimate.to_dict() for name, estimate in self.scores.items()},
            "seconds": self.seconds,
            "version": self.version,
            "notes": list(self.notes),
        }

    def table(self) -> list[str]:
        """Lines for a reader: a score each, with its interval."""
        rows = [
            (METRICS[name].title, estimate.text(METRICS[name].digits))
            for name, estimate in self.scores.items()
            if name in METRICS
        ]
        width = max((len(title) for title, _ in rows), default=0)
        return [f"  {title:<{width}}  {text}" for title, text in rows]


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Write ``evaluation.json``. Raises :class:`ggtune.files.WriteError`."""
    replace_text(folder / EVALUATION, json.dumps(evaluation.to_dict(), indent=2, ensure_ascii=False) + "\n")


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read the evaluation in a folder. Raises :class:`GgtuneError` where there is none, or one that is not whole."""
    folder = Path(folder)
    path = folder / EVALUATION
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GgtuneError(
            f"{folder} has no {EVALUATION}: it is no folder of an evaluation, or one that was not finished"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise GgtuneError(f"can't read {path}: {error}") from error
    try:
        if values["format"] != FORMAT:
            raise GgtuneError(f"{path} is of format {values['format']}; this ggtune reads {FORMAT}")
        return Evaluation(
            label=str(values["label"]),
            subject=dict(values["subject"]),
            data=str(values["data"]),
            split=str(values.get("split", "")),
            template=values["template"],
            system=values["system"],
            n_samples=int(values["n_samples"]),
            n_questions=int(values.get("n_questions", 0)),
            settings=dict(values["settings"]),
            scores={str(name): Estimate.from_dict(found) for name, found in values["scores"].items()},
            seconds=float(values["seconds"]),
            version=str(values["version"]),
            notes=tuple(values.get("notes", ())),
            folder=folder,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GgtuneError(f"{path} is no whole evaluation ({error!r}): make it anew with --overwrite") from error


def evaluations_of(run: str | Path) -> list[Evaluation]:
    """Read the finished evaluations in a run's folder, in order of their labels, without those that can't be read."""
    found = []
    for path in sorted(Path(run).glob(f"{EVALUATIONS}/*/{EVALUATION}")):
        try:
            found.append(read_evaluation(path.parent))
        except GgtuneError:
            continue
    return found
