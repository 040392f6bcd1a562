"""What ``train``, ``run`` and ``finetune`` share: settings from options and checkpoint, the run itself, its end."""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggtune.cli.echo import say
from ggtune.cli.options import given_settings
from ggtune.config import Face, TrainConfig, differences, rounding_differences
from ggtune.errors import GgtuneError

STATUSES = (
    "Exit status: 0; 1 for an error; 2 for wrong usage; 3 where the run has diverged; 128 + the number of the signal "
    "that interrupted it."
)

if TYPE_CHECKING:
    from ggtune.run.checkpoint import Checkpoint
    from ggtune.run.outputs import Outputs
    from ggtune.train.result import Result


def settings(
    context: click.Context,
    face: Face,
    checkpoint: "Checkpoint | None",
    *,
    before: TrainConfig | None = None,
    **more: Any,
) -> TrainConfig:
    """Make the configuration: what is given, else what the checkpoint has, else the defaults of ``face``.

    ``before`` are the settings of a run that is started anew: they stand for the defaults.
    """
    given = {**given_settings(context), **more}
    if checkpoint is None and before is not None:
        return before.continued(given)
    if checkpoint is None:
        for name, flags in (("model", "--model"), ("data", "--data")):
            if not given.get(name):
                raise click.UsageError(f"Missing option '{flags}'.")
        return TrainConfig.for_face(face, **given)
    config = checkpoint.config.continued(given)
    if changed := differences(checkpoint.config, config):
        raise GgtuneError(
            "the checkpoint is of a run with other settings: "
            + "; ".join(changed)
            + ". Leave these options out, or start a new run."
        )
    if changed := rounding_differences(checkpoint.config, config):
        say("Changed: " + "; ".join(changed) + ". The result stays the same but for rounding.")
    return config


def find_checkpoint(outputs: "Outputs", *, resume: bool, checkpoint_in: Path | None) -> "Checkpoint | None":
    """Load the checkpoint to go on from: the file, or the newest whole one of ``outputs``; None starts anew."""
    from ggtune.run.checkpoint import load_checkpoint, newest_checkpoint

    if checkpoint_in is not None:
        checkpoint = load_checkpoint(checkpoint_in)
        say(f"Going on from {checkpoint_in}, after step {checkpoint.state.step}.")
        return checkpoint
    if not resume:
        return None
    found = newest_checkpoint(outputs.checkpoint)
    if found is None:
        say(f"No checkpoint {outputs.checkpoint}: starting from the beginning.")
        return None
    path, checkpoint, damaged = found
    for text in damaged:
        say(f"Passed over: {text}")
    say(f"Going on from {path}, after step {checkpoint.state.step}.")
    return checkpoint


def execute(
    config: TrainConfig,
    outputs: "Outputs",
    checkpoint: "Checkpoint | None",
    *,
    resume_hint: str,
    overwrite: bool = False,
    command: Mapping[str, Any] | None = None,
    extra_disk_bytes: int = 0,
) -> "Result":
    """Train and print all but what :func:`end_of_run` does.

    A signal ends the process with 128 + its number after the checkpoint was written.
    ``command`` is what ``ggtune resume`` has to know; ``extra_disk_bytes`` are what is written after the training.
    """
    from ggtune.run.progress import Progress
    from ggtune.run.registry import register
    from ggtune.train.result import describe
    from ggtune.train.session import prepare

    session = prepare(config, outputs, checkpoint=checkpoint, extra_disk_bytes=extra_disk_bytes)
    for line in session.report:
        say(line)
    if outputs.status is not None:
        register(outputs.status.parent)
    with ending_on_signal(resume_hint):
        result = session.loop(Progress(), command=command, overwrite=overwrite).run()
    for line in describe(result):
        say(line)
    return result


def end_of_run(result: "Result") -> None:
    """Print what did not go as it should: the last that a command says. The process ends with 3 after divergence."""
    from ggtune.train.verdict import DIVERGED_STATUS, has_diverged, verdicts

    for line in verdicts(result):
        say(line)
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


def claim_folder(out: Path, *, resume: bool, overwrite: bool) -> "Outputs":
    """Name the files of a run folder.

    Raises :class:`GgtuneError` where a job is at it, or where it holds a run that was not spoken of.
    """
    from ggtune.run.lock import check_free
    from ggtune.run.outputs import Outputs

    outputs = Outputs.folder(out)
    if out.exists() and not out.is_dir():
        raise GgtuneError(f"can't write to the folder {out}: it is a file")
    check_free(outputs.lock)
    if not resume and not overwrite and (there := outputs.existing()):
        raise GgtuneError(
            f"{out} already holds a run ({there[0].name}): give another --out, --resume to go on with it, "
            "or --overwrite to start anew"
        )
    return outputs


def resume_command(out: Path) -> str:
    """Return the command that goes on with the run in ``out``."""
    return f"ggtune resume {shlex.quote(str(out))}"


def earlier_settings(outputs: "Outputs") -> TrainConfig | None:
    """Return the settings of a run that was started in the folder, None where there are none."""
    import json

    if outputs.config is None or not outputs.config.exists():
        return None
    try:
        values = json.loads(outputs.config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise GgtuneError(f"can't read {outputs.config}: {error}") from error
    if not isinstance(values, dict):
        raise GgtuneError(f"{outputs.config} has no settings in it")
    return TrainConfig.from_dict(values)
