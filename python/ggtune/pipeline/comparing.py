"""Subjects evaluated on the same samples and held against each other; evaluations that are there are taken."""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggtune._native import core
from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError
from ggtune.evaluate.answers import AnsweredSample
from ggtune.evaluate.comparison import Comparison, Measured, compare
from ggtune.evaluate.comparison_text import markdown
from ggtune.evaluate.evaluation import Evaluation, OtherSettingsError
from ggtune.evaluate.evaluation_run import evaluate as measure
from ggtune.evaluate.evaluation_scores import estimates
from ggtune.evaluate.subject import Subject, open_subject
from ggtune.evaluate.subject_text import SubjectText, labels
from ggtune.evaluate.worst_rows import WorstRows, read_worst_rows, worst_rows, write_worst_rows
from ggtune.files import replace_text
from ggtune.gguf.io import model_fingerprint
from ggtune.pipeline.evaluating import EvaluateOptions, data_settings, read_part, split_of
from ggtune.run.outputs import EVALUATIONS
from ggtune.run.progress import Reporter
from ggtune.train.questions import Part, Split
from ggtune.train.samples import read_samples

FILE, PAGE = "comparison.json", "comparison.md"
_LEAST_COMMON = 2  # samples that all could be measured on


@dataclass(frozen=True)
class ComparedSubjects:
    """A comparison, the evaluations that it is made of, and the file that holds it."""

    comparison: Comparison
    evaluations: tuple[Evaluation, ...]
    file: Path
    worst: WorstRows | None = None  # of a run alone: the training rows that it has learned worst


