"""Click options made from :class:`ggtune.config.TrainConfig`, so that nothing is written down twice."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ggtune.config import Face, TrainConfig, defaults, flag, setting_of

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
    off_flags = setting.finetune_off_flags if face == "finetune" else ()
    on = [f"{flag(name)}/--no-{name.replace('_', '-')}", *long[1:]]
    # click pairs "--on/--off"; what has no partner stands alone, an "off" one behind a blank
    return [name, *on, *(f" /{off}" for off in off_flags)]


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
    shown: bool | str = ",".join(default) if isinstance(default, tuple) else default not in ("", None)
    return click.Option(
        _declarations(f.name, face, setting, False),
        default=default,
        type=kind,
        help=setting.help,
        show_default=shown,
        metavar=setting.metavar,
    )


def config_options(face: Face, *, leave_out: Iterable[str] = ()) -> Callable[[F], F]:
    """Give a command an option for each field of :class:`TrainConfig`, with the defaults of ``face``."""
    values = defaults(face)

    def decorate(function: F) -> F:
        for f in reversed(dataclasses.fields(TrainConfig)):
            if f.name not in leave_out:
                # the list that click's own decorators fill
                function.__dict__.setdefault("__click_params__", []).append(_option(f, face, values[f.name]))
        return function

    return decorate


def given_settings(ctx: click.Context) -> dict[str, Any]:
    """Return the settings that the user gave, and none that is a default."""
    return {
        f.name: ctx.params[f.name]
        for f in dataclasses.fields(TrainConfig)
        if f.name in ctx.params and ctx.get_parameter_source(f.name) is not ParameterSource.DEFAULT
    }
