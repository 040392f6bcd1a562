"""``ggtune finetune``: llama.cpp's old command line on the same trainer as ``train``."""

import codecs
from pathlib import Path
from typing import Any

import click

from ggtune.cli.echo import say
from ggtune.cli.old_flags import lost_flags
from ggtune.cli.options import ConfigCommand, config_options
from ggtune.cli.training import STATUSES, end_of_run, ending_on_signal, settings
from ggtune.errors import GgtuneError


@click.command("finetune", cls=ConfigCommand, epilog=STATUSES)
@config_options("finetune", leave_out=("from_adapter",))
@click.option("--lora-out", default="ggml-lora-ITERATION-f32.gguf", show_default=True, help="Adapter file to write.")
@click.option(
    "--checkpoint-out", default="checkpoint-ITERATION.gguf", show_default=True, help="Checkpoint files to write."
)
@click.option(
    "--checkpoint-in",
    type=click.Path(path_type=Path),
    help="Checkpoint to go on from (default: the LATEST one of --checkpoint-out where it exists).",
)
@click.option("--pattern-fn-it", default="ITERATION", show_default=True, help="Stands for the step in file names.")
@click.option("--fn-latest", default="LATEST", show_default=True, help="Replaces it in the name of the newest copy.")
@click.option("--only-write-lora", is_flag=True, help="Only turn --checkpoint-in into an adapter file.")
@click.option("--escape", is_flag=True, help=r"Read \n, \t, \\ and such in --sample-start.")
@click.option("--separate-with-eos", is_flag=True, expose_value=False, help="Always done: an end token per sample.")
@click.option("--separate-with-bos", is_flag=True, expose_value=False, help="Done where the model asks for it.")
@click.option("--grad-acc", type=int, default=1, show_default=True, help="Multiplies --batch.")
@click.option("--adam-min-alpha", type=float, default=0.0, show_default=True, help="Lowest learning rate.")
@lost_flags
@click.pass_context
def command(context: click.Context, /, **options: Any) -> None:
    """Train with the flags and defaults of llama.cpp's old finetune.

    The adapter that it writes is for `ggtune export-lora`, `ggtune ask --lora` and llama.cpp's own --lora.
    """
    from ggtune import pipeline

    outputs = _outputs(options)
    if options["only_write_lora"]:
        _only_write_lora(options, outputs)
        return
    latest = outputs.latest_of(outputs.checkpoint)
    given: Path | None = options["checkpoint_in"]
    checkpoint_in = given or (latest if latest is not None and latest.exists() else None)
    reporter = pipeline.Progress()
    checkpoint = pipeline.find_checkpoint(outputs, checkpoint_in, reporter) if checkpoint_in is not None else None
    if checkpoint is not None and given is None:
        say(f"(To start anew instead, remove {checkpoint_in} or give another --checkpoint-out.)")
    config = settings(context, "finetune", checkpoint, **_translated(options))
    with ending_on_signal("the same command with that file for --checkpoint-in"):
        result = pipeline.train(config, outputs, pipeline.TrainOptions(checkpoint), reporter)
    say(f"Adapter: {result.adapter}")
    end_of_run(result)


def _translated(options: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that old flags stand for and no option of the same name does."""
    settings: dict[str, Any] = {}
    if options["escape"] and options["sample_start"]:
        try:
            settings["sample_start"] = codecs.decode(
                options["sample_start"].encode("latin-1", "backslashreplace"), "unicode_escape"
            )
        except UnicodeDecodeError as error:
            raise GgtuneError(f"--sample-start has a wrong escape: {error.reason}") from error
    if options["grad_acc"] < 1:
        raise GgtuneError(f"--grad-acc must be at least 1 (it is {options['grad_acc']})")
    if options["grad_acc"] > 1:
        settings["batch"] = options["batch"] * options["grad_acc"]
    if options["adam_min_alpha"] > 0:
        # llama.cpp's learning_schedule(): min + shape * (1 - min), the shape's own floor being --cos-decay-min
        floor = min(1.0, options["adam_min_alpha"] / options["lr"])
        settings["min_lr_ratio"] = floor + options["min_lr_ratio"] * (1 - floor)
    return settings


def _outputs(options: dict[str, Any]) -> Any:
    from ggtune.run.outputs import Outputs

    adapter, checkpoint = (
        Path(options[name].replace(options["pattern_fn_it"], "ITERATION")) for name in ("lora_out", "checkpoint_out")
    )
    return Outputs(
        adapter=adapter,
        checkpoint=checkpoint,
        metrics=adapter.with_name(adapter.name.replace("ITERATION", options["fn_latest"]) + ".metrics.jsonl"),
        latest=options["fn_latest"],
    )


def _only_write_lora(options: dict[str, Any], outputs: Any) -> None:
    from ggtune.gguf.adapter_file import write_adapter
    from ggtune.run.checkpoint import load_checkpoint
    from ggtune.run.outputs import Outputs
    from ggtune.train.session import check_same_model

    path = options["checkpoint_in"] or outputs.latest_of(outputs.checkpoint)
    if path is None:
        raise click.UsageError("--only-write-lora needs --checkpoint-in.")
    checkpoint = load_checkpoint(path)
    if options["model"]:
        check_same_model(options["model"], checkpoint.state)
    adapter = Outputs.at_step(outputs.adapter, checkpoint.state.step)
    write_adapter(adapter, checkpoint.adapter)
    say(f"Adapter of step {checkpoint.state.step}: {adapter}")
