"""``ggtune watch``."""

import shutil
import sys
import time
from pathlib import Path

import click


@click.command("watch")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--every", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between looks.")
def command(run: Path, every: float) -> None:
    """Follow the run in the folder RUN until it ends; Ctrl-C ends the watching, not the run."""
    from ggtune.cli.status import summary
    from ggtune.run.status import RUNNING, read_status

    live = sys.stdout.isatty()
    shown: int | None = None
    try:
        while True:
            status = read_status(run)
            if status.state != RUNNING:
                click.echo(("\r" if live else "") + summary(status))
                return
            if live:
                columns = shutil.get_terminal_size().columns - 1
                click.echo("\r" + summary(status)[:columns].ljust(columns), nl=False)
            elif status.step != shown:
                shown = status.step
                click.echo(summary(status))
            time.sleep(every)
    except KeyboardInterrupt:
        click.echo()
