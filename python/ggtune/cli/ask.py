"""``ggtune ask``."""

from collections.abc import Mapping

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
    from ggtune._native import core
    from ggtune.data.chat_template import choose_template
    from ggtune.generate import answer_pieces
    from ggtune.gguf.adapter_file import load_adapter, read_adapter
    from ggtune.gguf.base import check_base
    from ggtune.gguf.io import gguf_structure

    gguf_structure(model)
    loaded = core.Model(model, gpu_layers=gpu_layers)
    adapter = load_adapter(lora, loaded) if lora else None
    trained: Mapping[str, str] = {}
    if lora:
        content = read_adapter(lora)
        trained = content.notes
        for warning in check_base(lora, model, force=force, content=content):
            click.echo(warning, err=True)
    written = loaded.metadata()
    name = template or trained.get("template") or written.get("ggtune.template") or None
    system_text = system if system is not None else trained.get("system", written.get("ggtune.system"))
    pieces = answer_pieces(
        loaded,
        choose_template(name, loaded),
        question,
        adapter=adapter,
        system=system_text or None,
        threads=threads,
        temperature=temp,
        max_tokens=max_tokens,
        seed=seed,
    )
    started = False
    for piece in pieces:
        shown = piece if started else piece.lstrip()
        started = started or bool(shown)
        click.echo(shown, nl=False)
    click.echo()
