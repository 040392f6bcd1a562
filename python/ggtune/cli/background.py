"""Jobs detached from the terminal."""

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

LOG = "log.txt"
_LOG_BYTES = 16 << 10  # what a start says, several times over
_FLAG = "--detach"
_F = TypeVar("_F", bound=Callable[..., Any])


def detach_option(function: _F) -> _F:
    """Give a command ``--detach``."""
    return click.option(_FLAG, is_flag=True, help=f"Run in the background, what it says going to {LOG} in the folder.")(
        function
    )


def start_detached(context: click.Context, out: Path) -> None:
    """Start the same command without ``--detach`` in a session of its own; return when its training has begun.

    Where it ends before that, its output is shown and its exit status is this process's.
    """
    from ggtune.cli import ARGUMENTS
    from ggtune.files import check_space
    from ggtune.run.lock import holder_of
    from ggtune.run.outputs import Outputs

    arguments = [part for part in context.meta[ARGUMENTS] if part != _FLAG]
    log = out / LOG
    check_space(log, _LOG_BYTES)  # else nobody would learn what goes wrong
    made = [folder for folder in [out, *out.parents] if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        start = file.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "ggtune", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    lock = Outputs.folder(out).lock
    while process.poll() is None:
        holder = holder_of(lock)
        if holder is not None and holder.pid == process.pid:
            process.returncode = 0  # it outlives this process, which has not to wait for it
            click.echo(f"Started in the background: process {holder.pid}, log {log}")
            folder = shlex.quote(str(out))
            for what, name in (("How it is doing:", "status"), ("Follow it:", "watch"), ("End it:", "stop")):
                click.echo(f"{what} ggtune {name} {folder}")
            return
        time.sleep(0.05)
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode("utf-8", "replace")
    if process.returncode:
        _remove_traces(log, start, made)
    click.echo(text, nl=False, err=process.returncode != 0)
    raise click.exceptions.Exit(process.returncode if process.returncode >= 0 else 128 - process.returncode)


def _remove_traces(log: Path, start: int, made: list[Path]) -> None:
    """Leave nothing of a job that did not begin."""
    if not start:
        log.unlink(missing_ok=True)
    for folder in made:
        try:
            folder.rmdir()
        except OSError:  # something else is in it
            return
