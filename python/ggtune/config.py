"""Every setting of a training run: its default, its help text, its check. The command line is generated from here.

There are two faces. ``train`` (and ``run``) has today's defaults; ``finetune`` has the defaults and the flag names of
llama.cpp's old ``finetune``, given in the same place as ``finetune_default`` and ``finetune_flags``.
"""

import dataclasses
import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from ggtune.errors import GgtuneError
from ggtune.setting import Switch, above, at_least, filled, parsed_by, setting, setting_of, within
from ggtune.setting_texts import (
    EVENT_LOGS,
    NO_DEVICE,
    NO_LOG,
    DeviceMemory,
    EvalInterval,
    GpuLayers,
    Holdout,
    SaveInterval,
    unknown_doubts,
    unknown_encoding,
    unknown_logs,
    wrong_parts,
    wrong_split,
)

Face = Literal["train", "finetune"]

# What --targets takes beside the kinds of linears that a model has: names of several of them, with their meaning.
DENSE = "dense"
LINEAR_GROUPS = {
    DENSE: "every linear that each token goes through: all but experts and routers",
    "all": "these and the experts",
    "attention": "those of attention",
    "ffn": "those of the feed-forward layers, of shared experts too",
    "experts": "the experts alone",
}

# What --early-stop and the best step go by: the loss, the share of target tokens that are the model's first choice, and
# scores of generated answers, which cost an answer to each of some held-out questions.
STOP_METRICS = ("loss", "token_accuracy", "exact_match", "f1", "rouge_l")
EVAL_EVERY = "1ep"

# which devices layers lie on
DEVICE_SETTINGS = ("gpu_layers", "device", "main_device", "split", "cpu_experts", "device_memory")

WITHOUT_EFFECT_ON_ALL = ("learn", "prompt_weight")  # where every token counts in the loss

# Where --stop-loss alone ends a run, without a number of epochs or steps: it ends all the same after so many epochs
# (and at least so many steps: a small table has few in an epoch), or when the loss no longer falls.
CEILING_EPOCHS = 200
CEILING_LEAST_STEPS = 1000
_PLATEAU_EPOCHS = 3
_WARMUP_STEPS = 10.0  # of such a run, whose length nobody knows
LEAST_LR, MOST_LR = 2e-4, 4e-3  # bounds of its rate, which goes by the model's width
_EPOCHS, _LR, _WARMUP_SHARE, _RANK = 3.0, 2e-4, 0.05, 16


