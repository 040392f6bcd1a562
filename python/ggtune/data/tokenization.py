"""Token ids of rendered turns: the prompt as generation sees it, then the answer as its continuation.

Prompt and answer meet at a token boundary, because a model is asked with the prompt alone. Special tokens are parsed
in what the template wrote; what the user wrote stays text even where it spells one (``</s>`` in a cell ends no sample).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ggtune.data.segments import Rendered, RenderedConversation, Segment
from ggtune.data.templates import Template
from ggtune.errors import ModelError

IntArray = NDArray[np.int32]

# Text that a following text is tokenized behind, so that it is no text's start: SentencePiece puts a space before that.
_ANCHORS = ("\n", "]", "0", "a")
_FEW_TEXTS = 100  # as many are looked at before it pays to know all special tokens
_TOKENS_AT_ONCE = 256


class Tokenizer(Protocol):
    """What the pipeline needs of :class:`ggtune._core.Model`."""

    @property
    def bos_token(self) -> int:
        """Id of the BOS, -1 for none."""

    @property
    def eos_token(self) -> int:
        """Id of the EOS, -1 for none."""

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""

    @property
    def add_bos(self) -> bool:
        """Whether every text starts with the BOS."""

    def tokenize(self, text: str, *, parse_special: bool = True) -> IntArray:
        """Token ids of a text."""

    def detokenize(self, tokens: IntArray | Sequence[int], *, special: bool = False) -> bytes:
        """UTF-8 bytes of token ids."""

    def is_end_token(self, token: int) -> bool:
        """Whether generation ends at this token."""


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Text of a special token, "" for an id of -1."""
    return tokenizer.detokenize([token], special=True).decode("utf-8", "replace") if token >= 0 else ""


@dataclass
class _Head:
    """What a text continues, back to an end token."""

    text: str = ""
    spells_special: bool = False
    tokens: list[int] | None = None  # of the text as a whole, where it was parsed so
    is_end: bool = False  # it is an end token: some swallow the white space behind them


