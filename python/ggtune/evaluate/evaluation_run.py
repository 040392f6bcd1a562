"""A subject measured on samples: losses, then answers; kept line by line, so that what was cut off goes on."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ggtune.config import DEVICE_SETTINGS
from ggtune.data.samples import Sample
from ggtune.data.store import SampleStore
from ggtune.errors import GgtuneError
from ggtune.evaluate.answers import ANSWERS, AnsweredSample, JsonLines, SampleLoss, write_answers
from ggtune.evaluate.evaluation import EVALUATION, Evaluation, OtherSettingsError, read_evaluation, write_evaluation
from ggtune.evaluate.evaluation_answers import given_answers
from ggtune.evaluate.evaluation_loss import Decoded, losses_of
from ggtune.evaluate.evaluation_progress import showing
from ggtune.evaluate.evaluation_scores import AnswerScorer, check_metrics, estimates
from ggtune.evaluate.subject import Subject
from ggtune.files import check_writable, replace_text
from ggtune.run.lock import Lock
from ggtune.run.progress import Reporter
from ggtune.scores.metrics import METRICS
from ggtune.train.opened import opened_model
from ggtune.train.questions import Part, Question, Split, questions_of
from ggtune.train.samples import longest_sample
from ggtune.version import version

if TYPE_CHECKING:
    from ggtune._core import Model

_UNFINISHED = "unfinished.json"  # the settings of what the two files below hold
_LOSSES, _GIVEN = "losses.part.jsonl", "given.part.jsonl"


@dataclass(frozen=True)
class EvaluationOptions:
    """How a subject is measured."""

    split: Split | None = None  # which the samples are, for the reader
    max_samples: int = 0  # drawn by the seed; 0: all
    seed: int = 0  # of the draw, of answers with a temperature, and of the intervals
    generate: bool = True
    max_tokens: int = 256  # of an answer
    temperature: float = 0.0  # 0: the likeliest answer
    metrics: tuple[str, ...] = tuple(METRICS)
    threads: int = 0
    overwrite: bool = False
    devices: Mapping[str, Any] = field(default_factory=dict)  # settings of them, by their names in TrainConfig


@dataclass(frozen=True)
class _Asked:
    """A chosen sample."""

    sample: Sample
    question: Question
    references: tuple[str, ...]  # of all rows that ask the same, its own first
    first: int  # index of the first chosen sample that asks the same


def evaluate(
    subject: Subject,
    part: Part,
    folder: Path,
    options: EvaluationOptions | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Measure a subject on samples, and write ``answers.jsonl`` and ``evaluation.json`` into a folder.

    An evaluation that was cut off there goes on; one that is finished is read. Raises :class:`GgtuneError` where the
    folder holds one of other settings (unless to be overwritten), and for all that can't be measured.
    """
    options, reporter = options or EvaluationOptions(), reporter or Reporter()
    names = [name for name in METRICS if name in options.metrics and (options.generate or not METRICS[name].of_answers)]
    check_metrics([*options.metrics, *names] if options.generate else names)
    check_writable(folder)
    with Lock(folder / f".{ANSWERS}.lock"):
        return _Run(subject, part, folder, options, reporter, names).run()


