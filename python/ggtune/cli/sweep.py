"""``ggtune sweep``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ggtune.cli.background import detach_option, start_detached
from ggtune.cli.echo import say
from ggtune.cli.options import ConfigCommand, config_options, given_settings, swept_options
from ggtune.cli.training import STATUSES, ending_on_signal, resume_command
from ggtune.sweep.space import SWEPT

if TYPE_CHECKING:
    from ggtune.sweep import SweepResult
    from ggtune.sweep.space import Axis

_ASKED_FROM_S = 900.0  # of what costs more, the user is asked before
# a sweep goes by the held-out loss, and its trials by it too
_FIXED = ("early_stop_metric",)


@click.command("sweep", cls=ConfigCommand, epilog=STATUSES)
@click.argument("data", required=False)
@swept_options(SWEPT)
@click.option("--trials", type=click.IntRange(min=2), help="Draw so many of the combinations, or from ranges.")
@click.option(
    "--reduction",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Leave trials early: one of so many goes on at each of its stages (1: all go to their end).",
)
@config_options("train", leave_out=("data", *SWEPT, *_FIXED))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for the trials and what comes of them."
)
@click.option("--resume", is_flag=True, help="Go on with the sweep in --out; options not given stay.")
@click.option("--overwrite", is_flag=True, help="Start anew in a folder that already holds a sweep.")
@click.option("--no-plot", is_flag=True, help="Draw no picture (which needs matplotlib).")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before what takes more than 15 minutes.")
@detach_option
@click.pass_context
def command(
    context: click.Context,
    /,
    data: str | None,
    out: Path,
    trials: int | None,
    reduction: int,
    resume: bool,
    overwrite: bool,
    no_plot: bool,
    yes: bool,
    detach: bool,
    **_: Any,
) -> None:
    """Try several learning rates, ranks or numbers of epochs on DATA, leaving the bad ones early.

    VALUES are one value, several as in --lr 1e-4,3e-4,1e-3, or with --trials a range to draw from: --lr 1e-5..1e-3.
    Without several of anything it is --lr 1e-4,3e-4,1e-3 --rank 8,16. Each trial is a run folder in --out, trained,
    measured and resumed as by `ggtune train`, with the same seed and held-out samples. What it will cost is said
    before; results.csv, results.json and sweep.png say what came of it.
    """
    from ggtune.extras import need
    from ggtune.pipeline import Progress
    from ggtune.sweep import SweepOptions, check_folder, check_same, moved, prepare, sweep

    given, axes = _given(context, data)
    sheet = check_folder(out, resume=resume, overwrite=overwrite)
    if sheet is None and (missing := [name for name in ("data", "model") if not given.get(name)]):
        raise click.UsageError(
            f"Missing {' and '.join('argument DATA' if n == 'data' else '--model' for n in missing)}."
        )
    if not no_plot:
        need("matplotlib", "report", "the plot of a sweep (--no-plot leaves it out)")
    if detach:
        start_detached(context, out)
        return
    reporter = Progress()
    if sheet is None:
        prepared = prepare(given, axes or _default_axes(given), n_trials=trials, factor=reduction, reporter=reporter)
        for line in prepared.lines:
            say(line)
        if not yes and (prepared.seconds or 0.0) > _ASKED_FROM_S and sys.stdin.isatty():
            click.confirm("Begin?", default=True, abort=True)
        sheet = prepared.sheet
    else:
        if trials is not None or context.get_parameter_source("reduction") is not ParameterSource.DEFAULT:
            raise click.UsageError("--trials and --reduction are settled when a sweep begins: leave them out.")
        check_same(sheet, given, axes)
        given = {**moved(sheet), **given}
    options = SweepOptions(overwrite=overwrite, listed=True, plot=not no_plot)
    with ending_on_signal(f"{resume_command(out)}"):
        result = sweep(sheet, out, options, reporter, given)
    end_of_sweep(result)


def end_of_sweep(result: "SweepResult") -> None:
    """Print the table and what to do next. The process ends with 1 where no trial came to anything."""
    from ggtune.sweep.telling import last_lines, table

    for line in (*table(result), *last_lines(result)):
        say(line)
    if result.best is None:
        raise click.exceptions.Exit(1)


def _given(context: click.Context, data: str | None) -> "tuple[dict[str, Any], list[Axis]]":
    """Return the settings that were given one value, and the axes."""
    from ggtune.sweep.space import parse_axis

    given = given_settings(context)
    if data:
        given["data"] = data
    axes = []
    for name in SWEPT:
        if name in given:
            axis = parse_axis(name, given.pop(name))
            if len(axis.values) == 1:
                given[name] = axis.values[0]
            else:
                axes.append(axis)
    return given, axes


def _default_axes(given: dict[str, Any]) -> "list[Axis]":
    from ggtune.sweep.space import DEFAULT, Axis

    left_out = {*given, *(("rank",) if given.get("from_adapter") else ())}
    return [Axis(name, values) for name, values in DEFAULT.items() if name not in left_out]
