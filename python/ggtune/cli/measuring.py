"""Options of commands that measure models on questions: ``eval``, ``compare``."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ggtune.cli.options import DATA_SETTINGS, config_options, given_device_settings, given_settings
from ggtune.config import DEVICE_SETTINGS

if TYPE_CHECKING:
    from ggtune.pipeline import EvaluateOptions

F = TypeVar("F", bound=Callable[..., Any])
_SPLITS = ("held-out", "training", "all")
# --split is another thing here: layers are shared out by the memory
_DEVICES = tuple(name for name in DEVICE_SETTINGS if name != "split")
_NOT_OF_DATA = ("model", "data", "more_data", "repeat", "holdout", "seed")

_OPTIONS = (
    click.option("--data", help="Data to measure on (default: the run's own).", metavar="FILE"),
    click.option(
        "--split",
        type=click.Choice(_SPLITS),
        help="Samples of the run's data (default: those that it held out; of --data all).",
    ),
    click.option(
        "--max-samples",
        type=click.IntRange(min=0),
        default=0,
        show_default="all",
        help="Measure so many of them, drawn by --seed.",
    ),
    click.option(
        "-s",
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Seed of the samples drawn, of answers with --temp, and of the intervals.",
    ),
    click.option(
        "-n", "--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Longest answer."
    ),
    click.option(
        "--temp",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        help="Temperature of the answers; 0: the likeliest token each time.",
    ),
    click.option(
        "--generate/--no-generate",
        default=True,
        show_default=True,
        help="Answer the questions, which takes most of the time.",
    ),
    click.option(
        "--metrics",
        help="Scores to compute, separated by commas (default: all): loss, perplexity, token_accuracy, exact_match, "
        "f1, rouge_l, bleu, chrf, ended, repetition, length_ratio.",
        metavar="NAMES",
    ),
    click.option("--overwrite", is_flag=True, help="Do an evaluation anew that the folder holds."),
    click.option("-t", "--threads", type=click.IntRange(min=0), default=0, help="Threads (default: all available)."),
    click.option("--force", is_flag=True, help="Take an adapter that was trained on another base."),
)


def measuring_options(function: F) -> F:
    """Give a command the options that :func:`measure_options` reads."""
    function = config_options("train", only=(*DATA_SETTINGS, "precision", *_DEVICES), leave_out=_NOT_OF_DATA)(function)
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def measure_options(context: click.Context) -> "EvaluateOptions":
    """Make the options of :func:`ggtune.pipeline.evaluate` of what is given."""
    from ggtune import pipeline
    from ggtune.scores.metrics import METRICS

    given = context.params
    if given["split"] is not None and given["data"] is not None:
        raise click.UsageError("--split chooses among the samples of a run's own data: leave it or --data out.")
    names = [name.strip() for name in (given["metrics"] or "").split(",") if name.strip()]
    return pipeline.EvaluateOptions(
        data=given["data"],
        split=given["split"],
        max_samples=given["max_samples"],
        seed=given["seed"],
        generate=given["generate"],
        max_tokens=given["max_tokens"],
        temperature=given["temp"],
        metrics=tuple(names) or tuple(METRICS),
        threads=given["threads"],
        overwrite=given["overwrite"],
        force=given["force"],
        settings={
            name: value
            for name, value in given_settings(context).items()
            if name not in (*_NOT_OF_DATA, *DEVICE_SETTINGS)
        },
        devices={name: value for name, value in given_device_settings(context).items() if name in _DEVICES},
    )
