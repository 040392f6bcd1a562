"""``ggtune package``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggtune.cli.options import which_option
from ggtune.cli.transfer import store_option

if TYPE_CHECKING:
    from ggtune.train.chosen import Which

_PATH = click.Path(path_type=Path)


@click.command("package")
@click.argument("model", type=_PATH, required=False)
@click.option("-m", "--model", "model_option", type=_PATH, help="The same as MODEL.", metavar="FILE")
@click.option(
    "-l",
    "--lora",
    "--adapter",
    "loras",
    multiple=True,
    type=_PATH,
    metavar="FILE",
    help="Adapter to put beside the model, not merged; several are added up in one file.",
)
@click.option(
    "-s",
    "--lora-scaled",
    multiple=True,
    type=(_PATH, float),
    metavar="FILE SCALE",
    help="Adapter with a factor of its own.",
)
@click.option("--name", required=True, help="Name in Ollama: model, model:tag, namespace/model, ...", metavar="NAME")
@click.option("--out", type=_PATH, help="Folder of the Modelfile (default: the adapter's, else the model's).")
@store_option
@click.option("--no-store", is_flag=True, help="Only write the Modelfile.")
@click.option("--create", is_flag=True, help="Let a running Ollama make the model of the Modelfile, by its API.")
@click.option("--host", help="Where that Ollama is (default: $OLLAMA_HOST, else this machine).", metavar="HOST:PORT")
@click.option("--template", help="Prompt template (default: the one of the training, else the model's own).")
@click.option("--system", help="System text (default: the one of the training).", metavar="TEXT")
@click.option(
    "--param",
    "given",
    multiple=True,
    type=(str, str),
    help="PARAMETER of the Modelfile, such as temperature 0.2.",
    metavar="NAME VALUE",
)
@click.option(
    "--license",
    "licenses",
    multiple=True,
    type=_PATH,
    metavar="FILE",
    help="Licence text to put in (default: what the model file says).",
)
@click.option(
    "--message",
    "said",
    multiple=True,
    type=(str, str),
    metavar="ROLE TEXT",
    help="MESSAGE of the Modelfile; ROLE is system, user or assistant.",
)
@which_option
@click.option("--modelfile", type=_PATH, help="Modelfile to extend (default: the one in --out).", metavar="FILE")
@click.option("--force", is_flag=True, help="Take an adapter that was trained on another file than this model.")
def command(
    model: Path | None,
    model_option: Path | None,
    loras: tuple[Path, ...],
    lora_scaled: tuple[tuple[Path, float], ...],
    name: str,
    out: Path | None,
    store: Path | None,
    no_store: bool,
    create: bool,
    host: str | None,
    template: str | None,
    system: str | None,
    given: tuple[tuple[str, str], ...],
    licenses: tuple[Path, ...],
    said: tuple[tuple[str, str], ...],
    which: Which,
    modelfile: Path | None,
    force: bool,
) -> None:
    """Write a Modelfile for the GGUF file MODEL, and put it into an Ollama store, where `ollama run` finds it.

    MODEL is a merged model, a base model with --lora, or the folder of a run. Of a run its merged model is taken; where
    it has none, or --which names a step, its base with that step's adapter. A Modelfile that is in --out already is
    extended, where ggtune did not write it itself.
    """
    from ggtune import pipeline
    from ggtune.data.readers.decoding import read_text
    from ggtune.ollama.parameters import read_parameters
    from ggtune.ollama.store import default_store

    if (model is None) == (model_option is None):
        raise click.UsageError("Give the model once: MODEL, or --model FILE.")
    if which != "auto" and (loras or lora_scaled):
        raise click.UsageError("--which takes an adapter of a run: leave out --lora and --lora-scaled.")
    if store is not None and no_store:
        raise click.UsageError("--store and --no-store exclude each other.")
    if host is not None and not create:
        raise click.UsageError("--host goes with --create.")
    source = model or model_option
    assert source is not None
    if which != "auto" and not source.is_dir():
        raise click.UsageError(f"--which goes with the folder of a run, and {source} is none.")
    if source.is_file():  # the model of a run has been trained
        _check_answers(source)
    options = pipeline.PackageOptions(
        out=out,
        # a server that makes the model has a store of its own
        store=None if no_store or (create and store is None) else store or default_store(),
        adapters=[*((path, 1.0) for path in loras), *lora_scaled],
        which=which,
        template=template,
        system=system,
        parameters=read_parameters(given),
        licenses=[read_text(path) for path in licenses],
        messages=said,
        modelfile=modelfile,
        force=force,
    )
    result = pipeline.package(source, name, options, pipeline.Progress())
    click.echo(str(result))
    if create:
        from ggtune.ollama.server import create_model

        assert result.modelfile is not None  # it always has a folder
        create_model(result.content, result.name, result.modelfile.parent, host=host, say=click.echo)
        click.echo(f"Ollama has made {result.name}: ollama run {result.name}")


def _check_answers(model: Path) -> None:
    """Raise :class:`ModelError` for a file that no llama.cpp answers with, and so no Ollama."""
    from ggtune._native import core

    core.Model(str(model), header_only=True).check_answers()
