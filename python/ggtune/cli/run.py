"""``ggtune run``."""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggtune.cli.background import detach_option, start_detached
from ggtune.cli.echo import say
from ggtune.cli.options import ConfigCommand, config_options, tune_option, which_option
from ggtune.cli.training import STATUSES, end_of_run, ending_on_signal, resume_command, settings

if TYPE_CHECKING:
    from ggtune.pipeline import RunResult
    from ggtune.train.chosen import Which


@click.command("run", cls=ConfigCommand, epilog=STATUSES)
@click.argument("data", required=False)
@config_options("train", leave_out=("data",))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for everything.")
@click.option("--name", help="Name in Ollama (default: the name of --out).")
@click.option("--store", type=click.Path(path_type=Path), help="Also put the model into this Ollama store.")
@click.option(
    "--outtype",
    help="Type of the merged tensors: same (each one's own, the default), auto (raised where that loses too much), or "
    "one for all, such as q8_0 or f16.",
    metavar="TYPE",
)
@tune_option
@click.option("--no-merge", is_flag=True, help="Package the base with the adapter beside it, not a merged model.")
@which_option
@click.option(
    "--questions",
    help="Questions that base and result are asked, to show what has changed: a number of held-out rows, a file with a "
    "question on each line (.txt) or with answers (any data format), or 0 for none.  [default: 5]",
    metavar="HOW",
)
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="At the end say what the training has broken (perplexity of a general text, general questions) and what is "
    "wrong with the run.",
)
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out; options not given stay.")
@click.option("--overwrite", is_flag=True, help="Start anew in a folder that already holds a run.")
@detach_option
@click.pass_context
def command(
    context: click.Context,
    /,
    data: str | None,
    out: Path,
    name: str | None,
    store: Path | None,
    outtype: str | None,
    tune_seconds: float | None,
    no_merge: bool,
    which: "Which",
    questions: str | None,
    check: bool,
    resume: bool,
    overwrite: bool,
    detach: bool,
    **_: Any,
) -> None:
    """Train on the questions and answers in DATA, merge, and package: a model for Ollama in one go.

    The folder --out gets adapter.gguf, model.gguf (the merged model) and proof.json (what it has kept of the adapter),
    both not with --no-merge, Modelfile, metrics.jsonl, before_after.jsonl (the --questions and their answers),
    general.json and diagnosis.json (the --check) and checkpoints.
    """
    from ggtune import pipeline
    from ggtune.evaluate.before_after import DEFAULT_QUESTIONS, OPTION
    from ggtune.gguf.merge import check_outtype
    from ggtune.ollama.names import ModelName
    from ggtune.run.job import read_settings
    from ggtune.train.fixed_questions import number_or_file

    check_outtype(outtype)
    if no_merge and outtype is not None:
        raise click.UsageError("--outtype is a type of merged tensors: leave it out with --no-merge.")
    if no_merge and tune_seconds:
        raise click.UsageError("--tune-seconds is for the scales of a merged file: leave it out with --no-merge.")
    name = name or re.sub(r"[^a-z0-9_.-]+", "-", out.resolve().name.lower()).strip("-.") or "model"
    ModelName.parse(name)
    if questions is not None:
        number_or_file(questions, OPTION)  # before a process is detached
    outputs = pipeline.claim_folder(out, resume=resume, overwrite=overwrite)
    if detach:
        start_detached(context, out)
        return
    reporter = pipeline.Progress()
    checkpoint = pipeline.find_checkpoint(outputs, reporter=reporter) if resume else None
    before = read_settings(out / "config.json") if resume else None
    config = settings(context, "train", checkpoint, before=before)
    questions = questions or (pipeline.questions_of_run(out) if resume else None) or DEFAULT_QUESTIONS
    packaging = pipeline.Packaging(
        name,
        store,
        outtype,
        which,
        merge=not no_merge,
        questions=questions,
        check=check,
        tune_seconds=tune_seconds,
    )
    options = pipeline.TrainOptions(checkpoint, overwrite, listed=True)
    with ending_on_signal(resume_command(out)):
        result = pipeline.run(config, outputs, packaging, options, reporter)
    end_of_chain(result, out)


def end_of_chain(result: "RunResult", out: Path) -> None:
    """Say what was packaged and what did not go as it should. The process ends with 1 after a merge that is not good.

    A run that has diverged is not packaged.
    """
    from ggtune.evaluate.diagnosis import MERGE

    training, adapter = result.training, result.adapter
    if adapter is None:
        say(f"Nothing is packaged. The adapter of the last step: {training.adapter}")
        end_of_run(training, result.checked.findings)
        return
    if result.asked is not None:
        for line in [*result.asked.lines(width=shutil.get_terminal_size((100, 24)).columns), ""]:
            say(line)
    if result.worst is not None and (line := result.worst.line()):
        say(line)
    if result.checked.general is not None:
        for line in result.checked.general.lines():
            say(line[:1].upper() + line[1:])
    say(str(result.package))
    asked = str(result.merged or f"{training.config.model} --lora {adapter.path}")
    say(f'Or without Ollama: ggtune ask --model {asked} "..."')
    if result.merged is None and (there := out / "model.gguf").exists():
        say(f"{there} was there before and is not of this training.")
    advice = result.merge.advice() if result.merge is not None else []
    for line in advice:
        say(line)
    # a merge that is not good has its advice already
    end_of_run(training, [found for found in result.checked.findings if not advice or found.kind != MERGE])
    if advice:
        raise click.exceptions.Exit(1)
