"""What is wrong with a run.

Answers that don't belong to their questions, a template that the model does not expect, a loss that has turned or
diverged, a merge that has lost what was learned.
"""

import datetime
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from ggtune.data.samples import Sample
from ggtune.data.templates import Template
from ggtune.errors import GgtuneError
from ggtune.evaluate.answer_order import (
    LEAST_ROWS,
    Dependence,
    Match,
    Values,
    dependence,
    match_gain,
    rows_to_look_at,
    word_matches,
)
from ggtune.evaluate.log_probs import Likelihood
from ggtune.evaluate.template_fit import own_template, template_fit, written
from ggtune.evaluate.verify import samples_of, verify_run
from ggtune.files import replace_text
from ggtune.run.checkpoint import Checkpoint, newest_checkpoint
from ggtune.run.outputs import Outputs
from ggtune.run.progress import Reporter
from ggtune.run.status import FAILED, read_status_file
from ggtune.train.chosen import chosen_adapter
from ggtune.train.monitor import Monitor
from ggtune.train.questions import Question, part_of, questions_of
from ggtune.train.samples import RunSamples
from ggtune.train.verdict import is_divergence

Severity = Literal["error", "warning", "note"]

DIAGNOSIS = "diagnosis.json"
SHUFFLED, TEMPLATE, OVERFITTED, DIVERGED, MERGE = (
    "shuffled answers",
    "wrong template",
    "overfitted",
    "diverged",
    "merge lost the training",
)
IGNORED, OTHER_TEMPLATE, WORSE = "question ignored", "another template", "worse than the base"

_SECONDS = 40.0
_RISE_SHARE, _RISE_LOSS = 0.03, 0.03  # of a held-out loss above its best, relative and in nats: no noise
_TEMPLATE_GAIN, _SURE_P = 0.1, 0.01  # nats per token of the answers; p value
_SAME_GAIN = 0.005  # nats per token: templates that differ by less are as good as the same
_LITTLE_GAIN = 0.05  # nats per token: a question that is worth less is ignored
_SAME_PLACE_S = 2.0  # files that are written one after the other


@dataclass(frozen=True)
class Finding:
    """Something that a user should know of a run. ``text`` says what was seen, ``advice`` what to do."""

    kind: str
    severity: Severity
    text: str
    advice: str

    def line(self) -> str:
        """Say it on one line."""
        return f"{self.kind[:1].upper()}{self.kind[1:]}: {self.text} {self.advice}".rstrip()


def write_findings(folder: Path, findings: Sequence[Finding]) -> None:
    """Write ``diagnosis.json``. Raises :class:`~ggtune.files.WriteError`."""
    replace_text(folder / DIAGNOSIS, json.dumps({"findings": [asdict(f) for f in findings]}, indent=2) + "\n")


