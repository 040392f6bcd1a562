"""``ggtune eval-choice``."""

import json
from pathlib import Path

import click

from ggtune.cli.measuring_bar import bar


@click.command("eval-choice")
@click.argument("subjects", nargs=-1, required=True, metavar="A [B] [C] ...")
@click.option(
    "--tasks",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="File of questions (JSON lines, JSON or CSV); may be given more than once.",
    metavar="FILE",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(("arc", "hellaswag", "mmlu", "truthfulqa_mc1", "truthfulqa_mc2")),
    help="What the rows are like (default: told by their columns; TruthfulQA's have mc1 and mc2, mc1 is the default).",
)
@click.option(
    "--shots",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Solved questions that are shown in front of each.",
    metavar="N",
)
@click.option(
    "--examples",
    type=click.Path(path_type=Path),
    help="File whose first questions are shown (default: the first ones of the same file).",
    metavar="FILE",
)
@click.option(
    "--max-questions",
    type=click.IntRange(min=0),
    default=0,
    show_default="all",
    help="The first so many of each file.",
    metavar="N",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the log-probabilities of all choices, a file for each model and file of questions.",
    metavar="FOLDER",
)
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
@click.option("-t", "--threads", type=click.IntRange(min=0), default=0, help="Threads (default: all available).")
@click.option("--force", is_flag=True, help="Take an adapter that was trained on another base.")
def command(
    subjects: tuple[str, ...],
    tasks: tuple[Path, ...],
    format_name: str | None,
    shots: int,
    examples: Path | None,
    max_questions: int,
    out: Path | None,
    as_json: bool,
    threads: int,
    force: bool,
) -> None:
    """Score models on multiple-choice questions by the log-probability of each choice.

    Each of A, B ... is a run folder, RUN@STEP (base, best, last, merged or a number), a model file, or
    MODEL.gguf+ADAPTER.gguf. A run alone stands for its base and its result. All but the first are compared with it.

    The files have the rows of MMLU, ARC, HellaSwag or TruthfulQA as on the Hugging Face hub, or your own ones in one of
    these forms. Prompts, tokens and scores are those of EleutherAI's lm-evaluation-harness: acc counts the most
    probable choice, acc_norm the most probable one for its length; behind a score stands its standard error.
    """
    from ggtune import pipeline

    options = pipeline.ChoiceOptions(
        format=format_name or "",
        shots=shots,
        examples=examples,
        max_questions=max_questions,
        out=out,
        threads=threads,
        force=force,
    )
    reporter = pipeline.Reporter() if as_json else pipeline.Progress()
    with bar("questions") as done:
        found = pipeline.measure_choices(subjects, tasks, options, reporter, done=done)
    if as_json:
        click.echo(json.dumps([measured.to_dict() for measured in found], indent=2, ensure_ascii=False))
        return
    for measured in found:
        for line in measured.lines():
            click.echo(line)
    if out is not None:
        click.echo(f"Log-probabilities: {out}")
