"""``ggtune push``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggtune.cli.transfer import EPILOG, store_option, terminal_report, transfer_options

if TYPE_CHECKING:
    from ggtune.ollama.registry.client import TransferOptions


@click.command("push", epilog=EPILOG)
@click.argument("name", metavar="HOST:PORT/NAMESPACE/MODEL:TAG")
@click.option("--from", "local", help="Name that the model has in the store (default: the same).", metavar="NAME")
@store_option
@transfer_options
def command(name: str, local: str | None, store: Path | None, options: TransferOptions) -> None:
    """Send a model from an Ollama store to a Docker registry. Ollama is not needed."""
    from ggtune.ollama.names import ModelName
    from ggtune.ollama.registry.push import push_model
    from ggtune.ollama.registry.reference import Reference
    from ggtune.ollama.store import default_store
    from ggtune.system import format_bytes

    reference = Reference.parse(name)
    local_name = ModelName.parse(local) if local else None
    with terminal_report() as report:
        result = push_model(store or default_store(), reference, local_name=local_name, options=options, report=report)
    amounts = f"{format_bytes(result.sent_bytes)} sent, {format_bytes(result.kept_bytes)} there already"
    click.echo(f"Pushed {result.name} ({amounts}): {result.digest}")
