"""``ggtune export-lora``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggtune.cli.options import which_option

if TYPE_CHECKING:
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
    name: str | None,
    which: "Which",
    force: bool,
) -> None:
    """Merge one or more adapters into their base model, whose tensor types and other contents are kept.

    RUN is the folder of a training: its base, its adapter, and a proof on its samples of what the merged file has kept.
    Without RUN, `ggtune verify` gives that proof.
    """
    from ggtune.gguf.merge import AUTO, check_outtype, merge_adapters

    check_outtype(outtype)
    adapters = [(path, 1.0) for path in lora] + list(lora_scaled)
    if run is not None:
        if model_base or adapters:
            raise click.UsageError("RUN names base and adapter: leave --model-base, --lora and --lora-scaled out.")
        _export_run(
            run, Path(model_out), which=which, outtype=outtype, seed=seed, name=name, threads=threads, force=force
        )
        return
    if not model_base:
        raise click.UsageError("Missing argument 'RUN' or option '--model-base'.")
    if not adapters:
        raise click.UsageError("Missing option '--lora' (or '--lora-scaled').")
    if outtype == AUTO:
        raise click.UsageError("--outtype auto needs samples to measure on: give the folder of the training, RUN.")
    counts = merge_adapters(
        model_base,
        adapters,
        Path(model_out),
        outtype=outtype,
        seed=seed,
        name=name,
        threads=threads,
        force=force,
        say=click.echo,
    )
    _say_counts(model_out, counts)


def _export_run(
    run: Path,
    output: Path,
    *,
    which: "Which",
    outtype: str | None,
    seed: int,
    name: str | None,
    threads: int,
    force: bool,
) -> None:
    from ggtune.cli.training import earlier_settings
    from ggtune.errors import GgtuneError
    from ggtune.evaluate.proved_merge import merge_and_prove
    from ggtune.evaluate.verify import samples_of_run
    from ggtune.run.outputs import Outputs
    from ggtune.train.chosen import chosen_adapter

    config = earlier_settings(Outputs.folder(run))
    if config is None:
        raise GgtuneError(f"{run} holds no run: it has no config.json")
    chosen = chosen_adapter(run, which)
    click.echo(f"Adapter: {chosen.path}: {chosen.reason}")
    samples = samples_of_run(run, config)
    result = merge_and_prove(
        config.model,
        [(str(chosen.path), 1.0)],
        output,
        trained=samples.training,
        held_out=samples.held_out,
        outtype=outtype,
        seed=seed,
        name=name,
        threads=threads,
        force=force,
        say=click.echo,
    )
    _say_counts(str(output), result.counts)
    if result.proof is not None:
        click.echo(result.proof.line())
    for line in result.advice():
        click.echo(line)
    if not result.good:
        raise click.exceptions.Exit(1)


def _say_counts(output: str, counts: Mapping[str, Any]) -> None:
    from ggtune.gguf.merge import retyped
    from ggtune.system import format_bytes

    changes = retyped(counts)
    click.echo(
        f"Wrote {output}: {format_bytes(counts['n_bytes'])}, {counts['n_merged_tensors']} of {counts['n_tensors']} "
        "tensors merged" + (f"; {changes}" if changes else "")
    )
