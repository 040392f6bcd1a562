"""``ggtune verify``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ggtune.evaluate.proof import Proof


@click.command("verify")
@click.argument("merged", type=click.Path(path_type=Path))
@click.option("--base", help="Base model (default: the one of the run).", metavar="FILE")
@click.option("--lora", multiple=True, help="Adapter that was merged; may be given more than once.", metavar="FILE")
@click.option(
    "--lora-scaled", multiple=True, type=(str, float), help="Adapter with a factor of its own.", metavar="FILE SCALE"
)
@click.option("--data", help="Samples to measure on: the training data.", metavar="FILE")
@click.option("--template", help="Prompt template (default: the one of the training).", metavar="NAME")
@click.option("--system", help="System text (default: the one of the training).", metavar="TEXT")
@click.option("--holdout", help="Samples of --data that were held out of training (default: none).", metavar="N")
@click.option(
    "--seconds", type=click.FloatRange(min=1), default=24.0, show_default=True, help="About how long it may take."
)
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
@click.option("-t", "--threads", type=click.IntRange(min=0), default=0, help="Threads (default: all available).")
@click.option("--force", is_flag=True, help="Take an adapter that was trained on another base.")
def command(
    merged: Path,
    base: str | None,
    lora: tuple[str, ...],
    lora_scaled: tuple[tuple[str, float], ...],
    data: str | None,
    template: str | None,
    system: str | None,
    holdout: str | None,
    seconds: float,
    as_json: bool,
    threads: int,
    force: bool,
) -> None:
    """Say what the file MERGED has kept of its adapter: losses, answers, end tokens.

    MERGED is a merged model, with --base, --lora and --data, or the folder of a `ggtune run`, which knows all of them.
    The exit status is 1 where less than 90 % of what the adapter gained was kept.
    """
    from ggtune.evaluate.verify import verify_file, verify_run

    adapters = [(path, 1.0) for path in lora] + list(lora_scaled)
    if merged.is_dir():
        if base or adapters or data or template is not None or system is not None or holdout is not None:
            raise click.UsageError(
                "A run folder knows all of these: leave --base, --lora, --lora-scaled, --data, --template, --system "
                "and --holdout out."
            )
        proof = verify_run(merged, threads=threads, seconds=seconds, force=force)
    else:
        if not (base and adapters and data):
            raise click.UsageError("A merged file needs --base, --lora (or --lora-scaled) and --data.")
        proof = verify_file(
            merged,
            base,
            adapters,
            data,
            template=template,
            system=system,
            holdout=holdout or "0",
            threads=threads,
            seconds=seconds,
            force=force,
        )
    _show(proof, as_json=as_json)
    if not proof.good:
        raise click.exceptions.Exit(1)


def _show(proof: "Proof", *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(proof.to_dict(), indent=2))
        return
    click.echo(proof.line())
    if not proof.good:
        click.echo("Less than 90 % was kept: merge with --outtype auto, or use the adapter beside the base.")
