"""``ggtune run``."""

import re
from pathlib import Path
from typing import Any

import click

from ggtune.cli.options import config_options
from ggtune.cli.training import claim_folder, execute, find_checkpoint, settings


@click.command("run")
@click.argument("data", required=False)
@config_options("train", leave_out=("data",))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for everything.")
@click.option("--name", help="Name in Ollama (default: the name of --out).")
@click.option("--store", type=click.Path(path_type=Path), help="Also put the model into this Ollama store.")
@click.option("--outtype", help="Type of the merged tensors (default: each one's own).")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out; options not given stay.")
@click.option("--overwrite", is_flag=True, help="Start anew in a folder that already holds a run.")
@click.pass_context
def command(
    context: click.Context,
    /,
    data: str | None,
    out: Path,
    name: str | None,
    store: Path | None,
    outtype: str | None,
    resume: bool,
    overwrite: bool,
    **_: Any,
) -> None:
    """Train on the questions and answers in DATA, merge, and package: a model for Ollama in one go.

    The folder --out gets adapter.gguf, model.gguf (the merged model), Modelfile, metrics.jsonl and checkpoints.
    """
    from ggtune.ollama.names import ModelName

    name = name or re.sub(r"[^a-z0-9_.-]+", "-", out.resolve().name.lower()).strip("-.") or "model"
    ModelName.parse(name)
    outputs = claim_folder(out, resume=resume, overwrite=overwrite)
    checkpoint = find_checkpoint(outputs, resume=resume, checkpoint_in=None)
    config = settings(context, "train", checkpoint)
    result = execute(config, outputs, checkpoint, resume_hint=f"ggtune run --resume --out {out}", overwrite=overwrite)

    from ggtune.ollama.package import package_model
    from ggtune.train.merge import merge_adapters

    merged = out / "model.gguf"
    click.echo(f"Merging into {merged} ...")
    merge_adapters(
        config.model, [(str(result.adapter), 1.0)], merged, outtype=outtype, name=name, threads=config.threads
    )
    package = package_model(merged, name, out_dir=out, store=store)
    click.echo(str(package))
    click.echo(f'Or without Ollama: ggtune ask --model {merged} "..."')
