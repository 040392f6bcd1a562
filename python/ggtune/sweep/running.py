"""The sweep itself, rung by rung; what was decided is on the disk before it is done."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggtune.config import flag
from ggtune.errors import GgtuneError
from ggtune.files import making_folder
from ggtune.run.interrupts import RunInterruptedError
from ggtune.run.lock import Lock, check_free
from ggtune.run.outputs import Outputs
from ggtune.run.progress import Reporter
from ggtune.run.status import FAILED as RUN_FAILED
from ggtune.run.status import FINISHED as RUN_FINISHED
from ggtune.run.status import INTERRUPTED, RUNNING, write_status
from ggtune.sweep.closeness import Closeness, closeness
from ggtune.sweep.files import remove_earlier, write_pictures, write_table
from ggtune.sweep.sheet import (
    DIVERGED,
    FAILED,
    FINISHED,
    MAX_DEATHS,
    WAITING,
    Attempt,
    Outcome,
    Results,
    Sheet,
    Trial,
    read_results,
    read_sheet,
)
from ggtune.sweep.space import Axis, described
from ggtune.sweep.trial import TrialReporter, begun, go_on
from ggtune.train.halving import promoted
from ggtune.version import version

# settings that another session of a sweep may have: where its files lie, and what changes no trial but for rounding
MAY_CHANGE = ("model", "data", "threads", "recompute", "precision", "save_every", "keep", "spike", "log", "force")


@dataclass(frozen=True)
class SweepOptions:
    """What a sweep is told beside its settings."""

    overwrite: bool = False  # the folder's earlier sweep
    listed: bool = False  # its trials are among the runs that `ggtune status` shows
    plot: bool = True


@dataclass(frozen=True)
class SweepResult:
    """What has come of a sweep."""

    folder: Path
    sheet: Sheet
    results: Results
    closeness: Closeness | None = None  # of the two best

    @property
    def ranking(self) -> list[tuple[Trial, Outcome]]:
        """The trials, the best held-out loss first; those that came to no good last."""

        def key(pair: tuple[Trial, Outcome]) -> tuple[bool, float]:
            outcome = pair[1]
            loss = outcome.best_held_out
            return outcome.state in (DIVERGED, FAILED), math.inf if loss is None else loss

        return sorted(((trial, self.results.outcomes[trial.name]) for trial in self.sheet.trials), key=key)

    @property
    def best(self) -> tuple[Trial, Outcome] | None:
        """The trial with the best held-out loss, None where none has one."""
        trial, outcome = self.ranking[0]
        return None if outcome.best_held_out is None or outcome.state in (DIVERGED, FAILED) else (trial, outcome)


def check_folder(folder: Path, *, resume: bool, overwrite: bool) -> Sheet | None:
    """Return the sweep that is in the folder; None where there is none, or it is not gone on with.

    Raises :class:`GgtuneError` where a process is at it, where it holds a sweep that was not spoken of, or a run.
    """
    if folder.exists() and not folder.is_dir():
        raise GgtuneError(f"can't write to the folder {folder}: it is a file")
    outputs = Outputs.folder(folder)
    check_free(outputs.lock)
    if outputs.config is not None and outputs.config.exists():
        raise GgtuneError(f"{folder} holds a run: give another --out for the sweep")
    if overwrite:
        return None
    sheet = read_sheet(folder)
    if sheet is None and resume:
        raise GgtuneError(f"{folder} holds no sweep to go on with: leave out --resume")
    if sheet is not None and not resume:
        raise GgtuneError(
            f"{folder} already holds a sweep: give another --out, --resume to go on with it, "
            "or --overwrite to start anew"
        )
    return sheet


def check_same(sheet: Sheet, given: Mapping[str, Any], axes: Sequence[Axis]) -> None:
    """Raise :class:`GgtuneError` where what is given now is not what the sweep was started with."""
    swept = {axis.name for axis in axes}
    wrong = [
        f"{flag(axis.name)} was {sheet.axes.get(axis.name, 'one value')} and is {axis.text()}"
        for axis in axes
        if sheet.axes.get(axis.name) != axis.text()
    ]
    rest = (name for name in given if name not in swept and name not in sheet.axes and name not in MAY_CHANGE)
    wrong += [
        f"{flag(name)} was {before!r} and is {given[name]!r}"
        for name in rest
        if (before := _plain(sheet.settings[name])) != given[name]
    ]
    wrong += [f"{flag(name)} was {text} and is one value" for name, text in sheet.axes.items() if name in given]
    if wrong:
        raise GgtuneError(
            "the sweep was started with other settings: " + "; ".join(wrong) + ". Leave these options out, or give "
            "another --out."
        )


def moved(sheet: Sheet) -> dict[str, str]:
    """Find the model and the data of relative paths from the folder that the sweep was started in."""
    found = {}
    for name in ("model", "data"):
        path = Path(str(sheet.settings[name]))
        there = Path(sheet.working_folder) / path
        if not path.is_absolute() and not path.exists() and there.exists():
            found[name] = str(there)
    return found


def sweep(
    sheet: Sheet,
    folder: Path,
    options: SweepOptions | None = None,
    reporter: Reporter | None = None,
    given: Mapping[str, Any] | None = None,
) -> SweepResult:
    """Go through the rungs, from where the folder stands.

    ``given`` are settings for all trials, those of MAY_CHANGE. Raises
    :class:`~ggtune.run.interrupts.RunInterruptedError` for a signal, and :class:`GgtuneError` for what ends all
    trials; the same call goes on with it.
    """
    options, reporter = options or SweepOptions(), reporter or Reporter()
    given = {name: value for name, value in (given or {}).items() if name in MAY_CHANGE}
    outputs = Outputs.folder(folder)
    with ExitStack() as stack:
        stack.enter_context(making_folder(folder))
        stack.enter_context(Lock(outputs.lock))
        if options.overwrite:
            remove_earlier(folder)
        if read_sheet(folder) is None:
            sheet.write(folder)
        results = read_results(folder, sheet)
        _say(outputs, RUNNING, "")
        try:
            _rungs(sheet, folder, results, options, reporter, given)
            result = _compared(SweepResult(folder, sheet, results), given, reporter)
        except RunInterruptedError as interruption:
            _say(outputs, INTERRUPTED, str(interruption))
            raise
        except BaseException as error:
            _say(outputs, RUN_FAILED, str(error) or type(error).__name__)
            raise
        _say(outputs, RUN_FINISHED, "all trials are done")
    return result


def _compared(result: SweepResult, given: Mapping[str, Any], reporter: Reporter) -> SweepResult:
    """Hold the two best against each other."""
    if result.best is None:
        return result
    good = [pair for pair in result.ranking if pair[1].state not in (DIVERGED, FAILED)]
    threads = int(given.get("threads", result.sheet.settings["threads"]))
    return dataclasses.replace(result, closeness=closeness(result.folder, good, threads, reporter))


def _rungs(
    sheet: Sheet,
    folder: Path,
    results: Results,
    options: SweepOptions,
    reporter: Reporter,
    given: Mapping[str, Any],
) -> None:
    entering, is_first = list(sheet.trials), True
    for i, rung in enumerate(sheet.rungs):
        if i:
            losses = [_loss(results.outcomes[trial.name], i - 1) for trial in entering]
            entering = [entering[j] for j in promoted(losses, rung.n_trials)]
        for trial in entering:
            if _is_done(results.outcomes[trial.name], i):
                continue
            share = "to its end" if rung.share == 1 else f"{100 * float(rung.share):.0f} % of its steps"
            number = sheet.trials.index(trial) + 1
            reporter.note(f"Trial {number} of {len(sheet.trials)}, {described(trial.changes)}: {share}")
            outcome = _to_end_of_rung(
                sheet, folder, results, trial, i, options, TrialReporter(reporter, is_first=is_first), given
            )
            is_first = False
            reporter.note(f"Trial {number}: {_in_words(outcome)}")
            for problem in write_table(SweepResult(folder, sheet, results).ranking, sheet, folder):
                reporter.note(problem)
    if options.plot:
        for problem in write_pictures(sheet, results, folder):
            reporter.note(problem)


def _to_end_of_rung(
    sheet: Sheet,
    folder: Path,
    results: Results,
    trial: Trial,
    rung: int,
    options: SweepOptions,
    reporter: Reporter,
    given: Mapping[str, Any],
) -> Outcome:
    """Train, and note what came of it."""
    there = begun(folder / trial.name)
    losses = results.outcomes[trial.name].losses
    attempt = Attempt(trial.name, rung, there.step)
    if results.attempt is not None and dataclasses.replace(results.attempt, n=1) == attempt:
        attempt = dataclasses.replace(attempt, n=results.attempt.n + 1)
    results.attempt = attempt
    results.write(folder, sheet)
    if attempt.n > MAX_DEATHS:
        outcome = Outcome(
            FAILED, f"the process was killed {MAX_DEATHS} times after step {there.step} of it, maybe for want of memory"
        )
    else:
        try:
            outcome = go_on(sheet, trial, there, _until(sheet, trial, rung), given, reporter, listed=options.listed)
        except BaseException:
            results.attempt = None  # it was not killed
            with suppress(GgtuneError):
                results.write(folder, sheet)
            raise
    outcome.losses = [*losses, outcome.best_held_out]
    results.outcomes[trial.name], results.attempt = outcome, None
    results.write(folder, sheet)
    return outcome


def _until(sheet: Sheet, trial: Trial, rung: int) -> int | None:
    share = sheet.rungs[rung].share
    return None if share == 1 or trial.total_steps is None else math.ceil(share * trial.total_steps)


def _loss(outcome: Outcome, rung: int) -> float | None:
    """Return what a trial is compared by at the end of a rung; one that ended by itself before has its last."""
    if outcome.state in (WAITING, DIVERGED, FAILED) or not outcome.losses:
        return None
    return outcome.losses[min(rung, len(outcome.losses) - 1)]


def _is_done(outcome: Outcome, rung: int) -> bool:
    return len(outcome.losses) > rung or outcome.state in (FINISHED, DIVERGED, FAILED)


def _in_words(outcome: Outcome) -> str:
    if outcome.state in (DIVERGED, FAILED):
        return f"{outcome.state}: {outcome.reason}"
    loss = "no held-out loss" if outcome.best_held_out is None else f"held-out loss {outcome.best_held_out:.4f}"
    return f"{loss} after step {outcome.best_step}" if outcome.best_step is not None else loss


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _say(outputs: Outputs, state: str, reason: str) -> None:
    assert outputs.status is not None
    more = {"version": version(), "working_folder": str(Path.cwd()), "command": {"name": "sweep"}}
    write_status(outputs.status, state, reason, more)
