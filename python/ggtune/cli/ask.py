"""``ggtune ask``."""

import click


@click.command("ask")
@click.argument("question")
@click.option("-m", "--model", required=True, help="Model, a GGUF file.", metavar="FILE")
@click.option("--lora", help="Adapter to ask it with.", metavar="FILE")
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
@click.option("-ngl", "--gpu-layers", type=click.IntRange(min=0), default=0, help="Layers kept on a GPU.")
def command(
    question: str,
    model: str,
    lora: str | None,
    template: str | None,
    system: str | None,
    temp: float,
    max_tokens: int,
    seed: int,
    threads: int,
    force: bool,
    gpu_layers: int,
) -> None:
    """Ask a model one QUESTION; the answer is shown as it comes."""
    from ggtune import pipeline

    options = pipeline.AskOptions(
        adapter=lora,
        template=template,
        system=system,
        temperature=temp,
        max_tokens=max_tokens,
        seed=seed,
        threads=threads,
        gpu_layers=gpu_layers,
        force=force,
    )
    loaded = pipeline.load(model, options)
    for warning in loaded.warnings:
        click.echo(warning, err=True)
    for piece in loaded.pieces(question):
        click.echo(piece, nl=False)
    click.echo()