class _Run:
    def __init__(
        self,
        subject: Subject,
        part: Part,
        folder: Path,
        options: EvaluationOptions,
        reporter: Reporter,
        names: Sequence[str],
    ) -> None:
        self._subject, self._part, self._folder = subject, part, folder
        self._options, self._reporter, self._names = options, reporter, list(names)
        self._model = opened_model(subject.model, self._devices())
        self._asked = _chosen(part, options, self._model)
        self._to_answer = [
            i for i, one in enumerate(self._asked) if one.first == i and one.question.asks and options.generate
        ]
        self._notes: list[str] = []
        self._settings = self._all_settings()

    def _devices(self) -> dict[str, Any]:
        """Settings of devices: the run's, with what is given, and products as exact as the losses are to be."""
        config = self._part.config
        of_run = {name: getattr(config, name) for name in (*DEVICE_SETTINGS, "precision")}
        return {**of_run, **self._options.devices}

    def run(self) -> Evaluation:
        if not self._options.overwrite and (finished := self._finished()) is not None:
            return finished
        self._begin()
        started = time.monotonic()
        with self._subject.adapter_files() as files:
            losses, way, losses_s = self._losses(files)
            given, given_s = self._answers(files)
        answers, signatures = self._joined(losses, given)
        if self._options.generate and not given:
            self._note("there are no questions in this data: nothing was answered")
        scores = estimates(answers, self._names, seed=self._options.seed)
        report = self._part.data.report
        evaluation = Evaluation(
            label=self._subject.label,
            subject=self._subject.to_dict(),
            data=report.path,
            split=self._options.split or "",
            template=report.template,
            system=report.system,
            n_samples=len(answers),
            n_questions=len(given),
            settings={**self._settings, "loss_by": way, "signatures": signatures},
            scores=scores,
            seconds=round(losses_s + given_s + time.monotonic() - started, 3),
            version=version(),
            notes=tuple(self._notes),
            folder=self._folder,
        )
        write_answers(self._folder, answers)
        write_evaluation(self._folder, evaluation)
        for name in (_LOSSES, _GIVEN, _UNFINISHED):
            (self._folder / name).unlink(missing_ok=True)
        return evaluation

    def _all_settings(self) -> dict[str, Any]:
        options = self._options
        return {
            **self._subject.fingerprints(),
            "samples": _fingerprint(self._asked),
            "max_samples": options.max_samples,
            "seed": options.seed,
            "precision": self._part.config.precision,
            "generate": options.generate,
            "max_tokens": options.max_tokens if options.generate else None,
            "temperature": options.temperature if options.generate else None,
            "metrics": self._names,
        }

    def _finished(self) -> Evaluation | None:
        """What the folder holds already. Raises :class:`GgtuneError` where that is of other settings."""
        before: Mapping[str, Any] | None = None
        found: Evaluation | None = None
        if (self._folder / EVALUATION).exists():
            found = read_evaluation(self._folder)
            before = found.settings
        elif (self._folder / _UNFINISHED).exists():
            before = _read_settings(self._folder / _UNFINISHED)
        elif (self._folder / ANSWERS).exists():
            raise GgtuneError(
                f"{self._folder} holds an {ANSWERS} without the {EVALUATION} that belongs to it: give another --out, "
                "or --overwrite to do it anew"
            )
        if before is None:
            return None
        if differs := _differences(before, self._settings):
            raise OtherSettingsError(
                f"{self._folder} holds an evaluation with other settings: {'; '.join(differs)}. Give another --out, "
                "or --overwrite to do it anew."
            )
        if found is not None:
            found.answers()  # they have to be there
            self._reporter.note(f"{self._folder} holds this evaluation already (--overwrite does it anew)")
        return found

    def _begin(self) -> None:
        """Make the folder ready: of an evaluation that goes on everything stays."""
        if self._options.overwrite or not (self._folder / _UNFINISHED).exists():
            for name in (EVALUATION, ANSWERS, _LOSSES, _GIVEN, _UNFINISHED):
                (self._folder / name).unlink(missing_ok=True)
            replace_text(self._folder / _UNFINISHED, json.dumps(self._settings) + "\n")

    def _losses(self, files: Sequence[tuple[str, float]]) -> tuple[dict[int, SampleLoss], str, float]:
        """Losses by index, the way they were computed, and the seconds that earlier calls took for them."""
        config, samples = self._part.config, [one.sample for one in self._asked]
        with JsonLines(self._folder / _LOSSES) as lines:
            done = {r["i"]: SampleLoss(**r["loss"]) for r in lines.before}
            ways = [r["way"] for r in lines.before]
            missing = [i for i in range(len(samples)) if i not in done]
            before_s = sum(r["s"] for r in lines.before)
            if not missing:
                return done, ways[-1], before_s
            measure = losses_of(
                self._subject,
                self._model,
                context=longest_sample(config, self._model),
                threads=self._options.threads,
                precision=config.precision,
                micro_batch_tokens=config.micro_batch_tokens,
                adapter_files=files,
            )
            if isinstance(measure, Decoded):
                self._note(
                    "the loss is llama.cpp's, which differs a little from the training's own, since ggtune's engine "
                    f"can't compute this: {measure.reason}"
                )
            if done:
                self._reporter.note(f"Going on: {len(done)} of {len(samples)} losses are there.")
            at = time.monotonic()
            with showing("Loss", len(samples), len(done), self._reporter) as advance:
                for place, loss in measure.of([samples[i] for i in missing]):
                    i, now = missing[place], time.monotonic()
                    lines.write([{"i": i, "loss": asdict(loss), "way": measure.way, "s": now - at}])
                    done[i], at = loss, now
                    advance()
            return done, measure.way, before_s

    def _answers(self, files: Sequence[tuple[str, float]]) -> tuple[dict[int, Mapping[str, Any]], float]:
        """Answers by the index of the first sample that asks for each, and the seconds that earlier calls took."""
        options, template = self._options, self._part.data.template
        if not self._to_answer:
            return {}, 0.0
        with JsonLines(self._folder / _GIVEN) as lines:
            done: dict[int, Mapping[str, Any]] = {r["i"]: r for r in lines.before}
            before_s = sum(r["s"] for r in lines.before)
            missing = [i for i in self._to_answer if i not in done]
            if not missing:
                return done, before_s
            if done:
                self._reporter.note(f"Going on: {len(done)} of {len(self._to_answer)} answers are there.")
            at = time.monotonic()
            with showing("Answers", len(self._to_answer), len(done), self._reporter) as advance:
                for place, answer in given_answers(
                    self._model,
                    [self._asked[i].question.prompt for i in missing],
                    adapters=files,
                    stops=template.stops if template is not None else (),
                    max_tokens=options.max_tokens,
                    threads=options.threads,
                    temperature=options.temperature,
                    seeds=[options.seed + i for i in missing],
                ):
                    i, now = missing[place], time.monotonic()
                    record = {"i": i, **asdict(answer), "s": now - at}
                    lines.write([record])
                    done[i], at = record, now
                    advance()
            return done, before_s

    def _joined(
        self, losses: Mapping[int, SampleLoss], given: Mapping[int, Mapping[str, Any]]
    ) -> tuple[list[AnsweredSample], dict[str, str]]:
        """Samples with their scores, and what BLEU and chrF depend on."""
        references = [one.question.reference for one in self._asked if one.question.asks]
        scorer = AnswerScorer(references, self._names) if given else None
        found = []
        for i, one in enumerate(self._asked):
            question, answer = one.question, given.get(one.first)
            text = None if answer is None else str(answer["text"])
            found.append(
                AnsweredSample(
                    row=question.row,
                    where=question.where,
                    question=question.question,
                    reference=question.reference,
                    category=question.category,
                    **asdict(losses[i]),
                    n_prompt_tokens=len(question.prompt),
                    references=one.references,
                    answer=text,
                    ended=None if answer is None else bool(answer["ended"]),
                    n_tokens=None if answer is None else int(answer["n_tokens"]),
                    repeated=one.first != i,
                    scores={} if text is None or scorer is None else scorer.scores(text, one.references),
                )
            )
        return found, scorer.signatures() if scorer is not None else {}

    def _note(self, text: str) -> None:
        self._notes.append(text)
        self._reporter.note(f"note: {text}")


