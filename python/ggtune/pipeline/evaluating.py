"""An evaluation from names to figures: the subject opened, the data read as its training reads them, all measured."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggtune._native import core
from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError
from ggtune.evaluate.evaluation import Evaluation
from ggtune.evaluate.evaluation_run import EvaluationOptions
from ggtune.evaluate.evaluation_run import evaluate as measure
from ggtune.evaluate.subject import Subject, open_subject
from ggtune.evaluate.subject_text import SubjectText
from ggtune.run.outputs import EVALUATIONS
from ggtune.run.progress import Reporter
from ggtune.train.questions import Part, Split, part_of
from ggtune.train.samples import read_samples

# of a run's own data, and not of others
_OF_ITS_DATA = (
    *("question_column", "answer_column", "context_column", "weight_column", "category_column"),
    *("data_format", "encoding", "sample_start", "include_sample_start", "overlapping_samples", "drop"),
)


@dataclass(frozen=True)
class EvaluateOptions(EvaluationOptions):
    """How :func:`evaluate` measures, and on what. ``split`` None is what was held out of the run's own data."""

    data: str | None = None  # None: the run's own
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the data, by their names in TrainConfig
    force: bool = False  # take an adapter that was trained on another base


def evaluate(
    what: str | Path | SubjectText,
    out: str | Path | None = None,
    options: EvaluateOptions | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Measure a model, a model with adapters, or a step of a run; the files go to ``out``.

    Without ``out`` they go to ``evaluation/LABEL`` in the run's folder, of a model file in the current one. Of a run it
    is measured on the samples that were held out, with its template and system text. Raises :class:`GgtuneError`.
    """
    options, reporter = options or EvaluateOptions(), reporter or Reporter()
    subject = open_subject(what, force=options.force)
    for warning in subject.warnings:
        reporter.note(warning)
    if subject.reason:
        reporter.note(f"{subject.label}: {subject.reason}")
    split, config = split_of(subject, options), data_settings(subject, options)
    part = read_part(subject, config, split, reporter)
    folder = Path(out) if out is not None else default_folder(subject, options, split)
    plain = dataclasses.replace(options, split=split)
    return measure(subject, part, folder, plain, reporter)


def split_of(subject: Subject, options: EvaluateOptions) -> Split:
    """Which samples: of a run's own data those held out, of other data all."""
    if options.split is not None:
        return options.split
    return "held-out" if options.data is None and subject.config is not None else "all"


def data_settings(subject: Subject, options: EvaluateOptions) -> TrainConfig:
    """Settings that the data are read with: the run's, with what was given. Raises :class:`GgtuneError`."""
    given = dict(options.settings)
    config = subject.config
    if config is None:
        if options.data is None:
            raise GgtuneError(f"{subject.model} is no run, which would have its own data: give --data")
        asked = {"template": subject.template or "", "system": subject.system or ""}
        return TrainConfig(**{"model": str(subject.model), "data": options.data, "holdout": "0", **asked, **given})
    changes: dict[str, Any] = {"model": str(subject.model)}
    if options.data is not None:
        defaults = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
        changes |= {name: defaults[name] for name in _OF_ITS_DATA if name in defaults}
        changes |= {"data": options.data, "more_data": (), "repeat": 1, "holdout": "0"}
        changes |= {"template": subject.template or "", "system": subject.system or ""}
    return dataclasses.replace(config, **{**changes, **given})


def read_part(subject: Subject, config: TrainConfig, split: Split, reporter: Reporter) -> Part:
    """Read the samples that a subject is measured on. Raises :class:`GgtuneError`."""
    samples = read_samples(config, core.Model(config.model, vocab_only=True), now=subject.started)
    part = part_of(config, samples, split)
    for line in part.data.report.lines(with_doubts=False):
        reporter.note(f"Data: {line}")
    return part


def default_folder(subject: Subject, options: EvaluateOptions, split: Split) -> Path:
    """Where the files go: another folder for each subject, split and data."""
    name = subject.label
    if options.data is not None:
        name += f"-{Path(options.data).stem}"
    elif split != "held-out":
        name += f"-{split}"
    return (subject.run if subject.run is not None else Path()) / EVALUATIONS / name
