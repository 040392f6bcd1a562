"""Models on what they were not trained for: a general text, general questions, multiple-choice tasks."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggtune._native import core
from ggtune.errors import GgtuneError
from ggtune.evaluate.choice.files import ChoiceFile, read_choices
from ggtune.evaluate.choice.scoring import ChoiceResult, score_choices
from ggtune.evaluate.general.change import GeneralChange, compared
from ggtune.evaluate.general.measure import General, measure_general
from ggtune.evaluate.log_probs import Adapters, Likelihood
from ggtune.evaluate.subject import Subject, open_subject
from ggtune.evaluate.subject_text import SubjectText, labels
from ggtune.files import replace_text
from ggtune.run.progress import Reporter
from ggtune.scores.statistics import Difference, paired_difference

GENERAL = "general.json"

Done = Callable[[int, int], object]
"""Is told how many pieces of work are done, of how many."""


@dataclass(frozen=True)
class GeneralOptions:
    """How :func:`measure_on_general` measures."""

    text: Path | None = None  # None: the built-in one
    threads: int = 0
    force: bool = False  # take an adapter that was trained on another base


@dataclass(frozen=True)
class ChoiceOptions:
    """How :func:`measure_choices` measures."""

    format: str = ""  # "": told by the columns
    shots: int = 0  # solved questions in front of each
    examples: Path | None = None  # whose first rows these are; None: the file's own first ones
    max_questions: int = 0  # 0: all
    out: Path | None = None  # folder for each question's log-probabilities
    threads: int = 0
    force: bool = False


@dataclass(frozen=True)
class MeasuredGeneral:
    """Subjects on the general text and questions; each but the first compared with it."""

    labels: tuple[str, ...]
    measured: tuple[General, ...]
    changes: tuple[GeneralChange, ...]

    def lines(self) -> list[str]:
        """Say it, for a reader."""
        if not self.changes:
            return self.measured[0].lines()
        found = []
        for label, change in zip(self.labels[1:], self.changes, strict=True):
            found.append(f"{self.labels[0]} -> {label}:")
            found += [f"  {line}" for line in change.lines()]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "measured": [
                {"label": label, **general.to_dict()} for label, general in zip(self.labels, self.measured, strict=True)
            ],
            "changes": [
                {"from": self.labels[0], "to": label, **change.to_dict()}
                for label, change in zip(self.labels[1:], self.changes, strict=True)
            ],
        }


def measure_on_general(
    subjects: Sequence[str | Path],
    options: GeneralOptions | None = None,
    reporter: Reporter | None = None,
    *,
    done: Done = lambda n, of: None,
) -> MeasuredGeneral:
    """Measure models on a general text and the built-in questions; ``done`` is told how far it is.

    A run alone stands for its base and its result. What was found of these with the built-in text is written to
    ``general.json`` in its folder. Raises :class:`GgtuneError`.
    """
    options = options or GeneralOptions()
    opened = _opened(subjects, force=options.force, reporter=reporter)
    measured: list[General] = []
    for i, subject in enumerate(opened):

        def told(n: int, of: int, before: int = i) -> None:
            done(before * of + n, len(opened) * of)

        with _files(subject) as (model, adapters):
            measured.append(measure_general(model, adapters, text=options.text, threads=options.threads, done=told))
    changes = tuple(compared(measured[0], other) for other in measured[1:])
    found = MeasuredGeneral(tuple(subject.label for subject in opened), tuple(measured), changes)
    if len(subjects) == 1 and changes and opened[0].run is not None and options.text is None:
        write_general(opened[0].run, changes[0])
    return found


def write_general(folder: Path, change: GeneralChange) -> None:
    """Write what has become of a run's base. Raises :class:`~ggtune.files.WriteError`."""
    replace_text(folder / GENERAL, json.dumps(change.to_dict(), indent=2) + "\n")


