"""A run that has ended, looked at: what it has broken, and what is wrong with it."""

from dataclasses import dataclass
from pathlib import Path

from ggtune.errors import GgtuneError
from ggtune.evaluate.diagnosis import Finding, diagnose, write_findings
from ggtune.evaluate.general.change import GeneralChange, what_it_broke
from ggtune.evaluate.general.change import Subject as GeneralSubject
from ggtune.pipeline.side_effects import write_general
from ggtune.run.progress import Reporter

_LEAST_S, _MOST_S, _SHARE = 4.0, 120.0, 0.05  # seconds, and share of the training's, for each of the two


@dataclass(frozen=True)
class Checked:
    """What was found; ``general`` is None where it could not be measured."""

    general: GeneralChange | None = None
    findings: tuple[Finding, ...] = ()


def check_run(
    folder: Path,
    before: GeneralSubject,
    after: GeneralSubject,
    *,
    trained_s: float,
    threads: int = 0,
    reporter: Reporter | None = None,
) -> Checked:
    """Compare what a run hands on with its base, and diagnose the run.

    It takes a small part of the ``trained_s`` seconds of the training. Writes ``general.json`` and ``diagnosis.json``;
    what can't be measured is told to the ``reporter``: the model is made.
    """
    reporter = reporter or Reporter()
    seconds = min(_MOST_S, max(_LEAST_S, _SHARE * trained_s))
    general = None
    try:
        general = what_it_broke(before, after, threads=threads, seconds=seconds)
        write_general(folder, general)
    except GgtuneError as error:
        reporter.note(f"What the training has broken can't be told: {error}")
    return Checked(general, findings_of(folder, seconds=2 * seconds, threads=threads, reporter=reporter))


def findings_of(
    folder: Path, *, seconds: float = _MOST_S, threads: int = 0, reporter: Reporter | None = None
) -> tuple[Finding, ...]:
    """Diagnose a run and write ``diagnosis.json``; what can't be looked at is told to the ``reporter``."""
    reporter = reporter or Reporter()
    try:
        found = tuple(diagnose(folder, threads=threads, seconds=seconds, reporter=reporter))
        write_findings(folder, found)
    except GgtuneError as error:
        reporter.note(f"What is wrong with the run can't be told: {error}")
        return ()
    return found
