"""``ggtune package``."""

from pathlib import Path

import click


@click.command("package")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name in Ollama: model, model:tag, namespace/model, ...", metavar="NAME")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the Modelfile (default: the model's).")
@click.option("--store", type=click.Path(path_type=Path), help="Ollama's model folder (default: its own).")
@click.option("--no-store", is_flag=True, help="Only write the Modelfile.")
@click.option("--template", help="Prompt template (default: the one of the training, else the model's own).")
@click.option("--system", help="System text (default: the one of the training).", metavar="TEXT")
@click.option(
    "--param", "given", multiple=True, type=(str, str), help="PARAMETER of the Modelfile.", metavar="NAME VALUE"
)
@click.option("--license", "license_file", type=click.Path(path_type=Path), help="Licence text to put in.")
@click.option("--adapter", type=click.Path(path_type=Path), help="Adapter to ship beside an unmerged model.")
def command(
    model: Path,
    name: str,
    out: Path | None,
    store: Path | None,
    no_store: bool,
    template: str | None,
    system: str | None,
    given: tuple[tuple[str, str], ...],
    license_file: Path | None,
    adapter: Path | None,
) -> None:
    """Write a Modelfile for the GGUF file MODEL, and put it into an Ollama store, where `ollama run` finds it."""
    from ggtune.data.records import read_text
    from ggtune.ollama.package import package_model
    from ggtune.ollama.parameters import ParameterValue, parse_parameter
    from ggtune.ollama.store import default_store
    from ggtune.train.files import open_gguf

    if store is not None and no_store:
        raise click.UsageError("--store and --no-store exclude each other.")
    open_gguf(model)
    params: dict[str, ParameterValue] = {}
    stops: list[str] = []
    for key, text in given:
        value = parse_parameter(key, text)
        if isinstance(value, str):
            stops.append(value)
        else:
            params[key] = value
    result = package_model(
        model,
        name,
        out_dir=out or model.parent,
        store=None if no_store else store or default_store(),
        template=template,
        system=system,
        params={**params, "stop": stops} if stops else params,
        license=read_text(license_file) if license_file else None,
        adapter=adapter,
    )
    click.echo(str(result))
