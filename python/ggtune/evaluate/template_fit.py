"""Does a model expect another prompt template than the one that was trained with? Its own one tells."""

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ggtune.data.chat_template import choose_template
from ggtune.data.conversation import exchange
from ggtune.data.encoding import SampleEncoder
from ggtune.data.options import LoadOptions
from ggtune.data.samples import Sample
from ggtune.data.templates import Template
from ggtune.errors import GgtuneError
from ggtune.evaluate.log_probs import Likelihood, Text
from ggtune.evaluate.questions import Question
from ggtune.scores.statistics import Difference, paired_difference

_MOST_QUESTIONS = 24
_LEAST_QUESTIONS = 8


@dataclass(frozen=True)
class TemplateFit:
    """Losses of the base on the same answers, by two templates."""

    used: str
    loss_used: float  # nats per token of the answers
    loss_own: float
    gain: Difference  # what the model's own template is worth, nats per token
    n_questions: int


def template_fit(
    likelihood: Likelihood,
    used: Template | None,
    questions: Sequence[Question],
    system: str | None,
    *,
    now: datetime.datetime | None = None,
    seconds: float = 20.0,
) -> TemplateFit | None:
    """Compare the ``used`` template with the model's own; None where it has none, or both ask in the same words.

    ``questions`` are such as the model was trained on, ``now`` is the time for templates that write the date.
    """
    model = likelihood.model
    if used is None or used.name == "model" or not model.chat_template:
        return None
    try:
        own = choose_template("model", model, now=now)
    except GgtuneError:  # it can't be used: nobody is told to
        return None
    context = model.n_ctx_train or 4096
    encoders = [SampleEncoder(model, template, LoadOptions(context, template)) for template in (used, own)]
    texts: list[Text] = []
    lengths: list[int] = []
    for question in questions:
        if not question.asks or len(lengths) == _MOST_QUESTIONS:
            continue
        try:
            samples = [_sample(encoder, question, system) for encoder in encoders]
        except GgtuneError:  # no place for a system text, say
            continue
        if samples[0].tokens.tolist() == samples[1].tokens.tolist():
            return None
        if any(len(sample.tokens) > context for sample in samples):
            continue
        for sample in samples:
            # without the end token, which is another one in each of them
            texts.append((sample.tokens[: sample.n_prompt].tolist(), [sample.tokens[sample.n_prompt : -1].tolist()]))
        lengths.append(len(texts[-1][1][0]))
    if len(lengths) < _LEAST_QUESTIONS:
        return None
    started, sums = time.monotonic(), []
    for found in likelihood.each(texts):
        sums.append(-float(found[0].sum(dtype=np.float64)))
        if time.monotonic() - started > seconds and len(sums) >= 2 * _LEAST_QUESTIONS:
            break
    n = len(sums) // 2
    weights = np.array(lengths[:n], np.float64)
    by_used, by_own = (np.array(sums[part : 2 * n : 2]) / weights for part in (0, 1))
    return TemplateFit(
        used.title,
        float(np.average(by_used, weights=weights)),
        float(np.average(by_own, weights=weights)),
        paired_difference(by_own, by_used, weights),
        n,
    )


def _sample(encoder: SampleEncoder, question: Question, system: str | None) -> Sample:
    made = encoder.conversation(exchange(question.question, question.reference, row=0, system=system))[0]
    if made.n_prompt < 1 or len(made.tokens) - made.n_prompt < 2:
        raise GgtuneError("there is no answer in it")
    return made
