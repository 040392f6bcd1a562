"""Output of commands that must go on without it."""

from contextlib import suppress

import click


def say(text: str, *, err: bool = False) -> None:
    """Print a line; a log on a full disk or a terminal that is gone does not end the work."""
    with suppress(OSError):
        click.echo(text, err=err)
