"""``ggtune export-lora``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggtune.cli.options import tune_option, which_option

if TYPE_CHECKING:
    from ggtune.evaluate.proved_merge import ProvedMerge
    from ggtune.train.chosen import Which


@click.command("export-lora")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("-m", "--model-base", help="Base model, a GGUF file (default: the one of RUN).", metavar="FILE")
@click.option("-l", "--lora", multiple=True, help="Adapter to merge; may be given more than once.", metavar="FILE")
@click.option(
    "-s",
    "--lora-scaled",
    multiple=True,
    type=(str, float),
    help="Adapter with a factor of its own.",
    metavar="FILE SCALE",
)
@click.option("-o", "--model-out", required=True, help="File to write.", metavar="FILE")
@click.option("-t", "--threads", type=click.IntRange(min=0), default=0, help="Threads (default: all available).")
@click.option(
    "--outtype",
    help="Type of the merged tensors: same (each one's own, the default), auto (raised where that loses too much; "
    "needs RUN), or one for all, such as q8_0 or f16.",
    metavar="TYPE",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the rounding.")
@click.option(
    "--fit/--no-fit",
    default=True,
    help="After rounding, fit scales to what the layers read of a text (the default): the base is loaded for that.",
)
@tune_option
@click.option("--name", help="Name that the model file carries.")
@which_option
@click.option("--force", is_flag=True, help="Take an adapter that was trained on another base.")
def command(
    run: Path | None,
    model_base: str | None,
    lora: tuple[str, ...],
    lora_scaled: tuple[tuple[str, float], ...],
    model_out: str,
    threads: int,
    outtype: str | None,
    seed: int,
    fit: bool,
    tune_seconds: float | None,
    name: str | None,
    which: "Which",
    force: bool,
) -> None:
    """Merge one or more adapters into their base model, whose tensor types and other contents are kept.

    RUN is the folder of a training: its base, its adapter, and a proof on its samples of what the merged file has kept.
    Without RUN, `ggtune verify` gives that proof.
    """
    from ggtune import pipeline
    from ggtune.gguf.merge import AUTO, check_outtype

    check_outtype(outtype)
    adapters = [(path, 1.0) for path in lora] + list(lora_scaled)
    options = pipeline.MergeOptions(outtype, seed, fit, tune_seconds, name, threads, force)
    if run is not None:
        if model_base or adapters:
            raise click.UsageError("RUN names base and adapter: leave --model-base, --lora and --lora-scaled out.")
        merge = pipeline.merge_run(run, model_out, options, which=which, reporter=pipeline.Progress()).merge
        _say(model_out, merge)
        if not merge.good:
            raise click.exceptions.Exit(1)
        return
    if not model_base:
        raise click.UsageError("Missing argument 'RUN' or option '--model-base'.")
    if not adapters:
        raise click.UsageError("Missing option '--lora' (or '--lora-scaled').")
    if outtype == AUTO:
        raise click.UsageError("--outtype auto needs samples to measure on: give the folder of the training, RUN.")
    if tune_seconds:
        raise click.UsageError("--tune-seconds needs samples to tune by: give the folder of the training, RUN.")
    _say(model_out, pipeline.merge(model_base, adapters, model_out, options, reporter=pipeline.Progress()))


def _say(output: str, merge: "ProvedMerge") -> None:
    from ggtune.gguf.merge import retyped
    from ggtune.system import format_bytes

    counts, changes = merge.counts, retyped(merge.counts)
    click.echo(
        f"Wrote {output}: {format_bytes(counts['n_bytes'])}, {counts['n_merged_tensors']} of {counts['n_tensors']} "
        "tensors merged" + (f"; {changes}" if changes else "")
    )
    if merge.proof is not None:
        click.echo(merge.proof.line())
    for line in merge.advice():
        click.echo(line)
