"""``ggtune board``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ggtune.board.server import Board

PORT = 8765


@click.command("board")
@click.argument("folders", metavar="[FOLDER]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="Where to listen; 0: any free port."
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at. Any but this machine's own loopback lets others read your runs.",
)
@click.option("--allow-stop", is_flag=True, help="Let who has the printed address stop runs; else it only shows.")
@click.option("--open", "open_", is_flag=True, help="Open it in the browser.")
def command(folders: tuple[Path, ...], port: int, host: str, allow_stop: bool, open_: bool) -> None:
    """Show runs as a web page: those below each FOLDER, or your known ones and those below the current folder.

    State, progress, curves, answers that a run has sampled of itself, warnings, and what is new as it comes. It needs
    no network. Ctrl-C ends the board, not the runs.
    """
    from ggtune.errors import GgtuneError
    from ggtune.extras import need

    for package in ("starlette", "uvicorn", "matplotlib"):
        need(package, "board", "ggtune board")
    from ggtune.board.guard import new_token
    from ggtune.board.server import Board

    for folder in folders:
        if not folder.is_dir():
            raise GgtuneError(f"{folder}: there is no such folder. Give a run folder, or a folder with some below it.")
    try:
        with Board(folders, host, port, new_token() if allow_stop else None) as board:
            _announce(board)
            if open_:
                _open(board)
            while not board.wait(3600.0):
                pass
        raise GgtuneError("the board's server has ended by itself. Start it again; please report it if that recurs.")
    except KeyboardInterrupt as interruption:
        if type(interruption) is not KeyboardInterrupt:  # SIGTERM, SIGHUP
            raise
        click.echo("The board has ended; runs go on.")


def _announce(board: "Board") -> None:
    click.echo(f"The board is at {board.stop_url}")
    if board.token is not None:
        click.echo("Who has this address can stop your runs. Without the part from # on it only shows.")
    if board.is_open_to_others:
        click.echo(
            f"warning: it listens at {board.host}: everybody who reaches this machine can read your runs, data and "
            "answers in them included, and the connection is not encrypted. On a machine elsewhere rather leave out "
            f"--host, and look at it through a tunnel: ssh -L {board.port}:127.0.0.1:{board.port} MACHINE",
            err=True,
        )
    click.echo("Ctrl-C ends it.")


def _open(board: "Board") -> None:
    from ggtune.board.opening import open_in_browser

    if not open_in_browser(board.stop_url, secret=board.token is not None):
        click.echo("No browser could be started: open the address yourself.", err=True)
