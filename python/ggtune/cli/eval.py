"""``ggtune eval``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggtune.cli.echo import say
from ggtune.cli.measuring import measure_options, measuring_options
from ggtune.cli.options import ConfigCommand

if TYPE_CHECKING:
    from ggtune.evaluate.evaluation import Evaluation

_MOST_CATEGORIES = 20


@click.command("eval", cls=ConfigCommand)
@click.argument("subject")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the files (default: evaluation/NAME in the run's folder, or here).",
    metavar="FOLDER",
)
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
@measuring_options
@click.pass_context
def command(context: click.Context, /, *, subject: str, out: Path | None, as_json: bool, **_: object) -> None:
    """Say how good a model is on questions whose answers are known.

    SUBJECT is a run folder, RUN@STEP (base, best, last, merged or a number), a model file, or MODEL.gguf+ADAPTER.gguf,
    where ADAPTER.gguf*0.5 has a factor. A run is measured on the samples that it held out, asked as it was trained; a
    run that still goes on by its newest checkpoint.

    Loss, perplexity and token accuracy are those of the reference answers; all else is of answers that the model gives.
    In brackets stands what other questions of the same kind may well give (95 % interval). Answers and their scores
    are written to answers.jsonl. What was interrupted goes on with the same command.
    """
    from ggtune import pipeline

    options = measure_options(context)
    reporter = pipeline.Reporter() if as_json else pipeline.Progress()
    try:
        evaluation = pipeline.evaluate(subject, out, options, reporter)
    except KeyboardInterrupt:
        say("What was measured is kept: the same command goes on.", err=True)
        raise
    if as_json:
        click.echo(json.dumps(evaluation.to_dict(), indent=2, ensure_ascii=False))
        return
    _show(evaluation)


def _show(evaluation: "Evaluation") -> None:
    from ggtune.evaluate.error_kinds import error_summary

    n, asked = evaluation.n_samples, evaluation.n_questions
    questions = f", {asked} questions answered" if asked else ""
    click.echo(f"{evaluation.label} on {evaluation.data} ({evaluation.split}): {n} samples{questions}")
    for line in evaluation.table():
        click.echo(line)
    for line in _by_category(evaluation):
        click.echo(line)
    if n < 2:
        click.echo("One sample says nothing about others: there is no interval.")
    answered = [one.to_dict() for one in evaluation.answers() if one.answer is not None and not one.repeated]
    for line in error_summary(answered).lines():
        click.echo(line)
    click.echo(f"Answers: {evaluation.folder}/answers.jsonl ({evaluation.seconds:.0f} s)")


def _by_category(evaluation: "Evaluation") -> list[str]:
    """One score of each category, where the data have some and they are not too many to be read."""
    from ggtune.evaluate.evaluation_scores import by_category
    from ggtune.scores.metrics import METRICS

    name = next((name for name in ("f1", "loss") if name in evaluation.scores), None)
    found = by_category(evaluation.answers(), name, seed=evaluation.settings["seed"]) if name is not None else {}
    if name is None or not 1 < len(found) <= _MOST_CATEGORIES:
        return []
    width = max(len(f"{category} ({n})") for category, (n, _) in found.items())
    lines = [
        f"  {f'{category} ({n})':<{width}}  {estimate.text(METRICS[name].digits)}"
        for category, (n, estimate) in found.items()
    ]
    return [f"{METRICS[name].title} by category:", *lines]
