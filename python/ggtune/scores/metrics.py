"""The scores that an evaluation has: what they are called, which way is better, how many digits are shown."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One score."""

    name: str  # in files
    title: str  # for a reader
    digits: int  # behind the point
    higher_is_better: bool | None  # None: neither
    of_answers: bool  # needs generated answers
    library: str = ""  # of the extra "scores", where it takes one


_ALL = (
    Metric("loss", "Loss (nats per token)", 4, False, False),
    Metric("perplexity", "Perplexity", 2, False, False),
    Metric("token_accuracy", "Token accuracy", 3, True, False),
    Metric("exact_match", "Exact match", 3, True, True),
    Metric("f1", "F1 of words", 3, True, True),
    Metric("rouge_l", "ROUGE-L", 3, True, True, "rouge_score"),
    Metric("bleu", "BLEU (0 to 100)", 2, True, True, "sacrebleu"),
    Metric("chrf", "chrF (0 to 100)", 2, True, True, "sacrebleu"),
    Metric("ended", "Answers that end", 3, True, True),
    Metric("repetition", "Repetition", 3, False, True),
    Metric("length_ratio", "Length to reference", 2, None, True),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""By their names in files, in the order in which they are shown."""
