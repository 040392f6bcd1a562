"""``ggtune resume``."""

from pathlib import Path
from typing import Any

import click

from ggtune.cli.background import detach_option, start_detached
from ggtune.cli.options import ConfigCommand, config_options, given_settings
from ggtune.cli.run import end_of_chain
from ggtune.cli.train import end_of_training
from ggtune.cli.training import STATUSES, ending_on_signal, resume_command


@click.command("resume", cls=ConfigCommand, epilog=STATUSES)
@click.argument("out", type=click.Path(path_type=Path), metavar="RUN")
@config_options("train", leave_out=("from_adapter",))
@detach_option
@click.pass_context
def command(context: click.Context, /, out: Path, detach: bool, **_: Any) -> None:
    """Go on with the run in the folder RUN, from its newest whole checkpoint and with its own settings.

    After an interruption the result is the same as without it. --epochs or --max-steps add to a run that has ended. A
    run started by `ggtune run` is packaged at its end, as it was asked for there. A sweep goes on, too.
    """
    from ggtune import pipeline
    from ggtune.sweep.sheet import SHEET

    if (out / SHEET).exists():
        _go_on_with_sweep(context, out, detach)
        return
    pipeline.find_run(out)
    if detach:
        start_detached(context, out)
        return
    with ending_on_signal(resume_command(out)):
        result = pipeline.resume(out, given_settings(context), listed=True, reporter=pipeline.Progress())
    if isinstance(result, pipeline.RunResult):
        end_of_chain(result, out)
    else:
        end_of_training(result, out)


def _go_on_with_sweep(context: click.Context, out: Path, detach: bool) -> None:
    from ggtune.cli.sweep import end_of_sweep
    from ggtune.pipeline import Progress
    from ggtune.sweep import SweepOptions, check_folder, check_same, moved, sweep

    sheet = check_folder(out, resume=True, overwrite=False)
    assert sheet is not None
    given = given_settings(context)
    check_same(sheet, given, ())
    if detach:
        start_detached(context, out)
        return
    with ending_on_signal(resume_command(out)):
        result = sweep(sheet, out, SweepOptions(listed=True), Progress(), {**moved(sheet), **given})
    end_of_sweep(result)