def _chosen(part: Part, options: EvaluationOptions, model: "Model") -> list[_Asked]:
    """The samples that are measured, in the order of the data; those that ask the same have each other's answers."""
    samples, n = part.samples, len(part.samples)
    picked = np.arange(n)
    if 0 < options.max_samples < n:
        picked = np.sort(np.random.default_rng([options.seed, 2]).permutation(n)[: options.max_samples])
    prompts = {_key(samples[int(i)]) for i in picked}
    alike = picked if len(picked) == n else np.flatnonzero([_key(sample) in prompts for sample in samples])
    some = samples.take(alike) if isinstance(samples, SampleStore) else [samples[int(i)] for i in alike]
    questions = dict(zip(alike.tolist(), questions_of(Part(part.config, part.data, some), model), strict=True))
    references: dict[tuple[int, ...], list[str]] = {}
    for question in questions.values():
        if question.asks:
            references.setdefault(question.prompt, []).append(question.reference)
    found: list[_Asked] = []
    first: dict[tuple[int, ...], int] = {}
    for i in picked.tolist():
        question = questions[i]
        at = first.setdefault(question.prompt, len(found)) if question.asks else len(found)
        own = [question.reference, *references.get(question.prompt, ())]
        found.append(_Asked(samples[i], question, tuple(dict.fromkeys(own)), at))
    return found


def _key(sample: Sample) -> bytes:
    return sample.tokens[: sample.n_prompt].tobytes()


def _fingerprint(asked: Sequence[_Asked]) -> str:
    """Hash the samples: tokens, weights, prompts and references."""
    digest = hashlib.sha256()
    for one in asked:
        digest.update(f"|{one.sample.row} {len(one.sample.tokens)} {one.sample.n_prompt}|".encode())
        digest.update(one.sample.tokens.tobytes())
        digest.update(one.sample.weights.tobytes())
        digest.update("\0".join(one.references).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _read_settings(path: Path) -> Mapping[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return values
    return {}


_SAID = {
    "model": "it is of another model file",
    "adapters": "it is of another adapter",
    "samples": "it is of other samples",
}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        _SAID.get(name) or f"--{name.replace('_', '-')} was {before.get(name)!r} and is {value!r}"
        for name, value in now.items()
        if before.get(name) != value
    ]