def compare_subjects(
    whats: Sequence[str | Path | SubjectText],
    out: str | Path | None = None,
    options: EvaluateOptions | None = None,
    *,
    by: str | None = None,
    reporter: Reporter | None = None,
) -> ComparedSubjects:
    """Measure several on the same samples, each but the first against the first, and write ``comparison.json``.

    Of a run alone its base is compared with its result, and with its merged model where it has one. The samples are
    those of the first run among them (or the data of ``options``), and a model of the same base is asked as that run
    asked. ``out`` is the folder of ``comparison.json`` and ``comparison.md`` (None: the run's, else the current one).
    ``by`` is the score that rows are sorted by. Raises :class:`GgtuneError`.
    """
    options, reporter = options or EvaluateOptions(), reporter or Reporter()
    texts = [one if isinstance(one, SubjectText) else SubjectText.parse(str(one)) for one in whats]
    texts = _of_one_run(texts[0]) if len(texts) == 1 else texts
    subjects = [open_subject(text, force=options.force) for text in texts]
    for text in dict.fromkeys(warning for one in subjects for warning in one.warnings):
        reporter.note(text)
    lead = next((one for one in subjects if one.config is not None), None) or next(
        (one for one in subjects if one.adapters), subjects[0]
    )
    split = split_of(lead, options)
    config = data_settings(lead, options)
    names = _names(texts, subjects)
    evaluations = []
    parts: dict[tuple[str, ...], Part] = {}
    for name, subject in zip(names, subjects, strict=True):
        own = _asked_alike(config, subject, lead, options)
        key = (own.model, own.template, own.system)
        if key not in parts:
            as_lead = dataclasses.replace(subject, started=lead.started)
            parts[key] = read_part(as_lead, own, split, reporter if not parts else Reporter())
        folder = _folder(name, subject, lead, options, split)
        reporter.note(f"{name}: {subject.reason or subject.model}")
        evaluations.append(_measured(subject, parts[key], folder, options, split, reporter))
    for text in _trained_on_it(subjects, names, lead, next(iter(parts.values())), options):
        reporter.note(text)
    measured = _aligned(names, [one.answers() for one in evaluations], evaluations, reporter)
    found = compare(measured, by=by, seed=options.seed)
    folder = Path(out) if out is not None else lead.run or Path()
    values = {"data": evaluations[0].data, "split": split, "evaluations": [str(one.folder) for one in evaluations]}
    text = json.dumps({**found.to_dict(), **values}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    replace_text(folder / FILE, text)
    if out is not None:
        replace_text(folder / PAGE, markdown(found))
    worst = _worst(subjects[1], options, reporter) if len(whats) == 1 else None
    return ComparedSubjects(found, tuple(evaluations), folder / FILE, worst)


def _worst(subject: Subject, options: EvaluateOptions, reporter: Reporter) -> WorstRows | None:
    """The rows that a run's result has learned worst, where they are known or can be measured."""
    assert subject.run is not None
    found = read_worst_rows(subject.run)
    if found is not None and found.step == subject.step and not options.overwrite:
        return found
    try:
        found = worst_rows(subject, threads=options.threads)
        write_worst_rows(subject.run, found)
    except GgtuneError as error:  # the comparison is there
        reporter.note(f"Which rows were learned worst can't be told: {error}")
        return None
    return found


def _of_one_run(text: SubjectText) -> list[SubjectText]:
    if text.run is None:
        raise GgtuneError(
            f"{text.model} alone can't be compared: name what with, or a run folder, whose base is compared with its "
            "result"
        )
    if text.which == "base":
        raise GgtuneError(f"{text.run}@base alone can't be compared: give {text.run}")
    steps = ["base", text.which]
    if text.which == "auto" and (text.run / "model.gguf").is_file():
        steps.append("merged")
    return [SubjectText(run=text.run, which=step) for step in steps]


def _names(texts: Sequence[SubjectText], subjects: Sequence[Subject]) -> list[str]:
    """Of steps of one run their own names, else what the user said."""
    runs = {text.run for text in texts}
    own = [subject.label for subject in subjects]
    if len(runs) == 1 and None not in runs and len(set(own)) == len(own):
        return own
    return labels(list(texts))


def _asked_alike(config: TrainConfig, subject: Subject, lead: Subject, options: EvaluateOptions) -> TrainConfig:
    """The lead's data for a subject: asked as the lead is where they are of the same base, else in its own way."""
    changes: dict[str, Any] = {"model": str(subject.model)}
    same = subject.run == lead.run and subject.run is not None
    if not same and model_fingerprint(subject.model) != model_fingerprint(lead.model):
        for name in ("template", "system"):
            if name not in options.settings:
                changes[name] = getattr(subject, name) or ""
    return dataclasses.replace(config, **changes)


def _folder(name: str, subject: Subject, lead: Subject, options: EvaluateOptions, split: Split) -> Path:
    """A folder for each subject, data and kind of measurement, so that nothing is measured twice."""
    parts = [subject.label if subject.run == lead.run and subject.run is not None else _slug(name)]
    if options.data is not None:
        parts.append(_slug(Path(options.data).stem))
    elif split != "held-out":
        parts.append(split)
    if options.max_samples:
        parts.append(f"{options.max_samples}-samples")
    defaults = EvaluateOptions()
    for field in ("seed", "max_tokens", "temperature"):
        if (value := getattr(options, field)) != getattr(defaults, field):
            parts.append(f"{field.replace('_', '-')}-{value:g}")
    if not options.generate:
        parts.append("losses")
    return (lead.run if lead.run is not None else Path()) / EVALUATIONS / "-".join(parts)


def _slug(text: str) -> str:
    return re.sub(r"[^\w.@+*]+", "-", text).strip("-.") or "model"


def _measured(
    subject: Subject, part: Part, folder: Path, options: EvaluateOptions, split: Split, reporter: Reporter
) -> Evaluation:
    plain = dataclasses.replace(options, split=split)
    own = folder.with_name(f"{folder.name}-compared")  # beside one of other settings, or of an adapter that is gone
    try:
        return measure(subject, part, folder, plain, reporter)
    except OtherSettingsError:
        pass
    try:
        return measure(subject, part, own, plain, reporter)
    except OtherSettingsError as error:
        reporter.note(f"{error} It is done anew.")
        return measure(subject, part, own, dataclasses.replace(plain, overwrite=True), reporter)


def _trained_on_it(
    subjects: Sequence[Subject], names: Sequence[str], lead: Subject, part: Part, options: EvaluateOptions
) -> Iterator[str]:
    """Say which runs were trained on samples that all are measured on: their scores are no fair ones then."""
    asked = {_key(sample.tokens, sample.n_prompt) for sample in part.samples}
    seen: set[Path] = set()
    for name, subject in zip(names, subjects, strict=True):
        config = subject.config
        if config is None or subject.run is None or subject.which == "base" or subject.run in seen:
            continue
        seen.add(subject.run)
        if (subject.run == lead.run and options.data is None) or not Path(config.data).exists():
            continue
        try:
            own = read_samples(config, core.Model(config.model, vocab_only=True), now=lead.started)
        except GgtuneError:  # its data are gone: nobody can tell
            continue
        n = len(asked & {_key(sample.tokens, sample.n_prompt) for sample in own.training})
        if n:
            yield (
                f"warning: {name} was trained on {n} of the {len(asked)} questions that are asked here: its scores say "
                "what it has learned by heart. Give --data with other rows."
            )


def _key(tokens: "object", n_prompt: int) -> bytes:
    return bytes(tokens[:n_prompt].tobytes())  # type: ignore[index]


def _aligned(
    names: Sequence[str],
    answers: Sequence[Sequence[AnsweredSample]],
    evaluations: Sequence[Evaluation],
    reporter: Reporter,
) -> list[Measured]:
    """The samples that all subjects were measured on: a tokenizer may leave out what is too long for its context."""
    keys = [[(one.row, one.question, one.reference) for one in found] for found in answers]
    if all(found == keys[0] for found in keys):
        return [Measured(n, a, e.scores) for n, a, e in zip(names, answers, evaluations, strict=True)]
    common = set(keys[0]).intersection(*keys[1:])
    if len(common) < _LEAST_COMMON:
        raise GgtuneError(f"{' and '.join(names)} have no samples in common")
    n_left = max(len(found) for found in keys) - len(common)
    reporter.note(f"{n_left} samples that not all of them could be measured on are left out.")
    measured = []
    for name, found, evaluation in zip(names, answers, evaluations, strict=True):
        by_key = {(one.row, one.question, one.reference): one for one in found}
        rows = [by_key[key] for key in dict.fromkeys(keys[0]) if key in common]
        measured.append(Measured(name, rows, estimates(rows, list(evaluation.scores))))
    return measured
