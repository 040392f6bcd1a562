"""What ``train``, ``run`` and ``finetune`` share: settings from options, an interruption, the end of the run."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggtune.cli.echo import say
from ggtune.cli.options import given_settings
from ggtune.config import WITHOUT_EFFECT_ON_ALL, Face, TrainConfig, flag

STATUSES = (
    "Exit status: 0; 1 for an error; 2 for wrong usage; 3 where the run has diverged; 128 + the number of the signal "
    "that interrupted it."
)

if TYPE_CHECKING:
    from ggtune.evaluate.diagnosis import Finding
    from ggtune.run.checkpoint import Checkpoint
    from ggtune.train.result import Result


def settings(
    context: click.Context,
    face: Face,
    checkpoint: "Checkpoint | None",
    *,
    before: TrainConfig | None = None,
    **more: Any,
) -> TrainConfig:
    """Make the configuration of what is given, ``checkpoint`` and ``before`` as :func:`ggtune.pipeline.settings`."""
    from ggtune import pipeline

    given = {**given_settings(context), **more}
    if checkpoint is None and before is None:
        for name, flags in (("model", "--model"), ("data", "--data")):
            if not given.get(name):
                raise click.UsageError(f"Missing option '{flags}'.")
    config = pipeline.settings(given, checkpoint, before, face=face, reporter=pipeline.Progress())
    if idle := [flag(name) for name in WITHOUT_EFFECT_ON_ALL if name in given and config.loss_on == "all"]:
        of = "" if "loss_on" in given else ", which is the default here" if before is None else ", as in the run before"
        raise click.UsageError(
            f"{' and '.join(idle)} would have no effect with --loss-on all{of}: every token counts. Leave "
            f"{'it' if len(idle) == 1 else 'them'} out, or give --loss-on answer."
        )
    return config


def end_of_run(result: "Result", findings: "Sequence[Finding]" = ()) -> None:
    """Print what did not go as it should: the last that a command says. The process ends with 3 after divergence.

    ``findings`` are those of a diagnosis; what is said already is not said twice.
    """
    from ggtune.train.verdict import DIVERGED_STATUS, has_diverged, verdicts

    said = verdicts(result)
    for line in said:
        say(line)
    for finding in findings:
        if finding.severity != "note" and not any(f"has {finding.kind}" in line for line in said):
            say(finding.line())
    if has_diverged(result):
        raise click.exceptions.Exit(DIVERGED_STATUS)


@contextmanager
def ending_on_signal(resume_hint: str) -> Iterator[None]:
    """End the process with 128 + the number of the signal that interrupted a run, and say how to go on."""
    from ggtune.run.interrupts import RunInterruptedError

    try:
        yield
    except RunInterruptedError as interruption:
        say(f"I{str(interruption)[1:]}.", err=True)
        if interruption.problem is not None:
            say(f"The last step could not be saved: {interruption.problem}", err=True)
        if interruption.checkpoint is None:
            say("There is no checkpoint to go on from.", err=True)
        elif interruption.problem is not None:
            say(f"The last checkpoint is {interruption.checkpoint}. Go on with: {resume_hint}", err=True)
        else:
            say(f"Saved {interruption.checkpoint}. Go on with: {resume_hint}", err=True)
        raise click.exceptions.Exit(128 + interruption.signum) from None


def resume_command(out: Path) -> str:
    """Return the command that goes on with the run in ``out``."""
    return f"ggtune resume {shlex.quote(str(out))}"
