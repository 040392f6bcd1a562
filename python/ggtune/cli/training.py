"""What ``train``, ``run`` and ``finetune`` share: settings from options and checkpoint, the run itself, its end."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggtune.cli.options import given_settings
from ggtune.config import Face, TrainConfig, differences
from ggtune.errors import GgtuneError

if TYPE_CHECKING:
    from ggtune.train.checkpoint import Checkpoint
    from ggtune.train.loop import Result
    from ggtune.train.outputs import Outputs


def settings(context: click.Context, face: Face, checkpoint: "Checkpoint | None", **more: Any) -> TrainConfig:
    """Make the configuration: what is given, else what the checkpoint has, else the defaults of ``face``."""
    given = {**given_settings(context), **more}
    if checkpoint is None:
        for name, flags in (("model", "--model"), ("data", "--data")):
            if not given.get(name):
                raise click.UsageError(f"Missing option '{flags}'.")
        return TrainConfig.for_face(face, **given)
    config = TrainConfig.from_dict({**checkpoint.config.to_dict(), **given})
    if changed := differences(checkpoint.config, config):
        raise GgtuneError(
            "the checkpoint is of a run with other settings: "
            + "; ".join(changed)
            + ". Leave these options out, or start a new run."
        )
    return config


def find_checkpoint(outputs: "Outputs", *, resume: bool, checkpoint_in: Path | None) -> "Checkpoint | None":
    """Load the checkpoint to go on from: the file, or the newest whole one of ``outputs``; None starts anew."""
    from ggtune.train.checkpoint import load_checkpoint, newest_checkpoint

    if checkpoint_in is not None:
        checkpoint = load_checkpoint(checkpoint_in)
        click.echo(f"Going on from {checkpoint_in}, after step {checkpoint.state.step}.")
        return checkpoint
    if not resume:
        return None
    found = newest_checkpoint(outputs.checkpoint)
    if found is None:
        click.echo(f"No checkpoint {outputs.checkpoint}: starting from the beginning.")
        return None
    path, checkpoint, damaged = found
    for text in damaged:
        click.echo(f"Passed over: {text}")
    click.echo(f"Going on from {path}, after step {checkpoint.state.step}.")
    return checkpoint


def execute(
    config: TrainConfig,
    outputs: "Outputs",
    checkpoint: "Checkpoint | None",
    *,
    resume_hint: str,
    overwrite: bool = False,
) -> "Result":
    """Train and print; a signal ends the process with 128 + its number after the checkpoint was written."""
    from ggtune.train.loop import describe
    from ggtune.train.progress import Progress
    from ggtune.train.session import prepare

    session = prepare(config, outputs, checkpoint=checkpoint)
    for line in session.report:
        click.echo(line)
    if overwrite:
        for path in outputs.existing():
            path.unlink()
    with ending_on_signal(resume_hint):
        result = session.loop(Progress()).run()
    for line in describe(result):
        click.echo(line)
    return result


@contextmanager
def ending_on_signal(resume_hint: str) -> Iterator[None]:
    """End the process with 128 + the number of the signal that interrupted a run, and say how to go on."""
    from ggtune.train.interrupts import RunInterruptedError

    try:
        yield
    except RunInterruptedError as interruption:
        click.echo(f"{interruption}.".capitalize(), err=True)
        if interruption.checkpoint is None:
            click.echo("No step was finished: there is nothing to go on from.", err=True)
        else:
            click.echo(f"Saved {interruption.checkpoint}. Go on with: {resume_hint}", err=True)
        raise click.exceptions.Exit(128 + interruption.signum) from None


def claim_folder(out: Path, *, resume: bool, overwrite: bool) -> "Outputs":
    """Name the files of a run folder. Raises :class:`GgtuneError` where it holds a run that was not spoken of."""
    from ggtune.train.outputs import Outputs

    outputs = Outputs.folder(out)
    if out.exists() and not out.is_dir():
        raise GgtuneError(f"can't write to the folder {out}: it is a file")
    if not resume and not overwrite and (there := outputs.existing()):
        raise GgtuneError(
            f"{out} already holds a run ({there[0].name}): give another --out, --resume to go on with it, "
            "or --overwrite to start anew"
        )
    return outputs
