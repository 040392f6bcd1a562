"""``ggtune status``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ggtune.run.status import RunStatus


@click.command("status")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one object for RUN, else a list of all.")
def command(run: Path | None, as_json: bool) -> None:
    """Say how the run in the folder RUN is doing, or all runs of this user."""
    from ggtune.errors import GgtuneError
    from ggtune.run.registry import known_runs
    from ggtune.run.status import read_status

    if as_json:
        found = read_status(run).to_dict() if run is not None else _all(known_runs())
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    if run is not None:
        for line in [*details(read_status(run)), *_outlook(run)]:
            click.echo(line)
        return
    runs = known_runs()
    if not runs:
        click.echo("No runs are known.")
    for folder in runs:
        try:
            click.echo(f"{folder}: {summary(read_status(folder))}")
        except GgtuneError as error:
            click.echo(str(error))


def _all(folders: Sequence[Path]) -> list[dict[str, Any]]:
    from ggtune.errors import GgtuneError
    from ggtune.run.status import read_status

    found: list[dict[str, Any]] = []
    for folder in folders:
        try:
            found.append(read_status(folder).to_dict())
        except GgtuneError as error:
            found.append({"folder": str(folder), "error": str(error)})
    return found


def _outlook(run: Path) -> list[str]:
    """Say what going on is worth, as far as the held-out losses tell."""
    from ggtune.board.live import LiveRun

    seen = LiveRun(run)
    while seen.look():
        pass
    return seen.forecast()


def summary(status: "RunStatus") -> str:
    """Put it on one line."""
    from ggtune.run.progress import format_duration
    from ggtune.system import format_bytes

    total = f"/{status.total_steps}" if status.total_steps else ""
    parts = [status.state, f"step {status.step}{total}", f"epoch {status.epoch:.2f}"]
    parts += [f"loss {status.loss:.4f}"] if status.loss is not None else []
    if status.trend is not None:
        parts.append(f"{100 * status.trend:+.1f} % over {status.trend_steps} steps")
    parts += [f"held-out {status.held_out_loss:.4f}"] if status.held_out_loss is not None else []
    parts += [f"ETA {format_duration(status.eta_s)}"] if status.eta_s is not None else []
    parts += [f"memory {format_bytes(status.memory_bytes)}"] if status.memory_bytes is not None else []
    return "  ".join(parts) + (f"  ({status.reason})" if status.reason else "")


def details(status: "RunStatus") -> list[str]:
    """Say all of it."""
    from ggtune.run.progress import format_duration
    from ggtune.system import format_bytes

    alive = f", process {status.pid}" if status.pid else ""
    lines = [f"{status.folder}: {status.state}{alive}" + (f": {status.reason}" if status.reason else "")]
    total = f" of {status.total_steps}" if status.total_steps else ""
    lines.append(
        f"Step {status.step}{total}, epoch {status.epoch:.2f}, {format_duration(status.elapsed_s)} of training"
    )
    if status.loss is not None and status.smoothed_loss is not None:
        trend = ""
        if status.trend is not None:
            trend = f", {100 * status.trend:+.1f} % over the last {status.trend_steps} steps"
        lines.append(f"Loss {status.loss:.4f}, smoothed {status.smoothed_loss:.4f}{trend}")
    if status.held_out_loss is not None:
        lines.append(f"Held-out loss {status.held_out_loss:.4f}")
    if status.eta_s is not None:
        lines.append(f"ETA {format_duration(status.eta_s)}")
    if status.memory_bytes is not None:
        lines.append(f"Memory {format_bytes(status.memory_bytes)}")
    if status.devices:
        lines.append(f"Layers {status.layers_text}")
    if status.idle_s is not None:
        lines.append(f"Last step {format_duration(status.idle_s)} ago")
    return lines
