"""Does a model expect another prompt template than the one that was trained with? Its own one tells."""

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ggtune.data.chat_template import choose_template
from ggtune.data.conversation import exchange
from ggtune.data.encoding import SampleEncoder
from ggtune.data.options import LoadOptions
from ggtune.data.samples import Sample
from ggtune.data.templates import Template
from ggtune.errors import GgtuneError
from ggtune.evaluate.log_probs import Likelihood, Text
from ggtune.scores.statistics import Difference, paired_difference
from ggtune.train.questions import Question

if TYPE_CHECKING:
    from ggtune._core import Model

_MOST_QUESTIONS = 24
_LEAST_QUESTIONS = 8
_STEADY_QUESTIONS = 16  # so many are looked at however long it takes: fewer don't tell it from chance


@dataclass(frozen=True)
class TemplateFit:
    """Losses of the base on the same answers, by two templates."""

    used: str
    loss_used: float  # nats per token of the answers
    loss_own: float
    gain: Difference  # what the model's own template is worth, nats per token
    n_questions: int


def own_template(model: "Model", used: Template | None, now: datetime.datetime | None = None) -> Template | None:
    """Give the model's own template where it has one that can be used, and another one is ``used``.

    ``now`` is the time for templates that write the date.
    """
    if used is None or used.name == "model" or not model.chat_template:
        return None
    try:
        return choose_template("model", model, now=now)
    except GgtuneError:  # it can't be used: nobody is told to
        return None


def written(
    model: "Model", template: Template, questions: Sequence[Question], system: str | None
) -> list[Sample | None]:
    """Write questions with their references in a template; None for those that it has no place for."""
    context = model.n_ctx_train or 4096
    encoder = SampleEncoder(model, template, LoadOptions(context, template))

    def sample(question: Question) -> Sample | None:
        if not question.asks:
            return None
        turns = exchange(question.question, question.reference, row=question.row, system=system)
        try:
            made = encoder.conversation(turns)[0]
        except GgtuneError:  # no place for a system text, say
            return None
        fits = made.n_prompt >= 1 and len(made.tokens) - made.n_prompt >= 2 and len(made.tokens) <= context
        return made if fits else None

    return [sample(question) for question in questions]


def template_fit(
    likelihood: Likelihood,
    used: Template,
    own: Template,
    questions: Sequence[Question],
    system: str | None,
    *,
    seconds: float = 20.0,
) -> TemplateFit | None:
    """Compare the ``used`` template with the model's ``own``; None where both ask in the same words.

    ``questions`` are such as the model was trained on.
    """
    model = likelihood.model
    texts: list[Text] = []
    lengths: list[int] = []
    pairs = zip(*(written(model, template, questions, system) for template in (used, own)), strict=True)
    for by_used, by_own in pairs:
        if by_used is None or by_own is None or len(lengths) == _MOST_QUESTIONS:
            continue
        if by_used.tokens.tolist() == by_own.tokens.tolist():
            return None
        for sample in (by_used, by_own):
            # without the end token, which is another one in each of them
            texts.append((sample.tokens[: sample.n_prompt].tolist(), [sample.tokens[sample.n_prompt : -1].tolist()]))
        lengths.append(len(texts[-1][1][0]))
    if len(lengths) < _LEAST_QUESTIONS:
        return None
    started, sums = time.monotonic(), []
    for found in likelihood.each(texts):
        sums.append(-float(found[0].sum(dtype=np.float64)))
        if time.monotonic() - started > seconds and len(sums) >= 2 * _STEADY_QUESTIONS:
            break
    n = len(sums) // 2
    weights = np.array(lengths[:n], np.float64)
    with_used, with_own = (np.array(sums[part : 2 * n : 2]) / weights for part in (0, 1))
    return TemplateFit(
        used.title,
        float(np.average(with_used, weights=weights)),
        float(np.average(with_own, weights=weights)),
        paired_difference(with_own, with_used, weights),
        n,
    )
