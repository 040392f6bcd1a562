"""Every setting of a training run: its default, its help text, its check. The command line is generated from here.

There are two faces. ``train`` (and ``run``) has today's defaults; ``finetune`` has the defaults and the flag names of
llama.cpp's old ``finetune``, given in the same place as ``finetune_default`` and ``finetune_flags``.
"""

import dataclasses
import json
import math
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ggtune.errors import GgtuneError

Face = Literal["train", "finetune"]

LINEAR_KINDS_ALL = "all"
_UNSET: Any = object()


@dataclass(frozen=True)
class Switch:
    """The values that a setting's flag can stand for alone: ``--name`` and ``--no-name``."""

    on: str
    off: str
    finetune_off_flags: tuple[str, ...] = ()  # what the old `finetune` called ``--no-name``


@dataclass(frozen=True)
class Setting:
    """What is known about one field of :class:`TrainConfig` beside its type and default."""

    help: str
    flags: tuple[str, ...] = ()  # short flags of every face
    finetune_flags: tuple[str, ...] = ()  # names that the old `finetune` had
    switch: "Switch | None" = None
    finetune_default: Any = _UNSET
    choices: tuple[str, ...] = ()
    check: Callable[[Any], str | None] | None = None  # what is wrong with a value, None where nothing is
    resumable: bool = False  # a continued run may change it
    rounds: bool = False  # where it does, the result changes by rounding
    metavar: str | None = None

    @property
    def same_default(self) -> bool:
        """True where both faces have the dataclass's default."""
        return self.finetune_default is _UNSET


def _setting(default: Any, help: str, **rest: Any) -> Any:  # noqa: A002
    return field(default=default, metadata={"setting": Setting(help, **rest)})


def setting_of(f: "dataclasses.Field[Any]") -> Setting:
    """Return the :class:`Setting` of a field of :class:`TrainConfig`."""
    setting: Setting = f.metadata["setting"]
    return setting


def _at_least(low: float) -> Callable[[Any], str | None]:
    return lambda v: None if math.isfinite(v) and v >= low else f"must be at least {low:g}"


def _above(low: float) -> Callable[[Any], str | None]:
    return lambda v: None if math.isfinite(v) and v > low else f"must be above {low:g}"


def _within(low: float, high: float, *, open_end: bool = True) -> Callable[[Any], str | None]:
    """``[low, high)``, or ``[low, high]``."""
    text = f"must be at least {low:g} and {'below' if open_end else 'at most'} {high:g}"
    return lambda v: None if low <= v and (v < high or (not open_end and v == high)) else text


def _given(value: str) -> str | None:
    return None if value else "is missing"


def _holdout(value: str) -> str | None:
    from ggtune.data.split import Holdout  # imports NumPy, which --help can do without

    try:
        Holdout.parse(value)
    except GgtuneError as error:
        return f"is wrong: {error}"
    return None


@dataclass(frozen=True)
class SaveInterval:
    """How often to save; both None: only at the end."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> "SaveInterval":
        """``"50"`` steps; ``"90s"``, ``"10m"``, ``"2h"``; ``"0"``. Raises :class:`GgtuneError`."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip().lower())
        if found is None or (not found[2] and "." in found[1]):
            raise GgtuneError("it is a number of steps, or a time such as 90s, 10m or 2h")
        if not found[2]:
            return cls(steps=int(found[1]) or None)
        return cls(seconds=float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]] or None)


def _save_every(value: str) -> str | None:
    try:
        SaveInterval.parse(value)
    except GgtuneError as error:
        return f"is wrong: {error}"
    return None


