"""Conversations and rendered texts to samples: token ids, and the weight of each as a target."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ggtune.data.conversation import Conversation, Document, Turn
from ggtune.data.options import LoadOptions
from ggtune.data.readers.sft_samples import SAMPLE_START
from ggtune.data.samples import Sample
from ggtune.data.segments import RenderedConversation, Segment
from ggtune.data.sft import question_tag, turn_of_text, turns_of_text, without_bos
from ggtune.data.templates import Template
from ggtune.data.tokenization import Tokenizer, TurnEncoder, token_text
from ggtune.errors import DataError, GgtuneError


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
        self._n_without_thoughts = 0  # conversations whose earlier thoughts the template leaves out
        self._n_split = 0  # samples of these
        self._n_never_shown = 0  # turns whose thoughts it leaves out wherever they stand
        self._counting = threading.Lock()  # samples are made in several threads
        self.notes = self._turns.notes

    def conversation(self, conversation: Conversation) -> list[Sample]:
        """Make the samples of a conversation. Raises :class:`GgtuneError` where the template can't show it.

        It is one; several where the template leaves out what the assistant thought in earlier turns and ``split_turns``
        asks for them: then each turn that has such thoughts ends a sample of its own, as the model is asked for it.
        """
        everything = {i for i, turn in enumerate(conversation.turns) if turn.role == "assistant"}
        rendered = self._template.render_conversation(conversation)
        options = self._options
        if not rendered.without_thinking or options.learn == "last":
            return [self._sample_of(conversation, rendered, everything)]
        splits = options.split_turns and options.loss_on == "answer"
        samples = self._split(conversation, everything) if splits else []
        if not splits:
            samples = [self._sample_of(conversation, rendered, everything)]
        with self._counting:
            self._n_without_thoughts += 1
            self._n_split += len(samples)
        return samples

    def _split(self, conversation: Conversation, to_learn: set[int]) -> list[Sample]:
        parts: list[tuple[Conversation, RenderedConversation, set[int]]] = []
        while to_learn:
            last = max(to_learn)
            part = replace(conversation, turns=conversation.turns[: last + 1])
            try:
                rendered = self._template.render_conversation(part)
            except GgtuneError:  # it shows this turn's thoughts nowhere: the turn is learned without them
                if not parts:
                    raise
                parts[-1][2].add(last)
                to_learn = to_learn - {last}
                with self._counting:
                    self._n_never_shown += 1
                continue
            here = to_learn - rendered.without_thinking
            parts.append((part, rendered, here))
            to_learn = to_learn - here
        samples: list[Sample] = []
        refused: DataError | None = None
        for part, rendered, here in reversed(parts):
            try:
                samples.append(self._sample_of(part, rendered, here))
            except DataError as error:  # these turns are given
                refused = error
        if refused is not None and not samples:
            raise refused
        return samples

    def notes_on_thinking(self, unit: str) -> list[str]:
        """Say what became of thoughts that the template leaves out; ``unit`` is what rows are called."""
        if not self._n_without_thoughts:
            return []
        n = self._n_without_thoughts
        left_out = (
            f"the template leaves out what the assistant thought in earlier turns, in {n} {unit}{'s' * (n > 1)}: "
        )
        options = self._options
        if not options.split_turns or options.loss_on == "all":
            how = "--split-turns" if options.loss_on == "answer" else "--loss-on answer"
            return [f"{left_out}they are not learned ({how} makes samples of each turn, so that they are)"]
        never = f"; thoughts that it never shows, and that are not learned: {self._n_never_shown}"
        return [
            f"{left_out}these are {self._n_split} samples, each up to a turn whose thoughts are learned as the model "
            "is asked for it (--no-split-turns: one sample each, without those thoughts)"
            + never
            * (self._n_never_shown > 0)
        ]

    def _sample_of(self, conversation: Conversation, rendered: RenderedConversation, to_learn: set[int]) -> Sample:
        turns = conversation.turns
        last = max(i for i, turn in enumerate(turns) if turn.role == "assistant")

        def weight_of(segment: Segment) -> float:
            turn = turns[segment.turn]
            if self._options.loss_on == "all":
                return conversation.weight * (own_weight(turn) if segment.turn >= 0 else 1.0)
            given = segment.turn < 0 or turn.learned is False or segment.turn not in to_learn
            if given or not self._learns(segment, last, thinks=turn.thinking != ""):
                return conversation.weight * self._options.prompt_weight
            return conversation.weight * turn.weight

        return self._sample(rendered, conversation.row, weight_of)

    def text(self, document: Document, tag: str) -> tuple[Sample, str] | None:
        """Make the sample of a rendered text, and its first prompt; None where it has no answer.

        Raises :class:`DataError` (without file and row) where an answer has no end.
        """
        prefix = (self._options.read.sample_start or SAMPLE_START) if self._options.include_sample_start else ""
        rendered = self._turns_of(document.text, tag, prefix)
        if rendered is not None:
            prompt = rendered.segments[0].text.removeprefix(prefix)
        else:
            turn = turn_of_text(
                self._tokenizer, self._template, document.text, tag=tag, prefix=prefix, bos_is_tag=not self._turns.bos
            )
            if not turn.has_answer:
                return None
            with self._counting:
                self.end_appended += turn.end_appended
            rendered, prompt = turn.rendered, turn.prompt
        last = rendered.segments[-1].turn

        def weight_of(segment: Segment) -> float:
            learned = self._options.loss_on == "all" or (segment.turn >= 0 and self._learns(segment, last))
            return document.weight * (1.0 if learned else self._options.prompt_weight)

        return self._sample(rendered, document.row, weight_of), prompt

    def _turns_of(self, text: str, tag: str, prefix: str) -> RenderedConversation | None:
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
        return turns_of_text(text, self._template, tag=tag, next_question=self._next_question, ends=ends, prefix=prefix)

    def _learns(self, segment: Segment, last: int, *, thinks: bool = True) -> bool:
        """``thinks``: the turn has a thought, not only the tags of one."""
        learn = self._options.learn
        if learn == "last":
            return segment.turn == last
        if learn == "answers":
            return not segment.thinking
        return (segment.thinking and thinks) if learn == "thinking" else True

    def _sample(self, rendered: RenderedConversation, row: int, weight_of: Callable[[Segment], float]) -> Sample:
        tokens, weights, n_prompt = self._turns.encode_conversation(rendered, weight_of)
        found = np.array(weights, np.float32)
        found[:1] = 0
        if not found.any():
            reason = "it has no thought" if self._options.learn == "thinking" else "all its tokens have the weight 0"
            raise DataError(f"nothing of it would be learned: {reason}")
        return Sample(np.array(tokens, np.int32), found, n_prompt, row)