@dataclass(frozen=True)
class MeasuredChoices:
    """Subjects on the questions of a file."""

    file: ChoiceFile
    labels: tuple[str, ...]
    results: tuple[ChoiceResult, ...]

    def difference(self, i: int, name: str) -> Difference:
        """Score of one subject less that of the first, paired by question."""
        return paired_difference(self.results[0].values(name), self.results[i].values(name))

    def lines(self) -> list[str]:
        """Say it, for a reader: scores with their standard errors, and differences."""
        first = self.results[0]
        found = [f"{self.file.path.name}: {len(first.questions)} questions like {first.form.name}, {first.shots}-shot"]
        width = max(len(label) for label in self.labels)
        for i, (label, result) in enumerate(zip(self.labels, self.results, strict=True)):
            texts = []
            for name, score in result.scores.items():
                text = f"{name} {score.text()}"
                if i and (difference := self.difference(i, name)).value:
                    text += f" ({difference.text(4)})"
                texts.append(text)
            found.append(f"  {label:<{width}}  " + "  ".join(texts))
        if first.n_cut:
            found.append(f"  prompts that did not fit the context and were cut from the left: {first.n_cut}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "file": str(self.file.path),
            "results": [
                {"label": label, **result.to_dict()} for label, result in zip(self.labels, self.results, strict=True)
            ],
            "differences": [
                {
                    "from": self.labels[0],
                    "to": self.labels[i],
                    **{name: self.difference(i, name).to_dict() for name in self.results[0].scores},
                }
                for i in range(1, len(self.labels))
            ],
        }


def measure_choices(
    subjects: Sequence[str | Path],
    files: Sequence[Path],
    options: ChoiceOptions | None = None,
    reporter: Reporter | None = None,
    *,
    done: Done = lambda n, of: None,
) -> list[MeasuredChoices]:
    """Score models on the multiple-choice questions of files, as lm-evaluation-harness does.

    A run alone stands for its base and its result. ``done`` is told how far it is. Raises :class:`GgtuneError`.
    """
    options = options or ChoiceOptions()
    read = [read_choices(path, options.format) for path in files]
    shown = read_choices(options.examples, options.format) if options.examples is not None else None
    if shown is not None and (other := next((file for file in read if file.format != shown.format), None)):
        raise GgtuneError(
            f"{shown.path} has examples like {shown.format.name}, {other.path} is like {other.format.name}"
        )
    opened = _opened(subjects, force=options.force, reporter=reporter)
    asked = [file.questions[: options.max_questions] if options.max_questions else file.questions for file in read]
    total, n_done = len(opened) * sum(map(len, asked)), 0
    results: list[list[ChoiceResult]] = [[] for _ in read]
    for subject in opened:
        with _files(subject) as (model, adapters):
            likelihood = Likelihood(core.Model(str(model)), adapters, threads=options.threads)
            for i, (file, questions) in enumerate(zip(read, asked, strict=True)):

                def told(n: int, before: int = n_done) -> None:
                    done(before + n, total)

                result = score_choices(
                    likelihood,
                    file.format,
                    questions,
                    shots=options.shots,
                    examples=shown.questions if shown is not None else None,
                    done=told,
                )
                n_done += len(questions)
                results[i].append(result)
                if options.out is not None:
                    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in result.rows())
                    replace_text(options.out / f"{_file_name(subject.label)}-{file.path.stem}.jsonl", rows)
    named = tuple(subject.label for subject in opened)
    return [MeasuredChoices(file, named, tuple(found)) for file, found in zip(read, results, strict=True)]


def _opened(subjects: Sequence[str | Path], *, force: bool, reporter: Reporter | None) -> list[Subject]:
    """Find the files of the subjects; no two get the same label."""
    texts = [SubjectText.parse(str(subject)) for subject in subjects]
    if len(texts) == 1 and texts[0].run is not None:
        only = texts[0]
        texts = [SubjectText(run=only.run, which="base"), only] if only.which != "base" else [only]
    opened = [open_subject(text, force=force) for text in texts]
    for subject in opened:
        for note in (*subject.warnings, *([f"{subject.label}: {subject.reason}"] if subject.reason else [])):
            if reporter is not None:
                reporter.note(note)
    if len({subject.label for subject in opened}) < len(opened):
        named = labels(texts)
        opened = [replace(subject, label=label) for subject, label in zip(opened, named, strict=True)]
    return opened


@contextmanager
def _files(subject: Subject) -> Iterator[tuple[Path, Adapters]]:
    with subject.adapter_files() as adapters:
        yield subject.model, adapters


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-_.@+" else "-" for c in label)
