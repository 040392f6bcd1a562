"""``ggtune check-data``."""

import click

from ggtune.cli.options import DATA_SETTINGS, ConfigCommand, config_options
from ggtune.cli.training import settings


@click.command("check-data", cls=ConfigCommand)
@config_options("train", only=DATA_SETTINGS)
@click.option("--near-duplicates", is_flag=True, help="Look for nearly equal texts, too (needs ggtune[quality]).")
@click.option("--all", "every_row", is_flag=True, help="Name every doubtful row.")
@click.option("--strict", is_flag=True, help="End with status 1 where there is a doubt, or a row was skipped.")
@click.pass_context
def command(context: click.Context, /, *, near_duplicates: bool, every_row: bool, strict: bool, **_: object) -> None:
    """Say what a training would make of the data, and what looks wrong in them.

    Rows that are read, used, skipped and cut, their lengths, the share of tokens that is learned, a context that they
    fit into; then doubts: duplicates, contradictory answers, questions that are trained on and held out, damaged
    characters, phrases of chatbots, ... Nothing is left out for a doubt, but with --drop.
    """
    from ggtune._native import core
    from ggtune.data.card import DataCard
    from ggtune.errors import DataError
    from ggtune.train.samples import held_out_file, held_out_of, load_data, longest_sample

    config = settings(context, "train", None)
    model = core.Model(config.model, vocab_only=True)
    data = load_data(config, model, near_duplicates=near_duplicates)
    card = DataCard.of(data, held_out_of(config, data)[1], held_out_file(config, model))
    for line in card.lines(longest_sample(config, model), every_row=every_row):
        click.echo(line)
    if not model.chat_template and config.template in ("", "model"):
        click.echo("The model has no chat template of its own: name the one to train with by --template.")
    if strict and (card.n_doubts or card.n_skipped):
        raise DataError(f"{config.data}: {card.n_doubts} doubts, {card.n_skipped} rows skipped (--strict).")
