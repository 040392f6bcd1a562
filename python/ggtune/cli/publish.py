"""``ggtune publish``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggtune.cli.transfer import store_option, terminal_report, transfer_options

if TYPE_CHECKING:
    from ggtune.ollama.registry.client import TransferOptions
    from ggtune.publish.hub import Upload


@click.group("publish")
def command() -> None:
    """Upload a model for others to use."""


@command.command("hf", short_help="Upload a run to a Hugging Face hub.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Let nobody else see it.")
@click.option("--revision", help="Branch to commit to (default: main).", metavar="NAME")
@click.option("--endpoint", envvar="HF_ENDPOINT", help="Address of the hub (default: HF_ENDPOINT).", metavar="URL")
@click.option("--no-merged", is_flag=True, help="Leave out the merged model.")
@click.option("--no-adapter", is_flag=True, help="Leave out the adapter.")
@click.option(
    "--license",
    "license_id",
    help="Licence of the base model, such as apache-2.0, or other (default: what its file says).",
    metavar="ID",
)
@click.option("--license-name", default="", help="Name of a licence that is called other.", metavar="TEXT")
@click.option("--license-link", default="", help="Where a licence that is called other can be read.", metavar="URL")
@click.option(
    "--base-model",
    "base_models",
    multiple=True,
    help="Repository of the base model (default: what its file says).",
    metavar="OWNER/NAME",
)
@click.option("--card", type=click.Path(path_type=Path), help="Model card to use in place of a written one.")
@click.option("--no-examples", is_flag=True, help="Leave questions and answers, which come from the data, out of it.")
@click.option("--dry-run", is_flag=True, help="Upload nothing: show the card and the list of files.")
@click.option("--out", type=click.Path(path_type=Path), help="With --dry-run: folder that gets card and small files.")
def hf(
    run: Path,
    repository: str,
    private: bool,
    revision: str | None,
    endpoint: str | None,
    no_merged: bool,
    no_adapter: bool,
    license_id: str | None,
    license_name: str,
    license_link: str,
    base_models: tuple[str, ...],
    card: Path | None,
    no_examples: bool,
    dry_run: bool,
    out: Path | None,
) -> None:
    """Upload the run in the folder RUN to a Hugging Face hub: model, adapter, Ollama's files and a model card.

    The token is the one of `hf auth login`, or HF_TOKEN.
    """
    from ggtune.data.readers.decoding import read_text
    from ggtune.publish.base_model import License
    from ggtune.publish.hub import check_repository, publish, uploads
    from ggtune.publish.run_folder import read_run
    from ggtune.version import version

    if out is not None and not dry_run:
        raise click.UsageError("--out needs --dry-run.")
    if no_merged and no_adapter:
        raise click.UsageError("--no-merged and --no-adapter leave nothing.")
    if (license_name or license_link) and license_id is None:
        raise click.UsageError("--license-name and --license-link need --license.")
    if endpoint is not None:
        # where huggingface_hub also sends what it asks of its own accord; it reads this when it is imported
        os.environ.setdefault("HF_ENDPOINT", endpoint)
    check_repository(repository)
    for base_model in base_models:
        check_repository(base_model)
    found = read_run(run, merged=not no_merged, adapter=not no_adapter)
    files = uploads(
        found,
        repository,
        license_=License.parse(license_id, license_name, license_link) if license_id else None,
        base_models=base_models,
        card=read_text(card) if card else None,
        examples=not no_examples,
    )
    if dry_run:
        _show(files, out)
        return
    _list(files)
    commit = publish(
        files,
        repository,
        private=private,
        revision=revision,
        endpoint=endpoint,
        message=f"Upload with ggtune {version()}",
    )
    click.echo(f"Published: {commit}")
    if found.merged is not None and revision is None and endpoint is None:
        merged = next(file.name for file in files if file.source == found.merged)
        click.echo(f"  ollama run hf.co/{repository}:{merged}")


@command.command("ollama", short_help="Send a model from an Ollama store to Ollama's registry.")
@click.argument("name", metavar="NAMESPACE/MODEL[:TAG]")
@click.option("--from", "local", help="Name that the model has in the store (default: the same).", metavar="NAME")
@store_option
@click.option("--key", type=click.Path(path_type=Path), help="Private key (default: Ollama's, ~/.ollama/id_ed25519).")
@transfer_options
def ollama(name: str, local: str | None, store: Path | None, key: Path | None, options: "TransferOptions") -> None:
    """Send a model from an Ollama store to Ollama's registry, signed with Ollama's key pair, as `ollama push` does.

    The key's public half has to be among the keys of the account that owns NAMESPACE.
    """
    from ggtune.errors import GgtuneError
    from ggtune.ollama.keypair import KeyPairAuth
    from ggtune.ollama.names import DEFAULT_NAMESPACE, ModelName
    from ggtune.ollama.registry.push import push_model
    from ggtune.ollama.registry.reference import Reference
    from ggtune.ollama.store import default_store
    from ggtune.system import format_bytes

    reference = Reference.parse(name)
    if reference.name.namespace == DEFAULT_NAMESPACE:
        raise GgtuneError(f"{name} has no namespace: give that of your account, NAMESPACE/{name}.")
    local_name = ModelName.parse(local) if local else None
    auth = KeyPairAuth(key)
    with terminal_report() as report:
        result = push_model(
            store or default_store(), reference, local_name=local_name, options=options, report=report, auth=auth
        )
    amounts = f"{format_bytes(result.sent_bytes)} sent, {format_bytes(result.kept_bytes)} there already"
    click.echo(f"Published {result.name} ({amounts}): {result.digest}")
    click.echo(f"  ollama run {result.name}")


def _list(files: "list[Upload]") -> None:
    from ggtune.system import format_bytes

    for file in files:
        source = f"  ({file.source.name})" if isinstance(file.source, Path) else ""
        click.echo(f"{format_bytes(file.size):>10}  {file.name}{source}")


def _show(files: "list[Upload]", out: Path | None) -> None:
    from ggtune.errors import GgtuneError
    from ggtune.files import replacing

    if out is None:
        card = next(file.source for file in files if file.name == "README.md")
        assert isinstance(card, bytes)
        click.echo(card.decode())
    else:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise GgtuneError(f"{out} is there already, and not an empty folder. Name another one.")
        for file in files:
            if isinstance(file.source, bytes):
                with replacing(out / file.name, needed_bytes=file.size) as temporary:
                    temporary.write_bytes(file.source)
    _list(files)
