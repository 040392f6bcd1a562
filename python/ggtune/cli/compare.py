"""``ggtune compare``."""

import shutil
from pathlib import Path

import click

from ggtune.cli.echo import say
from ggtune.cli.measuring import measure_options, measuring_options
from ggtune.cli.options import ConfigCommand


@click.command("compare", cls=ConfigCommand)
@click.argument("subjects", nargs=-1, required=True, metavar="A [B] [C] ...")
@measuring_options
@click.option("--sort-by", help="Score that rows are sorted by (default: f1; loss without answers).", metavar="NAME")
@click.option(
    "--rows",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Show so many that got better, and so many that got worse.",
)
@click.option(
    "--markdown", "markdown_file", type=click.Path(path_type=Path), help="Also write it as a page.", metavar="FILE"
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for comparison.json and comparison.md (default: comparison.json in the run's folder, or here).",
    metavar="FOLDER",
)
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    subjects: tuple[str, ...],
    sort_by: str | None,
    rows: int,
    markdown_file: Path | None,
    out: Path | None,
    as_json: bool,
    **_: object,
) -> None:
    """Say what got better and what got worse: A against B, and against C ...

    Each is a run folder, RUN@STEP (base, best, last, merged or a number), a model file, or MODEL.gguf+ADAPTER.gguf,
    where ADAPTER.gguf*0.5 has a factor. `ggtune compare RUN` compares the base of a run with its result, and with its
    merged model.

    All answer the same questions: those that the first run among them held out, or those of --data. What was measured
    before with the same settings (also by `ggtune eval`) is taken as it is. A difference is said where chance alone
    hardly explains it, with its 95 % interval.
    """
    from ggtune import pipeline
    from ggtune.evaluate.comparison_text import lines, markdown
    from ggtune.files import replace_text

    options = measure_options(context)
    reporter = pipeline.Reporter() if as_json else pipeline.Progress()
    try:
        found = pipeline.compare_subjects(subjects, out, options, by=sort_by, reporter=reporter)
    except KeyboardInterrupt:
        say("What was measured is kept: the same command goes on.", err=True)
        raise
    if markdown_file is not None:
        replace_text(markdown_file, markdown(found.comparison, rows=max(rows, 10)))
    if as_json:
        click.echo(found.file.read_text(encoding="utf-8"), nl=False)
        return
    first = found.evaluations[0]
    questions = f", {found.comparison.n_questions} questions answered" if found.comparison.n_questions else ""
    click.echo(f"\n{found.comparison.n_samples} samples of {first.data} ({first.split}){questions}\n")
    for line in lines(found.comparison, width=shutil.get_terminal_size((100, 24)).columns, rows=rows):
        click.echo(line)
    if found.worst is not None:
        for line in [*found.worst.lines(), ""]:
            click.echo(line)
    written = [str(found.file), *([str(markdown_file)] if markdown_file is not None else [])]
    click.echo(f"All rows: {' and '.join(written)}")