def _kinds(value: tuple[str, ...]) -> str | None:
    if value and all(part.removeprefix("-") for part in value):
        return None
    return f"must be linears or groups separated by commas, such as attn_q,attn_v or {', '.join(LINEAR_GROUPS)}"


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training run; checked when made (every problem in one :class:`GgtuneError`)."""

    model: str = setting(
        "",
        "Base model, a GGUF file.",
        finetune_flags=("--model-base",),
        check=filled,
        resumable=True,
        metavar="FILE",
    )
    data: str = setting(
        "",
        "Training data: a file or folder of conversations (CSV, JSONL, JSON, Parquet, <SFT> text) or of plain text.",
        finetune_flags=("--train-data",),
        check=filled,
        resumable=True,
        metavar="FILE",
    )
    more_data: tuple[str, ...] = setting(
        (),
        "More data, separated by commas: FILE, FILE=0.5 to weight its tokens, FILE*3 to take it three times an epoch.",
        check=wrong_parts,
        metavar="FILES",
    )
    repeat: int = setting(1, "How often the data are taken in an epoch.", check=at_least(1), metavar="TIMES")
    question_column: str = setting("", "Column of the questions (default: found by its name).", metavar="NAME")
    answer_column: str = setting("", "Column of the answers (default: found by its name).", metavar="NAME")
    context_column: str = setting(
        "", "Column of what a question or instruction is about (default: context or input beside it).", metavar="NAME"
    )
    weight_column: str = setting(
        "", "Column of each row's weight in the loss (default: weight, where there is one).", metavar="NAME"
    )
    category_column: str = setting(
        "",
        "Column of what each row is about: evaluations report on each category by itself (default: category, topic or "
        "label, where there is one).",
        resumable=True,
        metavar="NAME",
    )
    data_format: str = setting(
        "",
        "Format of the data: csv, jsonl, json, parquet, arrow, sft or text (default: by suffix and content).",
        flags=("--format",),
        metavar="NAME",
    )
    encoding: str = setting(
        "",
        "Encoding of the data's text files, such as utf-8, cp1251 or shift_jis (default: found by their content).",
        check=unknown_encoding,
        metavar="NAME",
    )
    skip_bad: bool = setting(False, "Go on without rows that can't be used (each is said) instead of stopping.")
    sample_start: str | None = setting(
        None,
        "What starts each sample in a text file ('': plain text, cut into windows of the context; default: <SFT> where "
        "it occurs).",
        metavar="TEXT",
    )
    include_sample_start: bool = setting(False, "Leave that text in the samples.")
    overlapping_samples: bool = setting(False, "Start a window of plain text every half context.")
    template: str = setting(
        "",
        "Prompt template: alpaca, llama2, mistral, chatml, llama3, gemma, phi3, plain, a Jinja file (*.jinja), or "
        "model for the model's own (the default where it has one; else plain).",
        metavar="NAME",
    )
    system: str = setting("", "System text put before every question.", metavar="TEXT")
    loss_on: str = setting(
        "answer",
        "Tokens that count in the loss: the answer and its end token, or all (not with --learn or --prompt-weight).",
        choices=("answer", "all"),
        finetune_default="all",
    )
    learn: str = setting(
        "all-assistant",
        "Of a conversation: all that the assistant writes, its last turn alone, its answers without its thinking, or "
        "its thinking alone.",
        choices=("all-assistant", "last", "answers", "thinking"),
    )
    prompt_weight: float = setting(
        0.0, "Weight in the loss of the tokens that the model is given.", check=within(0, 1, open_end=False)
    )
    split_turns: bool = setting(
        True,
        "Where the template leaves out what the assistant thought in earlier turns, make a sample of each such turn: "
        "every thought is learned, as the model is asked for it.",
    )
    drop: tuple[str, ...] = setting(
        (),
        "Leave out rows with these doubts, separated by commas (`ggtune check-data` names them: duplicate, "
        '"near duplicate", contradiction, chatbot, "short answer", ...).',
        check=unknown_doubts,
        metavar="KINDS",
    )
    too_long: str = setting("cut", "What to do with samples longer than the context.", choices=("cut", "skip"))
    holdout: str = setting(
        "0.05",
        "Samples kept out of training, to measure the loss on after each epoch: a share (5% or 0.05; at least one), "
        "a number, every:20 (the first and each 20th after it), another data file, or 0.",
        finetune_default="0",
        check=parsed_by(Holdout.parse),
        metavar="HOW",
    )

    ctx: int = setting(
        512,
        "Longest sample in tokens, at most what the model was made for.",
        flags=("-c",),
        finetune_default=128,
        check=at_least(2),
    )
    batch: int = setting(8, "Samples per optimizer step.", flags=("-b",), check=at_least(1))
    micro_batch_tokens: int = setting(
        0,
        "Most tokens computed at once: samples are packed up to this (0: the context, at least 512, and up to 2048 "
        "where a mixture of experts needs them to keep all experts busy). "
        "Less takes less memory, more is faster.",
        check=at_least(0),
    )
    # None, where it stays so: until the loss has stayed under stop_loss
    epochs: float | None = setting(
        None,
        "Passes over the data (0 or less: no limit).",
        finetune_default=-1.0,
        default_text=f"{_EPOCHS:g}; with --stop-loss alone as many as it takes, {CEILING_EPOCHS} at most",
        resumable=True,
        metavar="NUMBER",
    )
    max_steps: int = setting(
        0,
        "Optimizer steps at most (0: no limit).",
        finetune_flags=("--adam-iter",),
        finetune_default=256,
        check=at_least(0),
        resumable=True,
    )

    lr: float = setting(
        None,
        "Peak learning rate.",
        finetune_flags=("--adam-alpha",),
        finetune_default=1e-3,
        default_text=f"{_LR:g}; with --stop-loss alone 1 / the model's width, {LEAST_LR:g} to {MOST_LR:g}",
        check=above(0),
    )
    schedule: str = setting(
        None,
        "Learning rate after the warm-up.",
        choices=("cosine", "linear", "constant"),
        finetune_default="cosine",
        default_text="cosine; with --stop-loss alone constant",
    )
    warmup: float = setting(
        None,
        "Warm-up from 0 to the peak: a share of all steps if below 1, else a number of steps.",
        finetune_default=100.0,
        default_text=f"{_WARMUP_SHARE:g}; with --stop-loss alone {_WARMUP_STEPS:g}",
        check=at_least(0),
        metavar="NUMBER",
    )
    decay_steps: int = setting(
        0,
        "Steps from the end of the warm-up to the lowest rate (0: to the run's last step).",
        finetune_flags=("--cos-decay-steps",),
        finetune_default=1000,
        check=at_least(0),
    )
    min_lr_ratio: float = setting(
        0.0,
        "Lowest learning rate, as a share of the peak.",
        finetune_flags=("--cos-decay-min",),
        finetune_default=0.1,
        check=within(0, 1, open_end=False),
    )
    beta1: float = setting(
        0.9, "AdamW: decay of the first moment.", finetune_flags=("--adam-beta1",), check=within(0, 1)
    )
    beta2: float = setting(
        0.999, "AdamW: decay of the second moment.", finetune_flags=("--adam-beta2",), check=within(0, 1)
    )
    epsilon: float = setting(1e-8, "AdamW: added to the denominator.", check=above(0))
    weight_decay: float = setting(
        0.0,
        "AdamW: decoupled weight decay.",
        finetune_flags=("--adam-decay",),
        finetune_default=0.1,
        check=at_least(0),
    )
    clip: float = setting(
        1.0, "Largest norm of the gradient (0: not clipped).", finetune_flags=("--adam-gclip",), check=at_least(0)
    )

    lora_plus_ratio: float = setting(
        1.0,
        "LoRA+: B's learning rate is so many times A's, which is --lr (1: the same; 4 to 16 with a lower --lr).",
        check=above(0),
    )

    from_adapter: str = setting(
        "",
        "Adapter to start from, with this data and a schedule of its own: ggtune's, llama.cpp's or an imported one. "
        "Rank, alpha and targets are the file's.",
        flags=("--from",),
        metavar="FILE",
    )
    rank: int = setting(
        None,
        "Rank of the adapter.",
        finetune_flags=("--lora-r",),
        finetune_default=4,
        default_text=f"{_RANK}, or that of --from",
        check=at_least(1),
    )
    alpha: float | None = setting(
        None,
        "Strength of the adapter: its product is scaled by alpha / rank.",
        finetune_flags=("--lora-alpha",),
        default_text="the rank, or that of --from",
        check=lambda v: None if v is None or (math.isfinite(v) and v != 0) else "must be a number other than 0",
        metavar="NUMBER",
    )
    targets: tuple[str, ...] = setting(
        None,
        "Linears that get an adapter, separated by commas: attn_q, ffn_up, ... (`ggtune inspect` lists a model's), "
        "or groups: " + "; ".join(f"{name}: {text}" for name, text in LINEAR_GROUPS.items()) + ". A minus leaves out: "
        "all,-attn_k.",
        finetune_default=(DENSE,),
        default_text=f"{DENSE}, or those of --from",
        check=_kinds,
        metavar="NAMES",
    )
    rslora: bool = setting(False, "Scale by alpha / sqrt(rank) (rank-stabilized LoRA).")
    dropout: float = setting(0.0, "Dropout in front of the adapter.", check=within(0, 1))
    neftune_alpha: float = setting(
        0.0, "Noise on the embeddings while training (NEFTune; 5 is usual, 0: none).", check=at_least(0)
    )

    stop_loss: float = setting(
        0.0, "Stop when the training loss has stayed under this (0: never).", check=at_least(0), resumable=True
    )
    stop_patience: int = setting(
        5, "... for this many steps in a row.", check=at_least(1), resumable=True, metavar="STEPS"
    )
    stop_plateau: int = setting(
        None,
        "Halve the rate when the mean training loss of an epoch has not got 1 % better for this many epochs (and 50 "
        "steps), and stop at the fourth time (0: never).",
        finetune_default=0,
        default_text=f"0; with --stop-loss alone {_PLATEAU_EPOCHS}",
        check=at_least(0),
        resumable=True,
        metavar="EPOCHS",
    )
    eval_every: str = setting(
        EVAL_EVERY,
        "How often the held-out loss is measured: a number of steps, a share of an epoch such as 0.5ep, a time such as "
        "10m, or 0: only before the training and at its end.",
        check=parsed_by(EvalInterval.parse),
        resumable=True,
        metavar="HOW",
    )
    early_stop: int = setting(
        0,
        "Stop after so many measurements in a row that were no better than the best one before (0: never). The best "
        "step is kept and handed on in any case.",
        check=at_least(0),
        resumable=True,
        metavar="TIMES",
    )
    early_stop_metric: str = setting(
        "loss",
        "What is better: a lower held-out loss, or a higher score on held-out samples. exact_match, f1 and rouge_l "
        "generate answers for it.",
        choices=STOP_METRICS,
    )
    sample_every: str = setting(
        "0",
        "How often a few fixed questions are answered, into samples.jsonl: as --eval-every; they are asked before the "
        "training and at its end, too (0: never).",
        check=parsed_by(EvalInterval.parse),
        resumable=True,
        metavar="HOW",
    )
    sample_questions: str = setting(
        "3",
        "These questions: how many to draw from the held-out samples (without any, from the others), or a file with "
        "one on each line, or a table.",
        check=filled,
        resumable=True,
        metavar="N|FILE",
    )
    save_every: str = setting(
        "50",
        "How often a checkpoint is written: a number of steps, a time such as 90s, 10m or 2h, or 0: only at the end.",
        finetune_default="10",
        check=parsed_by(SaveInterval.parse),
        resumable=True,
        metavar="HOW",
    )
    keep: int = setting(
        3,
        "Checkpoints kept: the newest, and beside them the one of the best held-out loss (0: all).",
        finetune_default=0,
        check=at_least(0),
        resumable=True,
    )
    spike: float = setting(
        3.0,
        "Report a step whose loss is this many times the smoothed loss (0: never).",
        check=at_least(0),
        resumable=True,
        metavar="FACTOR",
    )
    log: tuple[str, ...] = setting(
        (),
        f"Also write an event log into the run folder, or several separated by commas: {', '.join(EVENT_LOGS)} "
        f"({NO_LOG}: no more). Nothing is sent over the network.",
        check=unknown_logs,
        resumable=True,
        metavar="NAMES",
    )

    seed: int = setting(0, "Seed of everything random (negative: drawn anew).", flags=("-s",))
    threads: int = setting(
        0,
        "Threads (0: the processors that the process may use).",
        flags=("-t",),
        check=at_least(0),
        resumable=True,
    )
    recompute: str = setting(
        "auto",
        "Keep only a layer's input and compute its inside again for the gradient: less memory, up to a third slower. "
        "layers: all of them (so does --recompute alone); none (as --no-recompute); auto: as few as the free memory "
        "asks for.",
        finetune_flags=("--use-checkpointing",),
        choices=("auto", "layers", "none"),
        switch=Switch("layers", "none", ("--no-checkpointing", "--no-use-checkpointing")),
        resumable=True,
    )
    precision: str = setting(
        "auto",
        "Products with quantized weights: auto rounds their operands where that is faster, to bf16 on CPUs with a "
        "matrix unit, else to int8 forward, as llama.cpp does, and int16 for the gradients; f32 rounds nothing.",
        choices=("auto", "f32"),
        resumable=True,
        rounds=True,
    )
    gpu_layers: str = setting(
        "auto",
        "Layers that lie on devices (GPUs), the last ones; the output head counts as one more: a number, all, or auto: "
        "as many as fit, where there is a device. The others are computed by the CPU.",
        flags=("-ngl",),
        finetune_flags=("--n-gpu-layers",),
        check=parsed_by(GpuLayers.parse),
        resumable=True,
        rounds=True,
        metavar="N|all|auto",
    )
    device: tuple[str, ...] = setting(
        (),
        f"These devices alone, separated by commas (`ggtune devices` lists them; {NO_DEVICE}: the CPU alone; default: "
        "all).",
        resumable=True,
        rounds=True,
        metavar="NAMES",
    )
    main_device: str = setting(
        "",
        "Of several devices the one that computes the output head and the loss: it takes the last layers (default: the "
        "last of --device).",
        resumable=True,
        rounds=True,
        metavar="NAME",
    )
    split: str = setting(
        "",
        "How the layers are shared out among several devices, in their order: proportions such as 3,1 (default: by "
        "their free memory).",
        check=wrong_split,
        resumable=True,
        rounds=True,
        metavar="PROPORTIONS",
    )
    cpu_experts: int = setting(
        0,
        "Of so many of the first layers on devices the experts of a mixture stay in main memory, and are computed by "
        "the CPU.",
        check=at_least(0),
        resumable=True,
        rounds=True,
        metavar="LAYERS",
    )
    device_memory: str = setting(
        "",
        "Memory to use of each device, such as 6G or 50% (default: what is free, less a margin).",
        check=parsed_by(DeviceMemory.parse),
        resumable=True,
        metavar="SIZE",
    )
    force: bool = setting(
        False,
        "Start even where more memory or disk space is needed than there is, or from an adapter of another base.",
        resumable=True,
    )

    def __post_init__(self) -> None:
        """Settle the defaults that depend on other settings, and check every field.

        What depends on the model or on ``from_adapter`` (``lr`` of a run until its ``stop_loss``; rank and targets of
        an adapter that is gone on from) stays None until :func:`ggtune.train.start.settled`.
        """
        for name, value in self._dependent_defaults().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        problems = []
        for f in fields(self):
            setting, value = setting_of(f), getattr(self, f.name)
            if value is None and f.default is None:
                continue
            if setting.choices and value not in setting.choices:
                problems.append(f"{flag(f.name)} must be one of {', '.join(setting.choices)} (it is {value!r})")
            elif setting.check and (wrong := setting.check(value)):
                problems.append(f"{flag(f.name)} {wrong}" + ("" if value == "" else f" (it is {value!r})"))
        if self.epochs is not None and self.epochs <= 0 and not self.max_steps and not self.stop_loss:
            problems.append("nothing ends the run: give --epochs, --max-steps or --stop-loss")
        if problems:
            raise GgtuneError("; ".join(problems))
        if self.seed < 0:
            object.__setattr__(self, "seed", secrets.randbelow(2**31))

    def _dependent_defaults(self) -> dict[str, Any]:
        if self.epochs is None and not self.max_steps and self.stop_loss > 0:
            values = {"schedule": "constant", "warmup": _WARMUP_STEPS, "stop_plateau": _PLATEAU_EPOCHS}
        else:
            values = {"epochs": _EPOCHS, "lr": _LR, "schedule": "cosine", "warmup": _WARMUP_SHARE, "stop_plateau": 0}
        return values if self.from_adapter else {**values, "rank": _RANK, "targets": (DENSE,)}

    @property
    def until_stop_loss(self) -> bool:
        """True where ``stop_loss`` alone ends the run: no number of epochs or steps was given."""
        return self.epochs is None

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
        if wrong := [name for name, value in plain.items() if not _fits(value, by_name[name])]:
            raise GgtuneError(f"settings of a wrong type: {', '.join(wrong)}")
        return cls(**plain)

    def continued(self, given: Mapping[str, Any]) -> "TrainConfig":
        """Return the settings of a run that goes on, with those that are ``given`` now.

        One that went until its ``stop_loss`` and is given a number of steps has that for its end, not the epochs of a
        new run beside it.
        """
        endless = {"epochs": 0.0} if self.epochs is None and given.get("max_steps") else {}
        return self.from_dict({**self.to_dict(), **endless, **given})

    @classmethod
    def for_face(cls, face: Face, **values: Any) -> "TrainConfig":
        """Take the defaults of a command, and ``values`` on top."""
        return cls(**{**defaults(face), **values})


def _fits(value: Any, f: "dataclasses.Field[Any]") -> bool:
    return (value is None and f.default is None) or _has_type(value, f.type)


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
