"""``ggtune eval-general``."""

import json
from pathlib import Path

import click

from ggtune.cli.measuring_bar import bar


@click.command("eval-general")
@click.argument("subjects", nargs=-1, required=True, metavar="A [B] [C] ...")
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="Plain text to measure the perplexity on (default: a built-in one of 2,000 words).",
    metavar="FILE",
)
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
@click.option("-t", "--threads", type=click.IntRange(min=0), default=0, help="Threads (default: all available).")
@click.option("--force", is_flag=True, help="Take an adapter that was trained on another base.")
def command(subjects: tuple[str, ...], text: Path | None, as_json: bool, threads: int, force: bool) -> None:
    """Say what a training has done to the rest: a general text, and 40 general questions with four choices each.

    Each of A, B ... is a run folder, RUN@STEP (base, best, last, merged or a number), a model file, or
    MODEL.gguf+ADAPTER.gguf. A run alone stands for its base and its result. All but the first are compared with it,
    window by window and question by question, with 95 % intervals.
    """
    from ggtune import pipeline

    reporter = pipeline.Reporter() if as_json else pipeline.Progress()
    with bar("windows and questions") as done:
        found = pipeline.measure_on_general(
            subjects, pipeline.GeneralOptions(text, threads, force), reporter, done=done
        )
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return
    for line in found.lines():
        click.echo(line)
