"""What a training has done to a general text and to general questions."""

import math
from pathlib import Path

import numpy as np
import pytest
from quick_runs import Trained

from ggtune import _core
from ggtune.demo import MODEL
from ggtune.errors import DataError, GgtuneError
from ggtune.evaluate.choice.files import read_choices
from ggtune.evaluate.general import measure
from ggtune.evaluate.general.change import compared, what_it_broke
from ggtune.evaluate.general.measure import OWN_QUESTIONS, OWN_TEXT, measure_general
from ggtune.scores.statistics import paired_difference

SHORT = "The river was high. Nobody crossed it.\n\nOn the third day the rain stopped, and the old ferry went again.\n\n"


def test_the_built_in_text_and_questions() -> None:
    paragraphs = OWN_TEXT.read_text(encoding="utf-8").split("\n\n")
    assert len(paragraphs) >= 14
    assert 1500 < sum(len(paragraph.split()) for paragraph in paragraphs) < 4000
    questions = read_choices(OWN_QUESTIONS).questions
    assert len(questions) == 40
    assert len({question.prompt for question in questions}) == 40
    for place in range(4):  # a model that always takes the same place has a quarter
        assert sum(question.right == (place,) for question in questions) == 10


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "ferry.txt"
    path.write_text(SHORT * 12)
    return path


def test_perplexity_is_that_of_the_windows(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_WINDOW", 16)
    model = _core.Model(str(MODEL))
    found = measure_general(model, text=text, threads=1)
    assert found.text == "ferry.txt"
    tokens = [token for part in SHORT.strip().split("\n\n") for token in model.tokenize(part.strip() + "\n\n").tolist()]
    assert found.n_tokens.sum() == 12 * len(tokens)
    assert found.n_tokens.max() <= 16
    windows = measure._windows(model, text.read_text())
    sums = [_core.decode_log_probs(model, np.array([*given, *ends[0]], np.int32)).sum() for given, ends in windows]
    assert all(given == [model.bos_token] for given, _ in windows)
    # rows side by side are rounded in another way than one sequence alone, by some CPUs' products (AVX2) by 1e-3
    assert found.perplexity == pytest.approx(math.exp(-sum(sums) / found.n_tokens.sum()), rel=5e-3)


def test_before_and_after(trained: Trained, text: Path) -> None:
    """A model that has learned six answers by heart is worse at everything else, or at least not the same."""
    seen: list[tuple[int, int]] = []
    change = what_it_broke(
        (trained.config.model, []),
        (trained.config.model, trained.adapters),
        text=text,
        threads=1,
        done=lambda n, of: seen.append((n, of)),
    )
    before, after = change.before, change.after
    assert before.n_tokens.tolist() == after.n_tokens.tolist()
    assert after.loss > before.loss + 0.2
    expected = paired_difference(before.losses, after.losses, before.n_tokens)
    assert change.loss == expected
    assert change.loss.value == pytest.approx(after.loss - before.loss)
    perplexity, questions = change.lines()
    percent = 100 * (after.perplexity / before.perplexity - 1)
    assert perplexity.startswith(
        f"perplexity of ferry.txt {before.perplexity:.1f} -> {after.perplexity:.1f} ({percent:+.1f} % ± "
    )
    assert f"general questions {int(sum(before.right))} -> {int(sum(after.right))} of 40 right" in questions
    values = change.to_dict()
    assert values["perplexity_change"]["value"] == pytest.approx(percent / 100)
    assert values["before"]["n_questions"] == 40
    assert seen == [(n, seen[0][1]) for n in range(1, seen[0][1] + 1)]


def test_the_same_model_has_not_changed(text: Path) -> None:
    change = what_it_broke((MODEL, []), (MODEL, []), text=text, threads=1)
    assert change.loss.value == 0
    assert change.right.value == 0
    assert "(+0.0 % ± 0.0" in change.lines()[0]


def test_time_bounds_the_windows_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_LEAST_WINDOWS", 3)
    change = what_it_broke((MODEL, []), (MODEL, []), threads=1, seconds=1e-6)
    assert len(change.before.losses) == len(change.after.losses) == 3


def test_what_can_not_be_compared(text: Path, tmp_path: Path) -> None:
    other = Path(__file__).parents[1] / "golden/llama.gguf"
    one, two = measure_general(MODEL, text=text, threads=1), measure_general(other, text=text, threads=1)
    with pytest.raises(GgtuneError, match="same tokens"):
        compared(one, two)
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    with pytest.raises(DataError, match="shorter than two tokens"):
        measure_general(MODEL, text=empty, threads=1)
    with pytest.raises(DataError, match="No such file"):
        measure_general(MODEL, text=tmp_path / "none.txt", threads=1)
