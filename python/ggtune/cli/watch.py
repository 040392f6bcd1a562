"""``ggtune watch``."""

import time
from pathlib import Path

import click


@click.command("watch")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--every", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between looks.")
def command(run: Path, every: float) -> None:
    """Follow the run in the folder RUN until it ends; q or Ctrl-C ends the watching, not the run.

    In a terminal it is a screen: curves of the loss, figures, warnings, answers that the run has sampled of itself.
    Elsewhere it is a line for each step. NO_COLOR=1 is heeded.
    """
    from ggtune.board.watching import can_show_screen, terminal, watch
    from ggtune.cli.status import summary

    if can_show_screen():
        click.echo(summary(watch(run, every_s=every, console=terminal())))
        return
    _plain_lines(run, every)


def _plain_lines(run: Path, every: float) -> None:
    from ggtune.cli.status import summary
    from ggtune.run.status import RUNNING, read_status

    shown: int | None = None
    try:
        while True:
            status = read_status(run)
            if status.state != RUNNING:
                click.echo(summary(status))
                return
            if status.step != shown:
                shown = status.step
                click.echo(summary(status))
            time.sleep(every)
    except KeyboardInterrupt as interruption:
        if type(interruption) is not KeyboardInterrupt:  # SIGTERM, SIGHUP
            raise
