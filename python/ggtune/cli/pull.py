"""``ggtune pull``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggtune.cli.transfer import EPILOG, store_option, terminal_report, transfer_options

if TYPE_CHECKING:
    from ggtune.ollama.registry.client import TransferOptions


@click.command("pull", epilog=EPILOG)
@click.argument("name", metavar="HOST:PORT/NAMESPACE/MODEL:TAG")
@click.option("--as", "local", help="Name that the model gets in the store (default: the same).", metavar="NAME")
@store_option
@transfer_options
def command(name: str, local: str | None, store: Path | None, options: TransferOptions) -> None:
    """Fetch a model from a Docker registry into an Ollama store, where `ollama run` finds it. Ollama is not needed."""
    from ggtune.ollama.names import ModelName
    from ggtune.ollama.registry.pull import pull_model
    from ggtune.ollama.registry.reference import Reference
    from ggtune.ollama.store import default_store
    from ggtune.system import format_bytes

    store = store or default_store()
    reference = Reference.parse(name)
    local_name = ModelName.parse(local) if local else None
    with terminal_report() as report:
        result = pull_model(store, reference, local_name=local_name, options=options, report=report)
    amounts = f"{format_bytes(result.fetched_bytes)} fetched, {format_bytes(result.kept_bytes)} there already"
    click.echo(f"Pulled into {store} as {result.name} ({amounts}): {result.digest}")
    click.echo(f"  ollama run {result.name}")