class TurnEncoder:
    """Turns rendered by one template into token ids.

    A sample starts with exactly one BOS where the tokenizer asks for one or the template's BOS text is the model's BOS.
    It ends with the template's end token, or with the model's EOS where the template has none or the model does not
    know it. ``notes`` says what of the template the model does not know.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template) -> None:
        """Raise :class:`ModelError` for a model without any end token."""
        self._tokenizer = tokenizer
        self.notes: list[str] = []
        bos = tokenizer.bos_token
        bos_in_template = bool(template.bos) and self._parse(template.bos) == [bos]
        self.bos = [bos] if bos >= 0 and (tokenizer.add_bos or bos_in_template) else []
        if template.bos and not bos_in_template:
            used = f"its own, {token_text(tokenizer, bos)!r}, is used" if self.bos else "none is written"
            self.notes.append(f"{template.bos!r} of the template '{template.title}' is not the model's BOS: {used}.")

        end = self._parse(template.end) if template.end else []
        if len(end) == 1 and tokenizer.is_end_token(end[0]):
            self.end = end[0]
        elif tokenizer.eos_token >= 0:
            self.end = tokenizer.eos_token
            if template.end:
                self.notes.append(
                    f"{template.end!r} of the template '{template.title}' is not an end token of the model: "
                    f"its own, {token_text(tokenizer, self.end)!r}, is used."
                )
        else:
            raise ModelError("The model has no end-of-sequence token: it could not learn where an answer ends.")
        self._n_looked_at = 0
        self._special_start: re.Pattern[str] | None = None  # first characters of the special tokens' texts

    def encode_prompt(self, rendered: Rendered) -> list[int]:
        """Token ids of BOS and prompt."""
        return self.bos + self._without_bos(self._group(_Head(), rendered.prompt_segments))

    def encode_conversation(
        self, rendered: RenderedConversation, weight_of: Callable[[Segment], float]
    ) -> tuple[list[int], list[float], int]:
        """Token ids of a conversation, their weights as targets, and how many stand before the last turn's words.

        Tokens meet where what the model is given and what it writes meet: a model is asked with the prompt alone.
        """
        tokens, weights, n_prompt = list(self.bos), [0.0] * len(self.bos), 0
        head = _Head()
        groups = [list(group) for _, group in groupby(rendered.segments, key=lambda s: (s.turn, weight_of(s)))]
        last = groups[-1][0].turn
        for i, group in enumerate(groups):
            if group[0].turn == last and (not i or groups[i - 1][0].turn != last):
                n_prompt = len(tokens)
            ended = group[-1].is_end
            found = self._group(head, group[:-1] if ended else group)
            if not i:
                found = self._without_bos(found)
            if ended:
                end, end_text = self._end_of(group[-1])
                found = [*found, end]
                head = _Head(end_text, tokens=[end], is_end=True) if end_text else _Head()
            tokens += found
            weights += [weight_of(group[0])] * len(found)
        return tokens, weights, n_prompt

    def _end_of(self, segment: Segment) -> tuple[int, str]:
        """The end token that a segment stands for, and its text: "" where that is not parsed as the token."""
        parsed = self._parse(segment.text)
        if len(parsed) == 1 and self._tokenizer.is_end_token(parsed[0]):
            return parsed[0], segment.text
        text = token_text(self._tokenizer, self.end)
        return self.end, text if self._parse(text) == [self.end] else ""

    def _group(self, head: _Head, group: Sequence[Segment]) -> list[int]:
        """Token ids of segments behind others, which they join then."""
        text = "".join(segment.text for segment in group)
        spells_special = self._spells_special(group)
        whole: list[int] | None = None
        found: list[int] = []
        if spells_special:
            for i, segment in enumerate(group):
                if not i and head.is_end and not segment.literal:
                    found += self._parse(head.text + segment.text)[1:]
                else:
                    encode = self._continuation if i or head.text else self._parse
                    found += encode(segment.text, parse_special=not segment.literal)
        elif not head.text:
            found = whole = self._parse(text)
        else:
            if not head.spells_special:
                given = self._parse(head.text) if head.tokens is None else head.tokens
                whole = self._parse(head.text + text)
            if whole is not None and whole[: len(given)] == given:
                found = whole[len(given) :]
            else:  # a token of the whole text spans the boundary
                found = self._continuation(text, parse_special=True)
        head.text, head.tokens, head.is_end = head.text + text, whole, False
        head.spells_special = head.spells_special or spells_special
        return found

    def _parse(self, text: str, *, parse_special: bool = True) -> list[int]:
        tokens: list[int] = self._tokenizer.tokenize(text, parse_special=parse_special).tolist()
        return tokens

    def _continuation(self, text: str, *, parse_special: bool) -> list[int]:
        """Token ids of a text that continues another one."""
        if not text:
            return []
        for anchor in _ANCHORS:
            before = self._parse(anchor, parse_special=parse_special)
            whole = self._parse(anchor + text, parse_special=parse_special)
            if whole[: len(before)] == before:
                return whole[len(before) :]
        return self._parse(text, parse_special=parse_special)

    def _spells_special(self, segments: Sequence[Segment]) -> bool:
        return any(segment.literal and self._is_spelled(segment.text) for segment in segments)

    def _is_spelled(self, text: str) -> bool:
        """Whether a text has other tokens where special ones are parsed in it."""
        self._n_looked_at += 1
        if self._special_start is None and self._n_looked_at > _FEW_TEXTS:  # in several threads at once, perhaps
            starts = "".join({text[0] for text in special_texts(self._tokenizer)})
            self._special_start = re.compile(f"[{re.escape(starts)}]" if starts else "(?!)")
        if self._special_start is not None and not self._special_start.search(text):
            return False
        return self._parse(text) != self._parse(text, parse_special=False)

    def _without_bos(self, tokens: list[int]) -> list[int]:
        """Drop what would double the BOS. Without one, such a token is a tag of the template: it stays."""
        if not self.bos:
            return tokens
        start = 0
        while start < len(tokens) and tokens[start] == self._tokenizer.bos_token:
            start += 1
        return tokens[start:]


def special_texts(tokenizer: Tokenizer) -> Iterator[str]:
    """Give the texts of the tokens that are only found where special tokens are parsed."""
    for start in range(0, tokenizer.n_vocab, _TOKENS_AT_ONCE):
        tokens = range(start, min(start + _TOKENS_AT_ONCE, tokenizer.n_vocab))
        if tokenizer.detokenize(tokens, special=True) == tokenizer.detokenize(tokens):
            continue
        for token in tokens:
            if not tokenizer.detokenize([token]) and (text := token_text(tokenizer, token)):
                yield text


def encode_prompt(tokenizer: Tokenizer, template: Template, question: str, system: str | None = None) -> IntArray:
    """Token ids to ask a model with, the same that training puts before an answer. Shape ``(n,)``."""
    encoder = TurnEncoder(tokenizer, template)
    return np.array(encoder.encode_prompt(template.render_prompt(system, question)), dtype=np.int32)
