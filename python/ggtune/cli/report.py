"""``ggtune report``."""

from pathlib import Path

import click


@click.command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="The page to write (default: report.html, in the folder of a single run, else here).",
    metavar="FILE.html",
)
@click.option("--title", default="", help="Its title (default: the names of the runs).", metavar="TEXT")
@click.option("--png", is_flag=True, help="Write each figure as a picture beside it, too.")
@click.option("--markdown", is_flag=True, help="Write it as Markdown beside it, too, with its pictures.")
@click.option("--overwrite", is_flag=True, help="Overwrite files that no report has written.")
def command(runs: tuple[Path, ...], out: Path | None, title: str, png: bool, markdown: bool, overwrite: bool) -> None:
    """Write one web page about the run in the folder RUN, or about several side by side.

    It needs no network and no other file: curves, findings and what to try next, scores with their intervals, answers
    before and after, the data, the settings. A run may still be going. An earlier report is overwritten.
    """
    from ggtune.pipeline.reporting import ReportOptions, report

    for path in report(runs, ReportOptions(out, title, png=png, markdown=markdown, overwrite=overwrite)):
        click.echo(path)
