"""Answers of the model with its adapter as it stands, in the middle of a training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from ggtune._native import core
from ggtune.data.samples import Sample
from ggtune.generate import answers
from ggtune.gguf.adapter_file import adapter_content, write_adapter

if TYPE_CHECKING:
    from ggtune._core import Adapter, Model

_BATCH_TOKENS = 512


@dataclass(frozen=True)
class Answer:
    """What was generated."""

    text: str
    ended: bool  # by itself
    n_tokens: int


def greedy_answers(
    model: "Model",
    adapter: "Adapter",
    prompts: Sequence[Sequence[int]],
    *,
    stops: Sequence[str],
    max_tokens: int,
    threads: int,
) -> list[Answer]:
    """The likeliest token each time, up to an end token, a stop text or ``max_tokens``."""
    found = dict(answers(model, prompts, adapter=adapter, stops=stops, max_tokens=max_tokens, threads=threads))
    return [Answer(found[i].text.strip(), found[i].ended, len(found[i].tokens)) for i in range(len(prompts))]


def token_accuracy(model: "Model", adapter: "Adapter", samples: Sequence[Sample], *, threads: int) -> float:
    """Share of the target tokens of ``samples`` that are the model's first choice, as llama.cpp computes it."""
    n_right = n_targets = 0
    with TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.gguf"
        write_adapter(path, adapter_content(adapter, {}))
        longest = max(len(sample.tokens) for sample in samples)
        most = max(longest, _BATCH_TOKENS)
        scorer = core.Scorer(model, [(str(path), 1.0)], n_tokens=most, n_sequences=len(samples), threads=threads)
        group: list[Sample] = []
        for sample in (*samples, None):
            if group and (sample is None or sum(len(s.tokens) for s in group) + len(sample.tokens) > most):
                right, targets = _first_choices(scorer, group)
                n_right, n_targets, group = n_right + right, n_targets + targets, []
            if sample is not None:
                group.append(sample)
    return n_right / n_targets if n_targets else 0.0


def _first_choices(scorer: "core.Scorer", samples: Sequence[Sample]) -> tuple[int, int]:
    tokens = np.concatenate([sample.tokens for sample in samples]).astype(np.int32)
    sequences = np.repeat(np.arange(len(samples), dtype=np.int32), [len(sample.tokens) for sample in samples])
    outputs = np.concatenate([np.append(sample.weights[1:] > 0, False) for sample in samples])
    targets = np.concatenate([sample.tokens[1:][sample.weights[1:] > 0] for sample in samples])
    found = scorer.logits(tokens, sequences, outputs).argmax(axis=1)
    return int(np.count_nonzero(found == targets)), len(targets)
