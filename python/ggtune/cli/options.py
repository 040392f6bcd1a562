"""Click options made from :class:`ggtune.config.TrainConfig`, so that nothing is written down twice."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ggtune.config import DEVICE_SETTINGS, Face, TrainConfig, defaults, flag
from ggtune.setting import setting_of

F = TypeVar("F", bound=Callable[..., Any])

_TYPES: dict[Any, Any] = {str: str, str | None: str, int: int, float: float, float | None: float}


class _CommaList(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.3
    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else tuple(part.strip() for part in value.split(","))


def _declarations(name: str, face: Face, setting: Any, is_switch: bool) -> list[str]:
    long = [flag(name), *(setting.finetune_flags if face == "finetune" else ())]
    if not is_switch:
        return [name, *setting.flags, *long]
    return [name, f"{flag(name)}/--no-{name.replace('_', '-')}", *long[1:]]


def _option(f: "dataclasses.Field[Any]", face: Face, default: Any) -> click.Option:
    setting = setting_of(f)
    if f.type is bool:
        declared = _declarations(f.name, face, setting, True)
        return click.Option(declared, default=default, is_flag=True, help=setting.help, show_default=True)
    kind: Any
    if setting.choices:
        kind = click.Choice(setting.choices)
    else:
        kind = _CommaList() if f.type == tuple[str, ...] else _TYPES[f.type]
    shown: bool | str = ",".join(default) or False if isinstance(default, tuple) else default not in ("", None)
    if default is None and setting.default_text:
        shown = setting.default_text
    return click.Option(
        _declarations(f.name, face, setting, False),
        default=default,
        type=kind,
        help=setting.help,
        show_default=shown,
        metavar=setting.metavar,
    )


class ConfigCommand(click.Command):
    """A command with :func:`config_options` in which ``--name`` and ``--no-name`` stand for a setting's values.

    That is for settings with a ``switch``; ``--name value`` works as ever. click itself would take whatever follows
    ``--name`` for its value.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write the short forms out, then parse."""
        return super().parse_args(ctx, self._written_out(args))

    def _written_out(self, args: list[str]) -> list[str]:
        by_name = {f.name: setting_of(f) for f in dataclasses.fields(TrainConfig)}
        on: dict[str, tuple[str, tuple[str, ...]]] = {}
        off: dict[str, tuple[str, str]] = {}
        for option in self.params:
            setting = by_name.get(option.name or "")
            if setting is None or setting.switch is None or option.name is None:
                continue
            on.update(dict.fromkeys(option.opts, (setting.switch.on, setting.choices)))
            off_flags = ["--no-" + flag(option.name)[2:]]
            if set(setting.finetune_flags) & set(option.opts):
                off_flags += setting.switch.finetune_off_flags
            off.update(dict.fromkeys(off_flags, (flag(option.name), setting.switch.off)))
        has_arguments = any(isinstance(param, click.Argument) for param in self.params)
        written: list[str] = []
        for i, arg in enumerate(args):
            if arg == "--":
                return written + args[i:]
            following = args[i + 1] if i + 1 < len(args) else "-"
            if arg in on and following not in on[arg][1] and (has_arguments or following.startswith("-")):
                written.append(f"{arg}={on[arg][0]}")
            elif arg in off:
                written.append("=".join(off[arg]))
            else:
                written.append(arg)
        return written


# what says which data are read, and how they become samples
DATA_SETTINGS = (
    *("model", "data", "more_data", "repeat", "question_column", "answer_column", "context_column", "weight_column"),
    "category_column",
    *("data_format", "encoding", "skip_bad", "sample_start", "include_sample_start", "overlapping_samples", "template"),
    *("system", "loss_on", "learn", "prompt_weight", "split_turns", "drop", "too_long", "holdout", "ctx", "seed"),
)


def config_options(face: Face, *, leave_out: Iterable[str] = (), only: Iterable[str] | None = None) -> Callable[[F], F]:
    """Give a command an option for each field of :class:`TrainConfig`, with the defaults of ``face``."""
    values = defaults(face)

    def decorate(function: F) -> F:
        for f in reversed(dataclasses.fields(TrainConfig)):
            if f.name not in leave_out and (only is None or f.name in only):
                # the list that click's own decorators fill
                function.__dict__.setdefault("__click_params__", []).append(_option(f, face, values[f.name]))
        return function

    return decorate


def swept_options(names: Iterable[str]) -> Callable[[F], F]:
    """Give a command an option for each of these settings whose value is a text: several values, or a range."""
    by_name = {f.name: f for f in dataclasses.fields(TrainConfig)}

    def decorate(function: F) -> F:
        for name in reversed(tuple(names)):
            setting, default = setting_of(by_name[name]), by_name[name].default
            option = click.Option(
                _declarations(name, "train", setting, False),
                help=setting.help,
                show_default=setting.default_text or f"{default:g}",
                metavar="VALUES",
            )
            function.__dict__.setdefault("__click_params__", []).append(option)
        return function

    return decorate


def given_settings(ctx: click.Context) -> dict[str, Any]:
    """Return the settings that the user gave, and none that is a default."""
    return {
        f.name: ctx.params[f.name]
        for f in dataclasses.fields(TrainConfig)
        if f.name in ctx.params and ctx.get_parameter_source(f.name) is not ParameterSource.DEFAULT
    }


def given_device_settings(ctx: click.Context) -> dict[str, Any]:
    """Return the settings of devices that the user gave."""
    return {name: value for name, value in given_settings(ctx).items() if name in DEVICE_SETTINGS}


def which_option(function: F) -> F:
    """Give a command ``--which``, the step of a run that :func:`ggtune.train.chosen.chosen_adapter` takes."""
    return click.option(
        "--which",
        type=click.Choice(("auto", "best", "last")),
        default="auto",
        show_default=True,
        help="Step whose adapter is taken: that of the best held-out loss, the last, or auto: the best, but the last "
        "where the training loss has stayed under --stop-loss.",
    )(function)


def _finite(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no number of seconds.", context, parameter)
    return value


def tune_option(function: F) -> F:
    """Give a command ``--tune-seconds``, of :func:`ggtune.gguf.scale_tuning.tune_scales`."""
    return click.option(
        "--tune-seconds",
        type=click.FloatRange(min=0),
        callback=_finite,
        help="How long the merged file's scales are tuned at most, so that it answers as the live adapter; 0: they are "
        "not.  [default: 180, or after a longer training a tenth of its time]",
        metavar="SECONDS",
    )(function)