def _kinds(value: tuple[str, ...]) -> str | None:
    return None if value and all(value) else 'must be "all" or linears separated by commas, such as attn_q,attn_v'


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training run; checked when made (every problem in one :class:`GgtuneError`)."""

    model: str = _setting(
        "", "Base model, a GGUF file.", finetune_flags=("--model-base",), check=_given, resumable=True, metavar="FILE"
    )
    data: str = _setting(
        "",
        "Training data: CSV of questions and answers, <SFT> text or plain text.",
        finetune_flags=("--train-data",),
        check=_given,
        resumable=True,
        metavar="FILE",
    )
    question_column: str = _setting("", "Column of the questions (default: found by its name).", metavar="NAME")
    answer_column: str = _setting("", "Column of the answers (default: found by its name).", metavar="NAME")
    sample_start: str | None = _setting(
        None,
        "What starts each sample in a text file ('': plain text, cut into windows of the context; default: <SFT> where "
        "it occurs).",
        metavar="TEXT",
    )
    include_sample_start: bool = _setting(False, "Leave that text in the samples.")
    overlapping_samples: bool = _setting(False, "Start a window of plain text every half context.")
    template: str = _setting(
        "",
        "Prompt template: alpaca, llama2, mistral, chatml, llama3, gemma, phi3, plain, or model for the model's own "
        "(the default where it has one; else plain).",
        metavar="NAME",
    )
    system: str = _setting("", "System text put before every question.", metavar="TEXT")
    loss_on: str = _setting(
        "answer",
        "Tokens that count in the loss: the answer and its end token, or all.",
        choices=("answer", "all"),
        finetune_default="all",
    )
    too_long: str = _setting("cut", "What to do with samples longer than the context.", choices=("cut", "skip"))
    holdout: str = _setting(
        "0.05",
        "Samples kept out of training, to measure the loss on after each epoch: a share (5% or 0.05; at least one), "
        "a number, every:20 (the first and each 20th after it), or 0.",
        finetune_default="0",
        check=_holdout,
        metavar="HOW",
    )

    ctx: int = _setting(
        512,
        "Longest sample in tokens, at most what the model was made for.",
        flags=("-c",),
        finetune_default=128,
        check=_at_least(2),
    )
    batch: int = _setting(8, "Samples per optimizer step.", flags=("-b",), check=_at_least(1))
    micro_batch_tokens: int = _setting(
        0,
        "Most tokens computed at once: samples are packed up to this (0: the context, at least 512). "
        "Less takes less memory, more is faster.",
        check=_at_least(0),
    )
    epochs: float = _setting(
        3.0, "Passes over the data (0 or less: no limit).", finetune_default=-1.0, resumable=True, metavar="NUMBER"
    )
    max_steps: int = _setting(
        0,
        "Optimizer steps at most (0: no limit).",
        finetune_flags=("--adam-iter",),
        finetune_default=256,
        check=_at_least(0),
        resumable=True,
    )

    lr: float = _setting(
        2e-4, "Peak learning rate.", finetune_flags=("--adam-alpha",), finetune_default=1e-3, check=_above(0)
    )
    schedule: str = _setting("cosine", "Learning rate after the warm-up.", choices=("cosine", "linear", "constant"))
    warmup: float = _setting(
        0.05,
        "Warm-up from 0 to the peak: a share of all steps if below 1, else a number of steps.",
        finetune_default=100.0,
        check=_at_least(0),
        metavar="NUMBER",
    )
    decay_steps: int = _setting(
        0,
        "Steps from the end of the warm-up to the lowest rate (0: to the run's last step).",
        finetune_flags=("--cos-decay-steps",),
        finetune_default=1000,
        check=_at_least(0),
    )
    min_lr_ratio: float = _setting(
        0.0,
        "Lowest learning rate, as a share of the peak.",
        finetune_flags=("--cos-decay-min",),
        finetune_default=0.1,
        check=_within(0, 1, open_end=False),
    )
    beta1: float = _setting(
        0.9, "AdamW: decay of the first moment.", finetune_flags=("--adam-beta1",), check=_within(0, 1)
    )
    beta2: float = _setting(
        0.999, "AdamW: decay of the second moment.", finetune_flags=("--adam-beta2",), check=_within(0, 1)
    )
    epsilon: float = _setting(1e-8, "AdamW: added to the denominator.", check=_above(0))
    weight_decay: float = _setting(
        0.0,
        "AdamW: decoupled weight decay.",
        finetune_flags=("--adam-decay",),
        finetune_default=0.1,
        check=_at_least(0),
    )
    clip: float = _setting(
        1.0, "Largest norm of the gradient (0: not clipped).", finetune_flags=("--adam-gclip",), check=_at_least(0)
    )

    rank: int = _setting(
        16, "Rank of the adapter.", finetune_flags=("--lora-r",), finetune_default=4, check=_at_least(1)
    )
    alpha: float | None = _setting(
        None,
        "Strength of the adapter: its product is scaled by alpha / rank (default: the rank).",
        finetune_flags=("--lora-alpha",),
        check=lambda v: None if v is None or (math.isfinite(v) and v != 0) else "must be a number other than 0",
        metavar="NUMBER",
    )
    targets: tuple[str, ...] = _setting(
        (LINEAR_KINDS_ALL,),
        "Linears that get an adapter, separated by commas: attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, "
        "ffn_down, ... or all.",
        check=_kinds,
        metavar="NAMES",
    )
    rslora: bool = _setting(False, "Scale by alpha / sqrt(rank) (rank-stabilized LoRA).")
    dropout: float = _setting(0.0, "Dropout in front of the adapter.", check=_within(0, 1))

    stop_loss: float = _setting(
        0.0, "Stop when the training loss has stayed under this (0: never).", check=_at_least(0), resumable=True
    )
    stop_patience: int = _setting(
        5, "... for this many steps in a row.", check=_at_least(1), resumable=True, metavar="STEPS"
    )
    save_every: str = _setting(
        "50",
        "How often a checkpoint is written: a number of steps, a time such as 90s, 10m or 2h, or 0: only at the end.",
        finetune_default="10",
        check=_save_every,
        resumable=True,
        metavar="HOW",
    )
    keep: int = _setting(
        3,
        "Checkpoints kept: the newest, and beside them the one of the best held-out loss (0: all).",
        finetune_default=0,
        check=_at_least(0),
        resumable=True,
    )
    spike: float = _setting(
        3.0,
        "Report a step whose loss is this many times the smoothed loss (0: never).",
        check=_at_least(0),
        resumable=True,
        metavar="FACTOR",
    )

    seed: int = _setting(0, "Seed of everything random (negative: drawn anew).", flags=("-s",))
    threads: int = _setting(
        0,
        "Threads (0: the processors that the process may use).",
        flags=("-t",),
        check=_at_least(0),
        resumable=True,
    )
    recompute: str = _setting(
        "auto",
        "Keep only a layer's input and compute its inside again for the gradient: less memory, up to a third slower. "
        "layers: all of them (so does --recompute alone); none (as --no-recompute); auto: as few as the free memory "
        "asks for.",
        finetune_flags=("--use-checkpointing",),
        choices=("auto", "layers", "none"),
        switch=Switch("layers", "none", ("--no-checkpointing", "--no-use-checkpointing")),
        resumable=True,
    )
    precision: str = _setting(
        "auto",
        "Products with quantized weights, where the CPU has integer dot products: auto takes int8 ones forward, as "
        "llama.cpp does, and int16 ones for the gradients; f32 none.",
        choices=("auto", "f32"),
        resumable=True,
        rounds=True,
    )
    force: bool = _setting(False, "Start even where more memory or disk space is needed than there is.", resumable=True)

    def __post_init__(self) -> None:
        """Check every field."""
        problems = []
        for f in fields(self):
            setting, value = setting_of(f), getattr(self, f.name)
            if setting.choices and value not in setting.choices:
                problems.append(f"{flag(f.name)} must be one of {', '.join(setting.choices)} (it is {value!r})")
            elif setting.check and (wrong := setting.check(value)):
                problems.append(f"{flag(f.name)} {wrong}" + ("" if value == "" else f" (it is {value!r})"))
        if self.epochs <= 0 and not self.max_steps and not self.stop_loss:
            problems.append("nothing ends the run: give --epochs, --max-steps or --stop-loss")
        if problems:
            raise GgtuneError("; ".join(problems))
        if self.seed < 0:
            object.__setattr__(self, "seed", secrets.randbelow(2**31))

    @property
    def effective_alpha(self) -> float:
        """``alpha``, or the rank where none is given."""
        return float(self.rank) if self.alpha is None else self.alpha

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON keeps them."""
        return {f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v for f in fields(self)}

    def to_json(self) -> str:
        """Return the text that a checkpoint and ``config.json`` hold."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Undo :meth:`to_dict`; a name that is no field, or a value of another type, raises :class:`GgtuneError`."""
        by_name = {f.name: f for f in fields(cls)}
        if unknown := sorted(set(values) - set(by_name)):
            raise GgtuneError(f"unknown settings {', '.join(unknown)}: written by another version of ggtune?")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if wrong := [name for name, value in plain.items() if not _has_type(value, by_name[name].type)]:
            raise GgtuneError(f"settings of a wrong type: {', '.join(wrong)}")
        return cls(**plain)

    @classmethod
    def for_face(cls, face: Face, **values: Any) -> "TrainConfig":
        """Take the defaults of a command, and ``values`` on top."""
        return cls(**{**defaults(face), **values})


