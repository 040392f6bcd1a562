"""``ggtune models``."""

import json

import click


@click.command("models")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object: by architecture why not, empty if it trains."
)
def command(names: tuple[str, ...], as_json: bool) -> None:
    """Say of every architecture that llama.cpp knows, or those with NAME in theirs, whether it trains, or why not.

    Each was tried on a tiny model. A + marks a variant: +experts has a mixture of experts, +grouped fewer heads of keys
    than of queries, +shared-kv layers that share keys and values. `ggtune inspect MODEL.gguf` asks a model itself.
    """
    from ggtune.errors import GgtuneError
    from ggtune.gguf.architectures import architectures

    known = architectures()
    found = {name: why for name, why in known.items() if not names or any(part in name for part in names)}
    if not found:
        raise GgtuneError(f"llama.cpp knows no architecture with {' or '.join(names)} in its name")
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    width = max(map(len, found))
    for name, why in found.items():
        click.echo(f"{name:<{width}}  {'no: ' + why if why else 'yes'}")
    n_all, n_yes = ({name.split("+")[0] for name in each} for each in (found, [n for n, w in found.items() if not w]))
    click.echo(f"{len(n_yes)} of {len(n_all)} architectures train.")
