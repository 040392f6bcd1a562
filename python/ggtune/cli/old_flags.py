"""Flags of llama.cpp's old ``finetune`` that have lost their meaning: taken, with one line that says what to use."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_ONE_RANK = "every linear has the rank of --lora-r; choose linears with --targets"
_FROM_MODEL = "the value in the model file is used"
_STOPPING = "use --stop-loss and --stop-patience"
_WHOLE_SAMPLES = "each sample is trained whole and alone, packed with others without mixing"

# name: (takes a value, what to say)
LOST_FLAGS: dict[str, tuple[bool, str]] = {
    "--fill-with-next-samples": (False, _WHOLE_SAMPLES),
    "--no-separate-with-eos": (False, "every sample ends with an end token, or the model never learns to stop"),
    "--no-separate-with-bos": (False, "every sample starts as the model's tokenizer asks for"),
    "--sample-random-offsets": (False, "samples start where --sample-start stands"),
    "--force-reshuffle": (False, "samples are shuffled in every epoch; another --seed gives another order"),
    "--adam-epsf": (True, _STOPPING),
    "--opt-past": (True, _STOPPING),
    "--opt-delta": (True, _STOPPING),
    "--opt-max-no-improvement": (True, _STOPPING),
    "--cos-decay-restart": (True, "the schedule does not restart; use --schedule and --decay-steps"),
    "--enable-restart": (False, "the schedule does not restart; use --schedule and --decay-steps"),
    "--disable-restart": (False, "the schedule never restarts"),
    "--use-flash": (False, "attention is always computed by a fused kernel where there is one"),
    "--no-flash": (False, "attention is always computed by a fused kernel where there is one"),
    "--adam-decay-min-ndim": (True, "decay applies to the adapter's matrices; use --adam-decay 0 for none"),
    "--norm-rms-eps": (True, _FROM_MODEL),
    "--rope-freq-base": (True, _FROM_MODEL),
    "--rope-freq-scale": (True, _FROM_MODEL),
    **{
        f"--rank-{part}": (True, _ONE_RANK)
        for part in (
            *("att-norm", "ffn-norm", "out-norm", "tok-embd", "out"),
            *("wq", "wk", "wv", "wo", "ffn_gate", "ffn_down", "ffn_up", "w1", "w2", "w3"),
        )
    },
}


def lost_flags(function: F) -> F:
    """Give a command the flags of :data:`LOST_FLAGS`; each that is used prints one line."""

    def tell(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value and not context.resilient_parsing:
            name = parameter.opts[0]
            click.echo(f"{name} has no effect any more: {LOST_FLAGS[name][1]}.", err=True)

    for name, (takes_value, _) in LOST_FLAGS.items():
        function = click.option(
            name,
            is_flag=not takes_value,
            type=str if takes_value else None,
            hidden=True,
            expose_value=False,
            callback=tell,
        )(function)
    return function
