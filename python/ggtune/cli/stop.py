"""``ggtune stop``."""

import time
from pathlib import Path

import click


@click.command("stop")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--wait", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds to wait for its end."
)
def command(run: Path, wait: float) -> None:
    """End the run in the folder RUN after its last whole step is saved; `ggtune resume` goes on with it."""
    from ggtune.cli.status import summary
    from ggtune.errors import GgtuneError
    from ggtune.run.status import read_status
    from ggtune.run.stopping import ask_to_stop

    ask_to_stop(run)
    deadline = time.monotonic() + wait
    while (status := read_status(run)).pid is not None:
        if time.monotonic() >= deadline:
            raise GgtuneError(f"the run in {run} has been told to stop and is still at it (process {status.pid})")
        time.sleep(0.05)
    click.echo(summary(status))