def _has_type(value: Any, expected: Any) -> bool:
    if expected == tuple[str, ...]:
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    if isinstance(value, bool) or expected is bool:
        return isinstance(value, bool) and expected is bool
    # a whole number is a float too
    return isinstance(value, expected) or (isinstance(value, int) and isinstance(0.0, expected))


def flag(name: str) -> str:
    """``stop_loss`` as ``--stop-loss``."""
    return "--" + name.replace("_", "-")


def defaults(face: Face) -> dict[str, Any]:
    """Return the default of each field for a command."""
    return {
        f.name: f.default if face == "train" or setting_of(f).same_default else setting_of(f).finetune_default
        for f in fields(TrainConfig)
    }


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Say what keeps a run with ``old`` settings from going on with ``new`` ones: one text per setting."""
    return [
        f"{flag(f.name)} was {a!r} and is {b!r}"
        for f in fields(TrainConfig)
        if not setting_of(f).resumable and (a := getattr(old, f.name)) != (b := getattr(new, f.name))
    ]


def rounding_differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Name the changed settings after which a continued run is the same but for rounding, no more bit for bit."""
    return [
        f"{flag(f.name)} was {a!r} and is {b!r}"
        for f in fields(TrainConfig)
        if setting_of(f).rounds and (a := getattr(old, f.name)) != (b := getattr(new, f.name))
    ]
