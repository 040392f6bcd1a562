"""``ggtune ask``."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggtune.cli.options import config_options, given_device_settings
from ggtune.config import DEVICE_SETTINGS

if TYPE_CHECKING:
    from ggtune.pipeline import LoadedModel


@click.command("ask")
@click.argument("question", required=False)
@click.option("-m", "--model", required=True, help="Model, a GGUF file.", metavar="FILE")
@click.option("--lora", help="Adapter to ask it with.", metavar="FILE")
@click.option(
    "--file",
    "questions",
    help="File of questions: a text with one on each line, or data as train takes them.",
    metavar="FILE",
)
@click.option("--chat", is_flag=True, help="Talk: each question is asked with all that was said before.")
@click.option("--json", "as_json", is_flag=True, help="Answers as lines of JSON.")
@click.option(
    "--template",
    help="Prompt template (default: the one of the training, else the model's own, else plain).",
    metavar="NAME",
)
@click.option("--system", help="System text (default: the one of the training).", metavar="TEXT")
@click.option("--temp", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: the likeliest answer.")
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Longest answer.")
@click.option(
    "-s", "--seed", type=int, default=0, show_default=True, help="Seed of the choice where --temp is above 0."
)
@click.option("-t", "--threads", type=click.IntRange(min=0), default=0, help="Threads (default: all available).")
@click.option("--force", is_flag=True, help="Take an adapter that was trained on another base all the same.")
@config_options("train", only=DEVICE_SETTINGS)
@click.pass_context
def command(
    context: click.Context,
    /,
    question: str | None,
    model: str,
    lora: str | None,
    questions: str | None,
    chat: bool,
    as_json: bool,
    template: str | None,
    system: str | None,
    temp: float,
    max_tokens: int,
    seed: int,
    threads: int,
    force: bool,
    **_: Any,
) -> None:
    """Ask a model one QUESTION; the answer is shown as it comes.

    The QUESTION - stands for the lines of standard input. These, and those of --file, are computed side by side, which
    is several times as fast as one after another; each is answered as if it were asked alone.
    """
    if sum((question is not None, questions is not None, chat)) != 1:
        raise click.UsageError("give a QUESTION (- for standard input), --file or --chat")
    from ggtune import pipeline

    options = pipeline.AskOptions(
        adapter=lora,
        template=template,
        system=system,
        temperature=temp,
        max_tokens=max_tokens,
        seed=seed,
        threads=threads,
        devices=given_device_settings(context),
        force=force,
    )
    asked = [] if chat else _asked(question, questions)
    loaded = pipeline.load(model, options)
    for warning in loaded.warnings:
        click.echo(warning, err=True)
    if chat:
        from ggtune.cli.chat import talk

        talk(loaded.chat(), as_json=as_json)
    elif question is not None and question != "-" and not as_json:
        for piece in loaded.pieces(question):
            click.echo(piece, nl=False)
        click.echo()
    else:
        _answer_all(loaded, asked, as_json)


def _asked(question: str | None, questions: str | None) -> list[str]:
    """All questions: the one, those of standard input, or those of a file."""
    from ggtune.data.question_file import question_lines, questions_in
    from ggtune.data.readers.reader import ReadOptions
    from ggtune.errors import DataError

    if questions is not None:
        name, asked = questions, [text for _, text, _ in questions_in(Path(questions), ReadOptions())]
    elif question is not None and question != "-":
        return [question]
    else:
        name = "standard input"
        asked = [text for _, text, _ in question_lines(sys.stdin.buffer.read(), name)]
    if not asked:
        raise DataError(f"{name}: there is no question in it")
    return asked


def _answer_all(loaded: "LoadedModel", asked: list[str], as_json: bool) -> None:
    from ggtune.errors import GgtuneError

    n_failed = 0
    for question, answer in zip(asked, loaded.answers(asked), strict=True):
        failed = isinstance(answer, GgtuneError)
        n_failed += failed
        if as_json:
            told = (
                {"error": str(answer)}
                if isinstance(answer, GgtuneError)
                else {"answer": answer.text.strip(), "ended": answer.ended, "n_tokens": len(answer.tokens)}
            )
            click.echo(json.dumps({"question": question, **told}, ensure_ascii=False))
        elif isinstance(answer, GgtuneError):
            click.echo(f"> {question[:200]}")
            click.echo(f"Error: {answer}\n", err=True)
        else:
            click.echo(f"> {question}\n{answer.text.strip()}\n")
        sys.stdout.flush()
    if n_failed:
        raise GgtuneError(f"{n_failed} of {len(asked)} questions could not be asked")
