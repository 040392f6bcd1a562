"""``ggtune plan``."""

from datetime import datetime

import click

from ggtune.cli.options import ConfigCommand, config_options
from ggtune.cli.training import settings


@click.command("plan", cls=ConfigCommand)
@config_options("train")
@click.pass_context
def command(context: click.Context, /, **_: object) -> None:
    """Say what a run with these options of `train` needs: memory, time, date of the end, and whether it fits.

    Reads the model's header and the data, tries each kind of operation, loads no weights and writes nothing.
    """
    from ggtune.train.forecast import forecast

    config = settings(context, "train", None)
    for line in forecast(config).lines(datetime.now()):
        click.echo(line)
