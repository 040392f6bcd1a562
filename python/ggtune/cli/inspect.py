"""``ggtune inspect``."""

import json

import click


@click.command("inspect")
@click.argument("model", metavar="MODEL.gguf")
@click.option("--rank", type=click.IntRange(min=1), help="Rank of the adapter that memory is predicted for.")
@click.option("-c", "--ctx", type=click.IntRange(min=2), help="Context that memory is predicted for.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model: str, rank: int | None, ctx: int | None, as_json: bool) -> None:
    """Say what MODEL.gguf is: architecture, sizes, types, template, and the linears that --targets can name.

    And whether it trains, or why not, with the memory that a run takes by default. Only the header is read, which takes
    seconds for any size; `ggtune plan` says more once there is data.
    """
    from ggtune.train.inspection import inspect_model

    found = inspect_model(model, rank=rank, ctx=ctx)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return
    for line in found.lines():
        click.echo(line)
