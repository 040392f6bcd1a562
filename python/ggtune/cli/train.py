"""``ggtune train``."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggtune.cli.background import detach_option, start_detached
from ggtune.cli.echo import say
from ggtune.cli.options import ConfigCommand, config_options
from ggtune.cli.training import STATUSES, end_of_run, ending_on_signal, resume_command, settings

if TYPE_CHECKING:
    from ggtune.train.result import Result


@click.command("train", cls=ConfigCommand, epilog=STATUSES)
@config_options("train")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out; options not given stay.")
@click.option("--checkpoint-in", type=click.Path(path_type=Path), help="Go on from this checkpoint instead.")
@click.option("--overwrite", is_flag=True, help="Start anew in a folder that already holds a run.")
@detach_option
@click.pass_context
def command(
    context: click.Context,
    /,
    out: Path,
    resume: bool,
    checkpoint_in: Path | None,
    overwrite: bool,
    detach: bool,
    **_: Any,
) -> None:
    """Train a LoRA adapter on questions and answers (CSV), <SFT> text or plain text.

    The folder --out gets adapter.gguf, metrics.jsonl (one JSON object per step), config.json and checkpoints.
    """
    from ggtune import pipeline
    from ggtune.run.job import read_settings

    outputs = pipeline.claim_folder(out, resume=resume or checkpoint_in is not None, overwrite=overwrite)
    if detach:
        start_detached(context, out)
        return
    reporter = pipeline.Progress()
    checkpoint = before = None
    if resume or checkpoint_in is not None:
        checkpoint = pipeline.find_checkpoint(outputs, checkpoint_in, reporter)
        before = read_settings(out / "config.json") if resume else None
    config = settings(context, "train", checkpoint, before=before)
    with ending_on_signal(resume_command(out)):
        result = pipeline.train(config, outputs, pipeline.TrainOptions(checkpoint, overwrite, listed=True), reporter)
    end_of_training(result, out)


def end_of_training(result: "Result", out: Path) -> None:
    """Say where the adapter is, what can be done with it, and what did not go as it should."""
    say(f"Adapter: {result.adapter}")
    say(f'Try it:   ggtune ask --model {result.config.model} --lora {result.adapter} "..."')
    say(f"Merge it: ggtune export-lora {shlex.quote(str(out))} -o merged.gguf")
    if result.best_step not in (None, result.steps):
        say(f"          (the best held-out loss was that of step {result.best_step}, {result.best_held_out:.4f})")
    end_of_run(result)
