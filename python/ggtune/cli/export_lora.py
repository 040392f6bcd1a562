"""``ggtune export-lora``."""

from pathlib import Path

import click


@click.command("export-lora")
@click.option("-m", "--model-base", required=True, help="Base model, a GGUF file.", metavar="FILE")
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
@click.option("--outtype", help="Type of the merged tensors, e.g. q8_0 or f16 (default: each one's own).")
@click.option("--name", help="Name that the model file carries.")
def command(
    model_base: str,
    lora: tuple[str, ...],
    lora_scaled: tuple[tuple[str, float], ...],
    model_out: str,
    threads: int,
    outtype: str | None,
    name: str | None,
) -> None:
    """Merge one or more adapters into their base model, whose tensor types and other contents are kept."""
    from ggtune.train.merge import merge_adapters

    adapters = [(path, 1.0) for path in lora] + list(lora_scaled)
    if not adapters:
        raise click.UsageError("Missing option '--lora' (or '--lora-scaled').")
    counts = merge_adapters(model_base, adapters, Path(model_out), outtype=outtype, name=name, threads=threads)
    click.echo(f"Wrote {model_out}: " + ", ".join(f"{key.replace('_', ' ')} {n}" for key, n in counts.items()))