def read_findings(folder: Path) -> list[Finding] | None:
    """Read what was found; None where nobody has looked, or the file is none."""
    try:
        values = json.loads((folder / DIAGNOSIS).read_text(encoding="utf-8"))
        return [Finding(str(f["kind"]), f["severity"], str(f["text"]), str(f["advice"])) for f in values["findings"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def diagnose(
    folder: str | Path, *, threads: int = 0, seconds: float = _SECONDS, reporter: Reporter | None = None
) -> list[Finding]:
    """Look at a run that has ended, the worst first; ``seconds`` is about the most that it takes.

    Raises :class:`GgtuneError` where the folder holds no run, or its model or data are gone.
    """
    folder, reporter, started = Path(folder), reporter or Reporter(), time.monotonic()
    found, died = newest_checkpoint(Outputs.folder(folder).checkpoint), _died(folder)
    if found is None and died:
        return died
    if found is None:
        raise GgtuneError(f"{folder} holds no run: it has no checkpoint")
    checkpoint = found[1]
    diverged = list(_diverged(checkpoint)) or died
    turned = list(_overfitted(folder, checkpoint)) or ([] if diverged else list(_worse(checkpoint)))
    findings = [*diverged, *turned, *_merge(folder, threads, seconds / 4)]
    if not diverged:
        looker = _Looker(folder, checkpoint, threads, seconds)
        findings += looker.look()
        if len(looker.rows) >= LEAST_ROWS:
            reporter.note(
                f"Looked at {len(looker.rows)} rows for answers and template in {time.monotonic() - started:.0f} s."
            )
    order: dict[str, int] = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda finding: order[finding.severity])


def _died(folder: Path) -> list[Finding]:
    """A run that was ended because its loss or gradient was no longer finite."""
    status = read_status_file(folder / "status.json")
    reason = str(status.get("reason", ""))
    if status.get("state") != FAILED or "diverged" not in reason:
        return []
    return [Finding(DIVERGED, "error", reason.rstrip(".") + ".", "")]


def _diverged(checkpoint: Checkpoint) -> Iterator[Finding]:
    """As :func:`ggtune.train.verdict.has_diverged`, from what a checkpoint keeps."""
    monitor, config = Monitor(**checkpoint.state.monitor), checkpoint.config
    diverged = is_divergence(
        first_loss=monitor.first_loss,
        start_loss=monitor.start_loss,
        smoothed_loss=monitor.smoothed,
        held_out_before=monitor.held_out_before,
        held_out_loss=monitor.held_out,
    )
    if not diverged:
        return
    if monitor.held_out is not None and not math.isfinite(monitor.held_out):
        what = "the held-out loss is not finite."
    else:
        what = f"the training loss is {monitor.smoothed:.4g}, {monitor.first_loss:.4g} at the start."
    advice = f"Start anew with a smaller --lr than {config.lr:g} or a longer --warmup."
    yield Finding(DIVERGED, "error", f"{what} What it has learned is of no use.", advice)


def _overfitted(folder: Path, checkpoint: Checkpoint) -> Iterator[Finding]:
    monitor, config = Monitor(**checkpoint.state.monitor), checkpoint.config
    lowest, last, turned, then = (
        monitor.lowest_held_out,
        monitor.held_out,
        monitor.lowest_step,
        monitor.lowest_smoothed,
    )
    if lowest is None or last is None or turned is None or then is None or not math.isfinite(last):
        return
    before = monitor.held_out_before
    if before is not None and before < lowest:
        lowest, turned, then = before, 0, monitor.first_loss or math.nan
    rise = last - lowest >= max(_RISE_LOSS, _RISE_SHARE * lowest)
    if not (rise or (turned and monitor.has_turned_up)) or not monitor.smoothed < then:
        return
    if config.early_stop and monitor.n_not_better >= config.early_stop:
        return  # it ended for that, and hands on the best step
    text = (
        f"from step {turned} on the held-out loss rose from {lowest:.4f} to {last:.4f} while the training loss went on "
        f"falling, from {then:.4f} to {monitor.smoothed:.4f}."
    )
    fewer = f"fewer --epochs than {config.epochs:g}" if config.epochs else "fewer steps"
    ways = f"{fewer}, --early-stop 2, a smaller --lr or more rows"
    chosen = chosen_adapter(folder)
    if monitor.is_under(config.stop_loss, config.stop_patience):
        yield Finding(OVERFITTED, "note", text, "Learning by heart, as --stop-loss asks for, costs that.")
    elif turned == 0:
        advice = f"On questions that it was not trained on the base alone does better: give {ways}."
        yield Finding(OVERFITTED, "warning", text, advice)
    elif chosen.step <= turned:
        advice = f"Step {chosen.step}, the best, is what is handed on; {ways} give as much in less time."
        yield Finding(OVERFITTED, "warning", text, advice)
    else:
        yield Finding(OVERFITTED, "warning", text, f"Take step {turned} by --which best, or start anew with {ways}.")


def _worse(checkpoint: Checkpoint) -> Iterator[Finding]:
    """A held-out loss above that before the training, by more than noise, that is neither overfitting nor divergence.

    None where --early-stop ended the run for it, and a step that is better than the base is handed on.
    """
    monitor, config = Monitor(**checkpoint.state.monitor), checkpoint.config
    before, after, lowest = monitor.held_out_before, monitor.held_out, monitor.lowest_held_out
    if before is None or after is None or after - before < max(_RISE_LOSS, _RISE_SHARE * before):
        return
    is_better = lowest is not None and lowest < before
    if is_better and config.early_stop and monitor.n_not_better >= config.early_stop:
        return
    best = f"; step {monitor.lowest_step} had the best, {lowest:.4f}" if is_better else ""
    text = f"the held-out loss was {before:.4f} before the training and is {after:.4f} after it{best}."
    yield Finding(WORSE, "warning", text, f"Start anew with a smaller --lr than {config.lr:g}, or with more rows.")


def _merge(folder: Path, threads: int, seconds: float) -> Iterator[Finding]:
    proof, merged = folder / "proof.json", folder / "model.gguf"
    if not merged.is_file():
        return
    advice = (
        "Merge with --outtype auto or q8_0, or use the adapter beside the base (--no-merge, or `ggtune package --model "
        "BASE --lora ADAPTER`)."
    )
    try:
        values = json.loads(proof.read_text(encoding="utf-8"))
        good, kept = bool(values["good"]), values["trained"]["kept"]
        stale = merged.stat().st_mtime > proof.stat().st_mtime + _SAME_PLACE_S
    except (OSError, ValueError, KeyError, TypeError):
        stale, good, kept = True, True, None
    if stale:
        try:
            found = verify_run(folder, threads=threads, seconds=seconds)
        except GgtuneError as error:
            yield Finding(MERGE, "error", f"what model.gguf has kept can't be told: {error}.", advice)
            return
        good, kept = found.good, found.trained.kept
    if not good:
        share = f"{100 * float(kept):.0f} %" if kept is not None else "nothing"
        yield Finding(
            MERGE, "error", f"the merged file is NOT good: it keeps {share} of what the adapter learned.", advice
        )


class _Looker:
    """What takes the model: whether answers fit their questions, and whether the template fits the model."""

    def __init__(self, folder: Path, checkpoint: Checkpoint, threads: int, seconds: float) -> None:
        state = checkpoint.state
        self._folder, self._config, self._threads = folder, checkpoint.config, threads
        self._now = datetime.datetime.fromisoformat(state.started) if state.started else None
        self._seconds = seconds
        self._samples: RunSamples = samples_of(self._config, now=self._now)
        self._base = Likelihood(self._config.model, threads=threads)
        self._system = self._samples.data.report.system or None
        self._expected: Template | None = None  # by the base, where it is not the one that was trained with
        self.rows = rows_to_look_at(self._samples.training)

    def look(self) -> Iterator[Finding]:
        """Give what is found."""
        if len(self.rows) < LEAST_ROWS:
            return
        yield from self._template()
        yield from self._order()

    def _as_expected(self, samples: Sequence[Sample]) -> list[Sample]:
        """Write samples in the template that the base expects: what it knows of them does not show in another one."""
        if self._expected is None:
            return list(samples)
        found = written(self._base.model, self._expected, self._questions(samples), self._system)
        return [sample for sample in found if sample is not None]

    def _questions(self, samples: Sequence[Sample]) -> list[Question]:
        part = part_of(self._config, self._samples, "training")
        return questions_of(replace(part, samples=samples), self._base.model)

    def _order(self) -> Iterator[Finding]:
        rows = self._as_expected(self.rows)
        if len(rows) < LEAST_ROWS:
            return
        by_base = dependence(self._base, rows, self._seconds / 4)
        if by_base.is_there and by_base.gain.p_value < _SURE_P:  # of few rows chance says so once in forty times
            return
        held_out = rows_to_look_at(self._samples.held_out)
        # rows that were learned by heart depend on their questions whether they belong together or not
        unseen = len(held_out) >= LEAST_ROWS
        adapters = [(chosen_adapter(self._folder).path, 1.0)]
        tuned = Likelihood(self._base.model, adapters, threads=self._threads)
        by_tuned = dependence(tuned, held_out if unseen else self.rows, self._seconds / 4)
        if unseen and by_tuned.is_there:
            return
        matches = self._matches(rows)
        if len(matches) >= LEAST_ROWS:
            gain, each = match_gain(self._base, matches, self._seconds / 4)
            if gain.value > _LITTLE_GAIN and gain.is_significant:
                yield self._shuffled(by_base, gain.value, each, matches)
                return
        if unseen and by_tuned.gain.high < _LITTLE_GAIN:
            yield Finding(
                IGNORED,
                "warning",
                f"for neither the base nor the trained model it matters which question stands before an answer: of "
                f"{by_tuned.n_rows} held-out rows, answers are worth {by_tuned.gain.value:.3f} nats per token more "
                "behind their own question than behind that of another row.",
                "Look whether answers belong to their questions, and whether what they ask for can be told from them "
                "(ggtune preview shows samples).",
            )

    def _matches(self, rows: Sequence[Sample]) -> list[Match]:
        matches = word_matches(self._base.model, rows, self._samples.training)
        if self._expected is None:
            return matches
        others = {sample.row: sample for sample in self._as_expected([match.other for match in matches])}
        return [Match(match.row, others[match.other.row]) for match in matches if match.other.row in others]

    def _shuffled(self, by_base: Dependence, gain: float, each: Values, matches: Sequence[Match]) -> Finding:
        report = self._samples.data.report
        best = matches[int(each.argmax())]
        row, other, n_better = best.row.row, best.other.row, int((each > 0).sum())
        return Finding(
            SHUFFLED,
            "error",
            f"answers don't belong to their questions: the base finds them no more probable behind their own question "
            f"than behind that of any other row ({by_base.gain.value:+.2f} nats per token, {by_base.n_rows} rows), but "
            f"{gain:.2f} nats more behind another one with the same words, in {n_better} of {len(each)} rows; the "
            f"answer at {report.where(row)} fits the question at {report.where(other)}.",
            "Was a column sorted or shifted by itself? Mend the data and start anew: what was learned is of no use.",
        )

    def _template(self) -> Iterator[Finding]:
        used = self._samples.data.template
        own = own_template(self._base.model, used, self._now)
        if used is None or own is None:
            return
        fit = template_fit(self._base, used, own, self._questions(self.rows), self._system, seconds=self._seconds / 4)
        if fit is None:
            return
        losses = f"{fit.loss_own:.3f} with that and {fit.loss_used:.3f} with '{fit.used}' ({fit.n_questions} rows)"
        if fit.gain.value >= _TEMPLATE_GAIN and fit.gain.p_value < _SURE_P:
            self._expected = own
            yield Finding(
                TEMPLATE,
                "warning",
                f"the model's own chat template is not the one that was trained with ('{fit.used}'), and the base "
                f"expects its own: before the training its loss on the answers was {losses}.",
                "Leave --template out, and start anew: the model then goes on from what it knows, and others ask it as "
                "it was trained.",
            )
        elif abs(fit.gain.value) > _SAME_GAIN and (fit.gain.value > 0 or not fit.gain.is_significant):
            yield Finding(
                OTHER_TEMPLATE,
                "note",
                f"the model has a chat template of its own, and '{fit.used}' was trained with. What the base knows of "
                f"these questions does not tell whether that matters: before the training its loss on the answers was "
                f"{losses}.",
                f"Unless '{fit.used}' is meant, leave --template out, and start anew.",
            )
