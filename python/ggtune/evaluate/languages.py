"""Whether an answer is in another language than it should be: by py3langid where it is there, else by script alone."""

from collections.abc import Callable, Sequence
from functools import cache

from ggtune.evaluate.answer_texts import script

_SURE = 0.9  # probability of a language that is believed
_LIKELY = 0.5  # of the language of many texts together
_HARDLY = 0.05  # and of the one that is expected then
_LEAST_LETTERS = 20  # of a text whose language can be told
_LEAST_SCRIPT_LETTERS = 4
_LOOKED_AT = 100  # references
_MOST_SHARE = 0.8  # of the references, for one language to be that of all


class LanguageTeller:
    """Compares the languages of answers with those of the references."""

    def __init__(self, references: Sequence[str]) -> None:
        self._rank = _ranker()
        # short ones tell little by themselves
        together = self._sure(" ".join(references[:_LOOKED_AT]), _LIKELY)
        told = [language for text in references if (language := self._sure(text))]
        alone = sum(language == together for language in told)
        self._usual = together if alone >= _MOST_SHARE * len(told) else ""  # "": each row has its reference's

    @property
    def by(self) -> str:
        """What tells them."""
        return "py3langid" if self._rank is not None else "script"

    def differs(self, answer: str, reference: str) -> str:
        """Name the language or script of an answer that is in another one, "" where it is not or can't be told."""
        written, expected = script(answer), script(reference)
        if written and expected and written != expected and _n_letters(answer) >= _LEAST_SCRIPT_LETTERS:
            return written
        wanted = self._usual or self._sure(reference)
        if self._rank is None or not wanted or _n_letters(answer) < _LEAST_LETTERS:
            return ""
        ranked = dict(self._rank(answer))
        language, probability = next(iter(ranked.items()))
        other = language != wanted and probability >= _SURE and ranked.get(wanted, 0.0) < _HARDLY
        return language if other else ""

    def _sure(self, text: str, least: float = _SURE) -> str:
        if self._rank is None or _n_letters(text) < _LEAST_LETTERS:
            return ""
        language, probability = self._rank(text)[0]
        return language if probability >= least else ""


def _n_letters(text: str) -> int:
    return sum(map(str.isalpha, text))


@cache
def _ranker() -> Callable[[str], list[tuple[str, float]]] | None:
    """Languages of a text, the likeliest first; None where the library is missing."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None
    rank: Callable[[str], list[tuple[str, float]]] = LanguageIdentifier.from_model_file(
        MODEL_FILE, norm_probs=True
    ).rank
    return rank
