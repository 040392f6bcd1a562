"""Conversations and rendered texts to samples: token ids, and the weight of each as a target."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from ggtune.data.conversation import Conversation, Document, Turn
from ggtune.data.options import LoadOptions
from ggtune.data.readers.sft_samples import SAMPLE_START
from ggtune.data.samples import Sample
from ggtune.data.sft import encode_text, question_tag, segments_of_turns, without_bos
from ggtune.data.templates import RenderedConversation, Segment, Template
from ggtune.data.tokenization import Tokenizer, TurnEncoder, token_text
from ggtune.errors import DataError


def own_weight(turn: Turn) -> float:
    """Weight of an assistant's turn, 0 for one that is given."""
    return 0.0 if turn.learned is False else turn.weight


class SampleEncoder:
    """Makes samples by one template."""

    def __init__(self, tokenizer: Tokenizer, template: Template, options: LoadOptions) -> None:
        self._tokenizer, self._template, self._options = tokenizer, template, options
        self._turns = TurnEncoder(tokenizer, template)
        self._next_question = ""
        self._looked_for_it = False
        self.end_appended = 0
        self._counting = threading.Lock()  # samples are made in several threads
        self.notes = self._turns.notes

    def conversation(self, conversation: Conversation) -> Sample:
        """Make the sample of a conversation. Raises :class:`GgtuneError` where the template can't show it."""
        turns = conversation.turns
        last = max(i for i, turn in enumerate(turns) if turn.role == "assistant")

        def weight_of(segment: Segment) -> float:
            turn = turns[segment.turn]
            if self._options.loss_on == "all":
                return conversation.weight * (own_weight(turn) if segment.turn >= 0 else 1.0)
            if segment.turn < 0 or turn.learned is False or not self._learns(segment, last):
                return conversation.weight * self._options.prompt_weight
            return conversation.weight * turn.weight

        return self._sample(self._template.render_conversation(conversation), conversation.row, weight_of)

    def text(self, document: Document, tag: str) -> tuple[Sample, str] | None:
        """Make the sample of a rendered text, and its first prompt; None where it has no answer.

        Raises :class:`DataError` (without file and row) where an answer has no end.
        """
        segments = self._segments(document.text, tag)
        if segments is not None:
            last = max(segment.turn for segment in segments)

            def weight_of(segment: Segment) -> float:
                learned = segment.turn >= 0 and self._learns(segment, last)
                return document.weight * (
                    1.0 if learned or self._options.loss_on == "all" else self._options.prompt_weight
                )

            sample = self._sample(RenderedConversation("", tuple(segments)), document.row, weight_of)
            return sample, segments[0].text
        prefix = (self._options.read.sample_start or SAMPLE_START) if self._options.include_sample_start else ""
        turn = encode_text(self._tokenizer, self._turns, self._template, document.text, tag=tag, prefix=prefix)
        if not turn.has_answer:
            return None
        with self._counting:
            self.end_appended += turn.end_appended
        given = 1.0 if self._options.loss_on == "all" else self._options.prompt_weight
        weights = [document.weight * given] * len(turn.prompt) + [document.weight] * len(turn.answer)
        return self._made(turn.prompt + turn.answer, weights, len(turn.prompt), document.row), turn.prompt_text

    def _segments(self, text: str, tag: str) -> list[Segment] | None:
        """The turns of a text with several answers, or with something behind its only one."""
        if not tag.strip() or tag not in text:
            return None
        if not self._looked_for_it:
            self._next_question, self._looked_for_it = question_tag(self._template), True
        eos = token_text(self._tokenizer, self._tokenizer.eos_token)
        ends = [end for end in dict.fromkeys((self._template.end, eos)) if end]
        if text.count(tag) == 1:
            behind = text.partition(tag)[2]
            starts = [behind.index(end) + len(end) for end in ends if end in behind]
            if self._next_question and self._next_question in behind:
                starts.append(behind.index(self._next_question))
            if not starts or not behind[min(starts) :].strip():
                return None
        # a BOS that nobody puts in front again is a tag
        bos = [token_text(self._tokenizer, self._tokenizer.bos_token)] if self._turns.bos else []
        text = without_bos(text, [*bos, self._template.bos])
        return segments_of_turns(text, self._template, tag=tag, next_question=self._next_question, ends=ends)

    def _learns(self, segment: Segment, last: int) -> bool:
        learn = self._options.learn
        if learn == "last":
            return segment.turn == last
        if learn == "answers":
            return not segment.thinking
        return segment.thinking if learn == "thinking" else True

    def _sample(self, rendered: RenderedConversation, row: int, weight_of: Callable[[Segment], float]) -> Sample:
        tokens, weights, n_prompt = self._turns.encode_conversation(rendered, weight_of)
        return self._made(tokens, weights, n_prompt, row)

    def _made(self, tokens: list[int], weights: list[float], n_prompt: int, row: int) -> Sample:
        found = np.array(weights, np.float32)
        found[:1] = 0
        if not found.any():
            raise DataError("nothing of it would be learned: all its tokens have the weight 0")
        return Sample(np.array(tokens, np.int32), found, n_prompt, row)
