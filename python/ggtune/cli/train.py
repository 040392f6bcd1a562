"""``ggtune train``."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggtune.cli.background import detach_option, start_detached
from ggtune.cli.echo import say
from ggtune.cli.options import ConfigCommand, config_options
from ggtune.cli.training import (
    STATUSES,
    claim_folder,
    earlier_settings,
    end_of_run,
    execute,
    find_checkpoint,
    resume_command,
    settings,
)
from ggtune.config import TrainConfig

if TYPE_CHECKING:
    from ggtune.run.checkpoint import Checkpoint
    from ggtune.run.outputs import Outputs


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
    outputs = claim_folder(out, resume=resume or checkpoint_in is not None, overwrite=overwrite)
    if detach:
        start_detached(context, out)
        return
    checkpoint = find_checkpoint(outputs, resume=resume, checkpoint_in=checkpoint_in)
    config = settings(context, "train", checkpoint, before=earlier_settings(outputs) if resume else None)
    train(config, outputs, checkpoint, overwrite=overwrite)


def train(config: TrainConfig, outputs: "Outputs", checkpoint: "Checkpoint | None", *, overwrite: bool = False) -> None:
    """Train; say where the adapter is, what can be done with it, and what did not go as it should."""
    out = outputs.adapter.parent
    result = execute(
        config,
        outputs,
        checkpoint,
        resume_hint=resume_command(out),
        overwrite=overwrite,
        command={"name": "train"},
    )
    say(f"Adapter: {result.adapter}")
    say(f'Try it:   ggtune ask --model {config.model} --lora {result.adapter} "..."')
    say(f"Merge it: ggtune export-lora {shlex.quote(str(out))} -o merged.gguf")
    if result.best_step not in (None, result.steps):
        say(f"          (the best held-out loss was that of step {result.best_step}, {result.best_held_out:.4f})")
    end_of_run(result)
