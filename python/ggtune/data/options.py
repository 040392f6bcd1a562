"""How data become samples."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Literal

from ggtune.data.readers.reader import ReadOptions
from ggtune.data.samples import LossOn, TooLong
from ggtune.data.templates import Template

Learn = Literal["all-assistant", "last", "answers", "thinking"]
"""Which of the assistant's words are learned: all, those of its last turn, all but its thinking, or that alone."""


@dataclass(frozen=True)
class LoadOptions:
    """How data become samples; ``template`` None or "" stands for the model's own, or the one a text was made with.

    ``learn``: which of the assistant's words count (:class:`Learn`); ``prompt_weight`` is the weight of what the model
    is given. ``split_turns``: see :meth:`ggtune.data.encoding.SampleEncoder.conversation`. ``now`` is the time for a
    model's template that writes the date: the same time gives the same samples.
    """

    context: int
    template: Template | str | None = None
    system: str | None = None
    loss_on: LossOn = "answer"
    learn: Learn = "all-assistant"
    prompt_weight: float = 0.0
    too_long: TooLong = "cut"
    drop: tuple[str, ...] = ()
    near_duplicates: bool = False
    read: ReadOptions = field(default_factory=ReadOptions)
    split_turns: bool = True
    include_sample_start: bool = False
    overlapping_samples: bool = False
    now: datetime.datetime | None = None
