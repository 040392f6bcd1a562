"""``ggtune preview``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggtune.cli.options import DATA_SETTINGS, ConfigCommand, config_options
from ggtune.cli.training import settings

if TYPE_CHECKING:
    from ggtune.data.preview import Run, SampleView


@click.command("preview", cls=ConfigCommand)
@config_options("train", only=DATA_SETTINGS, leave_out=("holdout", "seed"))
@click.option("-n", "count", type=click.IntRange(min=1), default=3, show_default=True, help="Samples to show.")
@click.option(
    "--rows",
    help="Show these instead: rows or lines of the data, separated by commas; FILE:ROW for one of several files.",
)
@click.option("--html", "html_file", type=click.Path(path_type=Path), help="Write a web page instead.")
@click.pass_context
def command(context: click.Context, /, count: int, rows: str | None, html_file: Path | None, **_: object) -> None:
    """Show samples as they will be trained on.

    What is learned is in colour, with its weight where that is not 1; special tokens are framed; the rest is what the
    model is given. The options are those of `train`.
    """
    import numpy as np

    from ggtune._native import core
    from ggtune.data.preview import page, samples_of_row, view_of
    from ggtune.errors import DataError
    from ggtune.files import replace_text
    from ggtune.train.samples import load_data

    config = settings(context, "train", None)
    model = core.Model(config.model, vocab_only=True)
    data = load_data(config, model)
    chosen = list(range(min(count, len(data.samples))))
    if rows is not None:
        chosen, missing = [], []
        for file, row in _numbers(rows):
            numbers = data.report.numbers_of(row, file)
            places = [np.flatnonzero(data.samples.rows == number)[:1].tolist() for number in numbers]
            chosen += [i for place in places if place for i in samples_of_row(data, place[0])]
            if not any(places):
                missing.append(f"{file}:{row}" if file else str(row))
        if missing:
            raise DataError(f"{config.data}: there is no sample of {data.report.unit} {', '.join(missing)}.")
    views = [view_of(data, i, model) for i in chosen]
    names = [data.report.where(one.row) for one in views]
    if html_file is not None:
        title = f"{Path(config.data).name} for {Path(config.model).name}"
        replace_text(html_file, page(title, data.report.lines(), views, names))
        click.echo(f"{html_file}: {len(views)} samples")
        return
    for line in data.report.lines():
        click.echo(f"Data: {line}")
    click.echo("In colour: learned. In brackets, reversed: special tokens.")
    for one, name in zip(views, names, strict=True):
        _show(one, name)


def _numbers(text: str) -> list[tuple[str, int]]:
    """Files ("" where none is named) and rows."""
    found = [part.strip().rpartition(":") for part in text.split(",")]
    try:
        return [(file, int(row)) for file, _, row in found]
    except ValueError as error:
        raise click.BadParameter(
            "give numbers separated by commas, or FILE:NUMBER for a row of one of several files", param_hint="--rows"
        ) from error


def _show(one: "SampleView", name: str) -> None:
    click.echo()
    click.secho(one.title(name), bold=True)
    for run in one.runs:
        click.echo(_styled(run), nl=False)
    click.echo()


def _styled(run: "Run") -> str:
    colour = None if run.weight == 0 else "green" if run.weight == 1 else "yellow"
    weight = f"({run.weight:g})" if run.weight not in (0, 1) else ""
    if run.special:
        return click.style(f"[{run.text}]{weight}", fg=colour, reverse=True)
    return click.style(run.text + weight, fg=colour, dim=True if run.weight == 0 else None)
