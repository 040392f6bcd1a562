"""``ggtune import``."""

from pathlib import Path

import click


@click.command("import")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="GGUF file to write.", metavar="FILE")
@click.option("--base", help="Base model of an adapter, a GGUF file.", metavar="FILE")
@click.option(
    "--outtype",
    type=click.Choice(["auto", "f32", "f16", "bf16", "q8_0"]),
    default="auto",
    show_default=True,
    help="Type of a model's weights; auto: the 16-bit float that the checkpoint is closest to.",
)
@click.option("--quantize", "file_type", help="Quantize the model to this type afterwards: Q4_K_M, ...", metavar="TYPE")
@click.option("--trust-remote-code", is_flag=True, help="Let the converter run Python code that lies in FOLDER.")
@click.option("-t", "--threads", type=click.IntRange(min=0), default=0, help="Threads (default: all available).")
def command(
    folder: Path,
    out: Path,
    base: str | None,
    outtype: str,
    file_type: str | None,
    trust_remote_code: bool,
    threads: int,
) -> None:
    """Turn a Hugging Face FOLDER into a GGUF file: a model checkpoint, or with --base a PEFT adapter.

    Nothing is downloaded. A model needs more packages: pip install 'ggtune[import]'.
    """
    from ggtune.interchange.checkpoint import import_checkpoint
    from ggtune.interchange.peft_file import is_peft_folder
    from ggtune.system import format_bytes

    if is_peft_folder(folder):
        from ggtune.interchange.peft import import_peft

        if base is None:
            raise click.UsageError(f"{folder} is a PEFT adapter: give the GGUF file of its base model with --base.")
        content = import_peft(folder, base, out)
        click.echo(f"Wrote {out}: {len(content.bases)} pairs, alpha {content.alpha:g}")
        return
    if base is not None:
        raise click.UsageError(f"--base is for a PEFT adapter, and {folder} is none (it has no adapter_config.json).")
    import_checkpoint(
        folder,
        out,
        outtype=outtype,
        file_type=file_type,
        trust_remote_code=trust_remote_code,
        threads=threads,
        echo=lambda line: click.echo(line, err=True),
    )
    click.echo(f"Wrote {out} ({format_bytes(out.stat().st_size)})")
