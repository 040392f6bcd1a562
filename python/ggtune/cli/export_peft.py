"""``ggtune export-peft``."""

from pathlib import Path

import click


@click.command("export-peft")
@click.argument("adapter", metavar="ADAPTER")
@click.option("--base", required=True, help="The adapter's base model, a GGUF file.", metavar="FILE")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder to write.", metavar="FOLDER")
@click.option(
    "--base-model-name-or-path",
    default="",
    help="What PEFT loads as the base: a name on the Hugging Face hub, or a folder.",
    metavar="NAME",
)
def command(adapter: str, base: str, out: Path, base_model_name_or_path: str) -> None:
    """Write the adapter GGUF file ADAPTER as a PEFT folder (adapter_config.json, adapter_model.safetensors)."""
    from ggtune.interchange.peft import export_peft

    export_peft(adapter, base, out, base_name=base_model_name_or_path)
    click.echo(f"Wrote {out}")
    if not base_model_name_or_path:
        click.echo("Its configuration names no base model: load that yourself, or give --base-model-name-or-path.")
