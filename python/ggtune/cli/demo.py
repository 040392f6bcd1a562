"""``ggtune demo``."""

from pathlib import Path
from typing import Any

import click

from ggtune.cli.options import config_options, given_device_settings
from ggtune.cli.training import ending_on_signal
from ggtune.config import DEVICE_SETTINGS


@click.command("demo")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("ggtune-demo"),
    show_default=True,
    help="Folder to write to; an earlier demo in it is replaced.",
)
@click.option("-t", "--threads", type=click.IntRange(min=0), default=0, help="Threads (default: all available).")
@config_options("train", only=DEVICE_SETTINGS)
@click.pass_context
def command(context: click.Context, /, out: Path, threads: int, **_: Any) -> None:
    """Teach a small built-in model 64 facts of chemistry, merge what it learned, and package it for Ollama.

    The exit status is 1 where the training loss did not come under its goal.
    """
    from ggtune.demo.run import run_demo
    from ggtune.pipeline import Progress

    with ending_on_signal(f"ggtune train --resume --out {out}"):
        reached = run_demo(out, threads=threads, settings=given_device_settings(context), reporter=Progress())
    if not reached:
        raise click.exceptions.Exit(1)
