"""BLEU and chrF of many answers, from sums, are sacrebleu's."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from ggtune.scores.corpus import Bleu, Chrf, CorpusScore
from ggtune.scores.statistics import bootstrap_sums

TEXT = "Neon is a noble gas, and helium is one too; both glow. Red? (violet) 10 10.5 it's -"


def texts(n: int, seed: int, longest: int = 12) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(TEXT.split(), k=rng.randint(0, longest))) for _ in range(n)]


def theirs(metric: BLEU | CHRF, answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    streams = [[found[i] if i < len(found) else None for found in references] for i in range(max(map(len, references)))]
    return float(metric.corpus_score(list(answers), streams).score)


def ours(score: CorpusScore, answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    columns = np.array([score.columns(*pair) for pair in zip(answers, references, strict=True)])
    return float(score.score(columns.sum(axis=0, keepdims=True))[0])


@pytest.mark.parametrize("n_references", [1, 3])
@pytest.mark.parametrize("longest", [3, 12])  # short ones have no four words: some precisions are smoothed
def test_sums_score_as_the_library_does(n_references: int, longest: int) -> None:
    for seed in range(5):
        answers = texts(15, seed, longest)
        references = [texts(1 + (i + seed) % n_references, 100 * seed + i, longest) for i in range(15)]
        bleu, chrf = Bleu([one for some in references for one in some]), Chrf()
        assert ours(bleu, answers, references) == pytest.approx(theirs(BLEU(), answers, references), abs=1e-9)
        assert ours(chrf, answers, references) == pytest.approx(theirs(CHRF(), answers, references), abs=1e-9)
        for answer, some in zip(answers, references, strict=True):
            assert chrf.single(answer, some) == pytest.approx(ours(chrf, [answer], [some]), abs=1e-9)
            assert bleu.single(answer, some) == BLEU(effective_order=True).sentence_score(answer, some).score


def test_the_ends_of_the_scale() -> None:
    long = [text for text in texts(40, 1) if len(text.split()) > 4]
    empty = [""] * len(long)
    references = [[text] for text in long]
    for score in (Bleu(long), Chrf()):
        assert ours(score, long, references) == pytest.approx(100)
        assert ours(score, empty, references) == 0
        assert score.single("", ["something"]) == 0


def test_a_draw_is_a_corpus() -> None:
    """What the bootstrap scores is what the library says of the same answers, some of them several times."""
    answers, references = texts(20, 5), [[text] for text in texts(20, 6)]
    draw = np.random.default_rng(0).integers(0, 20, 20)
    for score, metric in ((Bleu([]), BLEU()), (Chrf(), CHRF())):
        columns = np.array([score.columns(*pair) for pair in zip(answers, references, strict=True)], np.float64)
        counts = np.bincount(draw, minlength=20).astype(np.float64)
        expected = theirs(metric, [answers[i] for i in draw], [references[i] for i in draw])
        assert score.score(counts[None] @ columns)[0] == pytest.approx(expected)
        found = bootstrap_sums(columns, score.score)
        assert found.low < found.value < found.high


def test_scripts_without_spaces_are_cut_into_characters() -> None:
    chinese, japanese = ["水是由氢和氧组成的。"], ["水は水素と酸素でできています。"]
    assert "tok:zh" in Bleu(chinese).signature
    assert "tok:char" in Bleu(japanese).signature
    assert "tok:13a" in Bleu(["Water is H2O (水)."]).signature
    for texts_ in (chinese, japanese):
        half = texts_[0][: len(texts_[0]) // 2]
        assert 0 < Bleu(texts_).single(half, texts_) < 100
        assert ours(Bleu(texts_), texts_, [texts_]) == pytest.approx(100)
